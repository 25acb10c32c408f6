"""IMAP (RFC 3501, RFC 9051): the record that the core works with."""

from __future__ import annotations

from typing import ClassVar

from zope.interface import implementer

from mailroute.dialogs.imap.dialog import ImapDialog
from mailroute.dialogs.imap.login import ImapLogin
from mailroute.events import DialogTerms, LoginOrder
from mailroute.interfaces import IDialog, ILogin, ILoginProtocol
from mailroute.wire.sasl import MECHANISMS


@implementer(ILoginProtocol)
class ImapProtocol:
    """Makes the two halves of an IMAP session's beginning."""

    name = "imap"
    alpn: ClassVar[tuple[bytes, ...]] = (b"imap",)
    mechanisms: ClassVar[tuple[str, ...]] = tuple(MECHANISMS)

    def dialog(self, terms: DialogTerms) -> IDialog:
        """Make the dialog for one client."""
        return ImapDialog(terms)

    def login(self, order: LoginOrder) -> ILogin:
        """Make the login for one attempt at one backend."""
        return ImapLogin(order)


IMAP = ImapProtocol()
