"""IMAP (RFC 3501, RFC 9051): the record that the core works with."""

from __future__ import annotations

from typing import ClassVar

from zope.interface import implementer

from mailroute.dialogs.imap.dialog import ImapDialog
from mailroute.dialogs.imap.login import ImapLogin
from mailroute.events import DialogTerms, LoginTerms
from mailroute.interfaces import IDialog, ILogin, ILoginProtocol
from mailroute.wire.sasl import NAMES


@implementer(ILoginProtocol)
class ImapProtocol:
    """Makes the two halves of an IMAP session's beginning."""

    name = "imap"
    alpn: ClassVar[tuple[bytes, ...]] = (b"imap",)
    mechanisms: ClassVar[tuple[str, ...]] = NAMES
    logins = True
    starttls = True

    def dialog(self, terms: DialogTerms) -> IDialog:
        """Make the dialog for one client."""
        return ImapDialog(terms)

    def login(self, terms: LoginTerms) -> ILogin:
        """Make the login for one connection to a backend."""
        return ImapLogin(terms)


IMAP = ImapProtocol()
