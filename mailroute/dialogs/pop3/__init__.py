"""POP3 (RFC 1939, 2449, 2595, 5034, 3206): the record that the core works with."""

from __future__ import annotations

from typing import ClassVar

from zope.interface import implementer

from mailroute.dialogs.pop3.dialog import Pop3Dialog
from mailroute.dialogs.pop3.login import Pop3Login
from mailroute.dialogs.pop3.probe import Pop3Probe
from mailroute.dialogs.pop3.replies import check_capability
from mailroute.events import DialogTerms, LoginTerms
from mailroute.interfaces import IDialog, ILogin, ILoginProtocol, IProbe, IProbedProtocol
from mailroute.wire.sasl import NAMES


@implementer(ILoginProtocol, IProbedProtocol)
class Pop3Protocol:
    """Makes the two halves of a POP3 session's beginning."""

    name = "pop3"
    alpn: ClassVar[tuple[bytes, ...]] = (b"pop3",)
    mechanisms: ClassVar[tuple[str, ...]] = NAMES
    logins = True
    password_command = True
    starttls = True
    port = 110
    tls_port: int | None = 995

    def check_capability(self, word: str) -> None:
        """Check a line of the answer to CAPA."""
        check_capability(word)

    def dialog(self, terms: DialogTerms) -> IDialog:
        """Make the dialog for one client."""
        return Pop3Dialog(terms)

    def login(self, terms: LoginTerms) -> ILogin:
        """Make the login for one connection to a backend."""
        return Pop3Login(terms)

    def probe(self, terms: LoginTerms) -> IProbe:
        """Make what looks at one backend, over one connection."""
        return Pop3Probe(terms)


POP3 = Pop3Protocol()
