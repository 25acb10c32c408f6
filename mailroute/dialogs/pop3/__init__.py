"""POP3 (RFC 1939, 2449, 2595, 5034, 3206): the record that the core works with."""

from __future__ import annotations

from mailroute.dialogs.common.protocol import LoginProtocol
from mailroute.dialogs.pop3.dialog import Pop3Dialog
from mailroute.dialogs.pop3.login import Pop3Login
from mailroute.dialogs.pop3.probe import Pop3Probe
from mailroute.dialogs.pop3.replies import check_capability

POP3 = LoginProtocol(
    name="pop3",
    port=110,
    tls_port=995,
    alpn=(b"pop3",),
    password_command=True,
    check_capability=check_capability,
    dialog=Pop3Dialog,
    login=Pop3Login,
    probe=Pop3Probe,
)
