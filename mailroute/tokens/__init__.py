"""OAuth tokens that mailroute obtains itself, to log in at backends that take nothing else (RFC 6749)."""
