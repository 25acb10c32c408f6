"""The frozen values of a mail transaction: what a client hands over, and what becomes of it.

They pass between a delivery's two halves, the one that faces the client
(`IReceiver`) and the ones that face backends (`ISender`), through a session
that looks at little of them.
"""

from __future__ import annotations

import enum

from attrs import field, frozen

from mailroute.events import HangUp, Reason, Send, StartTLS
from mailroute.wire.smtp_syntax import Parameters

# --- what a client hands over -------------------------------------------------


@frozen
class MailFrom:
    """A transaction begins: the reverse path's mailbox as it is spelled, empty for the null path.

    ``hello``: what the client calls itself.
    """

    mailbox: bytes
    parameters: Parameters = ()
    hello: bytes = b""


@frozen
class RcptTo:
    """A recipient: the mailbox as it is spelled, and the account's name in it, for the look-up."""

    mailbox: bytes
    account: bytes
    parameters: Parameters = ()


@frozen
class Begin:
    """The recipients are all there, and the message comes next.

    ``chunked``: in chunks whose size is told beforehand, and as it is; if not,
    it ends with a line of its own, and its dots are doubled (RFC 5321 section 4.5.2).
    ``revocable``: a backend that has been sent all of it shall still not have it before `End`.
    """

    chunked: bool = False
    revocable: bool = False


@frozen
class Chunk:
    """A chunk begins, of that many bytes."""

    size: int
    last: bool


@frozen
class Piece:
    """A piece of the message, in the form that `Begin` says."""

    data: bytes = field(repr=False)


@frozen
class End:
    """The message has come to its end, or if not ``last``, one of its chunks has."""

    last: bool = True


@frozen
class Reset:
    """The transaction is called off."""


# --- what becomes of it ---------------------------------------------------------


class Obstacle(enum.Enum):
    """Why a recipient or a message does not get through, in no protocol's words; see also `Reason`."""

    UNKNOWN = "no route knows the recipient"
    BAD_ADDRESS = "no address"
    LOOKUP_FAILED = "the look-up failed"
    ELSEWHERE = "lives on another backend than the recipients before"
    TOO_MANY_BACKENDS = "too many backends for one message"
    NO_8BITMIME = "the backend takes no 8-bit messages"
    NO_SMTPUTF8 = "the backend takes no internationalised addresses"
    NO_DSN = "the backend takes no requests for delivery status notifications"
    WITHHELD = "not sent to its end, as another backend has not taken it"
    LOST = "the backend's connection was lost"
    TIMEOUT = "the backend took too long"
    PROTOCOL = "the backend did not speak as it should"
    TOO_LARGE = "the message is too large"
    BAD_LINE_ENDS = "the message has a bare CR or LF, or a line that begins with NUL"


@frozen
class Reply:
    """What a backend has said: a code, and the text of each line, made harmless."""

    code: int
    lines: tuple[bytes, ...] = (b"",)

    @property
    def positive(self) -> bool:
        """Whether what was asked for is done."""
        return 200 <= self.code < 300


Outcome = Reply | Obstacle | Reason
"""What has become of one recipient."""


@frozen
class Spoilt:
    """The message cannot be taken: nothing more of it comes, and nobody may get the half of it."""

    why: Obstacle


@frozen
class Answered:
    """The backend has answered: the next one of what it was asked."""

    outcome: Outcome


@frozen
class Broken:
    """Nothing more can be made of this backend's connection; ``detail`` is for the log."""

    outcome: Outcome
    detail: str


ReceiverEvent = Send | StartTLS | HangUp | MailFrom | RcptTo | Begin | Chunk | Piece | End | Reset | Spoilt
SenderEvent = Send | Answered | Broken


@frozen
class DeliveryTerms:
    """What a receiver needs to know of its listener.

    ``host_name``: what it calls itself.  ``tls_offered``: the client may ask for
    STARTTLS.  ``extensions``: what to announce besides what every backend can
    keep.  ``message_size`` is bytes, ``recipients`` of one message, ``messages``
    of one connection, ``bad_commands`` before the client is sent away: 0 for any number.
    """

    host_name: str
    tls_offered: bool = False
    extensions: tuple[str, ...] = ()
    message_size: int = 0
    recipients: int = 1000
    messages: int = 1000
    bad_commands: int = 5
