"""SMTP and LMTP, where mail is delivered (RFC 5321, RFC 2033) and where it is submitted (RFC 6409).

These are the records that the core works with.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from zope.interface import implementer

from mailroute.dialogs.common.protocol import LoginProtocol
from mailroute.dialogs.smtp import dialect as dialects
from mailroute.dialogs.smtp.extensions import check_line, check_optional
from mailroute.dialogs.smtp.login import SmtpLogin
from mailroute.dialogs.smtp.probe import SmtpProbe
from mailroute.dialogs.smtp.receiver import Receiver
from mailroute.dialogs.smtp.sender import Sender
from mailroute.dialogs.smtp.submission import SubmissionDialog
from mailroute.dialogs.smtp.submission_login import SubmissionLogin
from mailroute.envelope import DeliveryTerms
from mailroute.events import LoginTerms
from mailroute.interfaces import (
    IDeliveryProtocol,
    ILogin,
    INamedProtocol,
    IProbe,
    IProbedProtocol,
    IReceiver,
    ISender,
)


@implementer(IDeliveryProtocol, IProbedProtocol)
class DeliveryProtocol:
    """Makes the halves of a delivery in one of the two dialects."""

    # The registry of RFC 7301 has no name for SMTP in any form.
    alpn: ClassVar[tuple[bytes, ...]] = ()
    mechanisms: ClassVar[tuple[str, ...]] = ()
    logins = False
    password_command = False
    starttls = True

    def __init__(self, dialect: dialects.Dialect) -> None:
        self._dialect = dialect
        self.name = dialect.name
        self.splits = dialect.splits
        self.port = dialect.port
        self.tls_port = dialect.tls_port

    def check_capability(self, word: str) -> None:
        """Check a keyword of the EHLO reply."""
        check_optional(word)

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


@implementer(INamedProtocol)
class SubmissionProtocol(LoginProtocol):
    """The one protocol with logins in which clients are told a host's name."""


LMTP = DeliveryProtocol(dialects.LMTP)
SMTP = DeliveryProtocol(dialects.SMTP)
SUBMISSION = SubmissionProtocol(
    name=dialects.SUBMISSION.name,
    port=dialects.SUBMISSION.port,
    tls_port=dialects.SUBMISSION.tls_port,
    alpn=(),
    check_capability=check_line,
    dialog=SubmissionDialog,
    login=SubmissionLogin,
    probe=partial(SmtpProbe, dialects.SUBMISSION),
)
