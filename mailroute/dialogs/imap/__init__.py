"""IMAP (RFC 3501, RFC 9051): the record that the core works with."""

from __future__ import annotations

from typing import ClassVar

from zope.interface import implementer

from mailroute.dialogs.imap.dialog import ImapDialog
from mailroute.dialogs.imap.login import ImapLogin
from mailroute.dialogs.imap.probe import ImapProbe
from mailroute.dialogs.imap.replies import check_capability
from mailroute.events import DialogTerms, LoginTerms
from mailroute.interfaces import IDialog, ILogin, ILoginProtocol, IProbe, IProbedProtocol
from mailroute.wire.sasl import NAMES


@implementer(ILoginProtocol, IProbedProtocol)
class ImapProtocol:
    """Makes the two halves of an IMAP session's beginning."""

    name = "imap"
    alpn: ClassVar[tuple[bytes, ...]] = (b"imap",)
    mechanisms: ClassVar[tuple[str, ...]] = NAMES
    logins = True
    password_command = True
    starttls = True
    port = 143
    tls_port: int | None = 993

    def check_capability(self, word: str) -> None:
        """Check a word of the answer to CAPABILITY."""
        check_capability(word)

    def dialog(self, terms: DialogTerms) -> IDialog:
        """Make the dialog for one client."""
        return ImapDialog(terms)

    def login(self, terms: LoginTerms) -> ILogin:
        """Make the login for one connection to a backend."""
        return ImapLogin(terms)

    def probe(self, terms: LoginTerms) -> IProbe:
        """Make what looks at one backend, over one connection."""
        return ImapProbe(terms)


IMAP = ImapProtocol()
