"""What the protocols' dialogs and logins have in common; nothing here knows a protocol by name."""
