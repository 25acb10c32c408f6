"""ManageSieve (RFC 5804): the record that the core works with."""

from __future__ import annotations

from typing import ClassVar

from zope.interface import implementer

from mailroute.dialogs.managesieve.dialog import ManageSieveDialog
from mailroute.dialogs.managesieve.login import ManageSieveLogin
from mailroute.dialogs.managesieve.probe import ManageSieveProbe
from mailroute.dialogs.managesieve.replies import check_capability
from mailroute.events import DialogTerms, LoginTerms
from mailroute.interfaces import IDialog, ILogin, ILoginProtocol, IProbe, IProbedProtocol
from mailroute.wire.sasl import NAMES


@implementer(ILoginProtocol, IProbedProtocol)
class ManageSieveProtocol:
    """Makes the two halves of a ManageSieve session's beginning."""

    name = "managesieve"
    alpn: ClassVar[tuple[bytes, ...]] = (b"managesieve",)
    mechanisms: ClassVar[tuple[str, ...]] = NAMES
    logins = True
    password_command = False
    starttls = True
    port = 4190
    tls_port: int | None = None

    def check_capability(self, word: str) -> None:
        """Check a capability: its name, and behind a space its value if it has one."""
        check_capability(word)

    def dialog(self, terms: DialogTerms) -> IDialog:
        """Make the dialog for one client."""
        return ManageSieveDialog(terms)

    def login(self, terms: LoginTerms) -> ILogin:
        """Make the login for one connection to a backend."""
        return ManageSieveLogin(terms)

    def probe(self, terms: LoginTerms) -> IProbe:
        """Make what looks at one backend, over one connection."""
        return ManageSieveProbe(terms)


MANAGESIEVE = ManageSieveProtocol()
