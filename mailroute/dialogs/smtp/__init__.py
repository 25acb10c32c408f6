"""SMTP and LMTP as mail is delivered (RFC 5321, RFC 2033): the records that the core works with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from zope.interface import implementer

from mailroute.dialogs.smtp import dialect as dialects
from mailroute.dialogs.smtp.login import SmtpLogin
from mailroute.dialogs.smtp.probe import SmtpProbe
from mailroute.dialogs.smtp.receiver import Receiver
from mailroute.dialogs.smtp.sender import Sender
from mailroute.envelope import DeliveryTerms
from mailroute.events import LoginTerms
from mailroute.interfaces import IDeliveryProtocol, ILogin, IProbe, IProbedProtocol, IReceiver, ISender


@implementer(IDeliveryProtocol, IProbedProtocol)
class DeliveryProtocol:
    """Makes the halves of a delivery in one of the two dialects."""

    # RFC 7301's registry has no name for either.
    alpn: ClassVar[tuple[bytes, ...]] = ()
    mechanisms: ClassVar[tuple[str, ...]] = ()
    logins = False
    starttls = True

    def __init__(self, dialect: dialects.Dialect) -> None:
        self._dialect = dialect
        self.name = dialect.name
        self.splits = dialect.splits
        self.port = dialect.port
        self.tls_port = dialect.tls_port

    def receiver(self, terms: DeliveryTerms) -> IReceiver:
        """Make the client's half for one client."""
        return Receiver(self._dialect, terms)

    def login(self, terms: LoginTerms) -> ILogin:
        """Make what gets one connection ready to take mail."""
        return SmtpLogin(self._dialect, terms)

    def probe(self, terms: LoginTerms) -> IProbe:
        """Make what looks at one backend, over one connection."""
        return SmtpProbe(self._dialect, terms)

    def sender(self, welcome: object) -> ISender:
        """Make the backend's half for one connection that is ready."""
        return Sender(self._dialect, welcome if isinstance(welcome, Mapping) else {})


LMTP = DeliveryProtocol(dialects.LMTP)
SMTP = DeliveryProtocol(dialects.SMTP)
