"""IMAP (RFC 3501, RFC 9051): the record that the core works with."""

from __future__ import annotations

from mailroute.dialogs.common.protocol import LoginProtocol
from mailroute.dialogs.imap.dialog import ImapDialog
from mailroute.dialogs.imap.login import ImapLogin
from mailroute.dialogs.imap.probe import ImapProbe
from mailroute.dialogs.imap.replies import check_capability

IMAP = LoginProtocol(
    name="imap",
    port=143,
    tls_port=993,
    alpn=(b"imap",),
    password_command=True,
    check_capability=check_capability,
    dialog=ImapDialog,
    login=ImapLogin,
    probe=ImapProbe,
)
