"""ManageSieve (RFC 5804): the record that the core works with."""

from __future__ import annotations

from mailroute.dialogs.common.protocol import LoginProtocol
from mailroute.dialogs.managesieve.dialog import ManageSieveDialog
from mailroute.dialogs.managesieve.login import ManageSieveLogin
from mailroute.dialogs.managesieve.probe import ManageSieveProbe
from mailroute.dialogs.managesieve.replies import check_capability

MANAGESIEVE = LoginProtocol(
    name="managesieve",
    port=4190,
    tls_port=None,
    alpn=(b"managesieve",),
    check_capability=check_capability,
    dialog=ManageSieveDialog,
    login=ManageSieveLogin,
    probe=ManageSieveProbe,
)
