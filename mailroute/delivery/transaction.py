"""One message: for whom it is, where they live, and what has become of it; and its log line."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import define, field
from twisted.logger import Logger

from mailroute.delivery.target import Target
from mailroute.envelope import MailFrom, Outcome, RcptTo, Reply
from mailroute.record import printable

_log = Logger(namespace="mailroute.delivery")

MAX_NAMED = 50
"""Recipients that a log line names; the event has how many there are."""


@define
class Recipient:
    """A recipient, its backend's name, and what has become of it so far."""

    address: RcptTo
    backend: str
    outcome: Outcome


@define
class Transaction:
    """What the client has said since MAIL.

    ``accepted`` are the recipients whose backends have taken them, in the
    client's order, with their backends; ``size`` is bytes passed on.
    """

    mail: MailFrom
    number: int
    recipients: list[Recipient] = field(factory=list)
    accepted: list[tuple[Recipient, Target]] = field(factory=list)
    size: int = 0
    ended: bool = False

    @property
    def targets(self) -> list[Target]:
        """The backends that have accepted recipients, each once."""
        return list(dict.fromkeys(target for _, target in self.accepted))

    def of(self, target: Target) -> Iterator[Recipient]:
        """Yield the accepted recipients of one backend."""
        return (recipient for recipient, theirs in self.accepted if theirs is target)

    def count(self, target: Target) -> int:
        """Return how many accepted recipients a backend has."""
        return sum(1 for _ in self.of(target))

    def settled(self, target: Target, outcomes: tuple[Outcome, ...]) -> None:
        """Note what has become of a backend's recipients."""
        for recipient, outcome in zip(self.of(target), outcomes, strict=True):
            recipient.outcome = outcome

    def failed(self, target: Target, outcome: Outcome) -> None:
        """Note that a backend's recipients have all come to the same."""
        for recipient in self.of(target):
            recipient.outcome = outcome

    def outcomes(self) -> tuple[Outcome, ...]:
        """Return what has become of each accepted recipient."""
        return tuple(recipient.outcome for recipient, _ in self.accepted)

    def log(self, session_id: str, outcome: str = "") -> None:
        """Leave a line, if there was anybody to send to.

        :param outcome: what has come of it, if it has not come to its end.
        """
        if not self.recipients:
            return
        delivered = (
            sum(_is_delivered(recipient.outcome) for recipient in self.recipients) if self.ended else 0
        )
        everybody = len(self.recipients)
        if not outcome:
            outcome = (
                "delivered" if delivered == everybody else "delivered in part" if delivered else "refused"
            )
        named = [
            f"{_shown(recipient.address.mailbox)}({recipient.backend}: {_word(recipient.outcome)})"
            for recipient in self.recipients[:MAX_NAMED]
        ]
        _log.info(
            "session {session_id} message {message} {outcome}: from={sender} recipients={recipients} "
            "delivered={delivered} bytes={bytes} backends={backends} to={to}",
            session_id=session_id,
            message=self.number,
            outcome=outcome,
            sender=_shown(self.mail.mailbox),
            recipients=everybody,
            delivered=delivered,
            bytes=self.size,
            backends=",".join(dict.fromkeys(r.backend for r in self.recipients if r.backend != "-")) or "-",
            to=", ".join(named) + (", …" if everybody > MAX_NAMED else ""),
        )


def _is_delivered(outcome: Outcome) -> bool:
    return isinstance(outcome, Reply) and outcome.positive


def _shown(mailbox: bytes) -> str:
    return f"<{printable(mailbox.decode('utf-8', 'backslashreplace'))}>"


def _word(outcome: Outcome) -> str:
    """Return an outcome for the log: a backend's reply, or our own reason."""
    if not isinstance(outcome, Reply):
        return str(outcome.value)
    text = outcome.lines[-1].decode("utf-8", "backslashreplace")
    return printable(f"{outcome.code} {text}", " ").strip()
