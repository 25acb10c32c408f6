"""Plain TCP: whatever clients and servers speak, nothing of it is read."""

from __future__ import annotations

from typing import ClassVar

from zope.interface import implementer

from mailroute.dialogs.common.no_login import NoLogin
from mailroute.dialogs.tcp.dialog import TcpDialog
from mailroute.events import DialogTerms, LoginTerms
from mailroute.interfaces import IDialog, ILogin, ILoginProtocol


@implementer(ILoginProtocol)
class TcpProtocol:
    """Makes two halves that say nothing: connections are joined as they are."""

    name = "tcp"
    alpn: ClassVar[tuple[bytes, ...]] = ()
    mechanisms: ClassVar[tuple[str, ...]] = ()
    logins = False
    password_command = False
    starttls = False

    def check_capability(self, word: str) -> None:
        """Refuse the word: nothing is announced."""
        del word
        raise ValueError("means nothing for tcp, which has no logins: remove it")

    def dialog(self, terms: DialogTerms) -> IDialog:
        """Make the dialog for one client."""
        del terms  # all of them are about logins
        return TcpDialog()

    def login(self, terms: LoginTerms) -> ILogin:
        """Make the login for one connection to a backend."""
        del terms
        return NoLogin()


TCP = TcpProtocol()
