"""The way of one message to its backends, from the leave to send it to what has become of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import evolve
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from mailroute.delivery.target import Target
from mailroute.delivery.terms import FINAL_TIMEOUT
from mailroute.delivery.transaction import Transaction
from mailroute.envelope import Begin, Chunk, End, Obstacle, Outcome, Piece, ReceiverEvent, Reply, Spoilt
from mailroute.interfaces import IReceiver
from mailroute.record import SessionRecord


class Session(Protocol):
    """Whose messages they are."""

    record: SessionRecord

    def obey(self, events: list[ReceiverEvent]) -> None:
        """Do what the receiver says."""

    def asks(self, then: Callable[..., None]) -> Callable[..., None]:
        """Do nothing else until what this returns is called, and then call ``then`` with the same."""

    def concluding(self) -> None:
        """The message's end is about to be sent: whether it is delivered is up to its backends now."""

    def concluded(self, events: list[ReceiverEvent]) -> None:
        """It is known what has become of the message: do what the receiver says of it."""

    def dialling(self) -> None:
        """A backend is about to be dialled."""

    def passed(self, size: int) -> None:
        """So many bytes of a message were written, for all its backends together."""

    def flowing(self) -> None:
        """A backend that was full is not any more, or is gone."""

    def fault(self, failure: Failure) -> None:
        """Something of ours is broken."""


class Passage:
    """A message that each backend takes or not, whatever becomes of it at the others.

    :param finished: called when it is known what has become of the message, before the client is told.
    """

    def __init__(
        self,
        transaction: Transaction,
        session: Session,
        receiver: IReceiver,
        clock: IReactorTime,
        finished: Callable[[], None],
    ) -> None:
        self._transaction = transaction
        self._session = session
        self._receiver = receiver
        self._clock = clock
        self._finished = finished

    def begin(self, begin: Begin) -> None:
        """Ask all backends for leave to send the message."""

        def begun() -> None:
            if begin.chunked or self._goes_on():
                self._session.obey(self._receiver.proceed())
            else:
                self._give_up()

        ready = self._when_all(begun)
        for target in self._transaction.targets:
            target.begin(begin, self._session.asks(lambda said, target=target: ready(target, said)))

    def part(self, part: Chunk | Piece) -> None:
        """Pass a part of the message on."""
        targets = self._transaction.targets
        for target in targets:
            target.pass_on(part)
        if isinstance(part, Piece):
            self._transaction.size += len(part.data)
            self._session.passed(len(part.data) * len(targets))

    def spoilt(self, spoilt: Spoilt) -> None:
        """Let go of a message that nobody may get."""
        for target in self._transaction.targets:
            target.fail(spoilt.why)

    def end(self, end: End) -> None:
        """End the message, or a chunk of it, at all backends."""
        if end.last:
            self._session.concluding()
            self._end_message(end)
            return
        then = self._when_all(self._chunk_ended)
        for target in self._transaction.targets:
            target.end(end, 1, self._session.asks(lambda said, target=target: then(target, said)))

    def _when_all(self, then: Callable[[], None]) -> Callable[[Target, tuple[Outcome, ...]], None]:
        """Return what takes one answer of each backend: who does not say yes has failed."""
        missing = set(self._transaction.targets)

        def answered(target: Target, said: tuple[Outcome, ...]) -> None:
            missing.discard(target)
            [outcome] = said
            if not _is_yes(outcome):
                target.failed = target.failed or outcome
            if not missing:
                then()

        return answered

    def _goes_on(self) -> bool:
        """Whether there is anybody to send the rest to."""
        return any(target.failed is None for target in self._transaction.targets)

    def _chunk_ended(self) -> None:
        if self._goes_on():
            self._session.obey(self._receiver.answer(Reply(250)))
        else:
            self._give_up()

    def _end_message(self, end: End) -> None:
        missing = set(self._transaction.targets)

        def ended(target: Target, outcomes: tuple[Outcome, ...]) -> None:
            missing.discard(target)
            self._transaction.settled(target, outcomes)
            if not missing:
                self._finish()

        for target in self._transaction.targets:
            then = self._session.asks(lambda said, target=target: ended(target, said))
            target.end(end, self._transaction.count(target), then)

    def _give_up(self) -> None:
        """The message ends here, at those too that could have had it."""
        for target in self._transaction.targets:
            self._transaction.failed(target, target.failed or Obstacle.WITHHELD)
        self._finish()

    def _finish(self) -> None:
        """Tell the client what has become of the message."""
        self._transaction.ended = True
        # Before the client is told: the next message, which it may have sent ahead, begins with that.
        self._finished()
        self._session.concluded(self._receiver.finish(self._transaction.outcomes()))


class OneReply(Passage):
    """A message for several backends with one reply: all of them take it or, as far as that can be, none.

    Whoever has taken a message that another has not gets it once more with the
    client's next attempt.  So as soon as one has failed, the others do not get
    the message's end, and they are told it one after the other.
    """

    def begin(self, begin: Begin) -> None:
        """Ask all backends for leave to send the message."""
        super().begin(evolve(begin, revocable=True))

    def _goes_on(self) -> bool:
        return all(target.failed is None for target in self._transaction.targets)

    def _end_message(self, end: End) -> None:
        if not self._goes_on():
            self._give_up()
            return
        self._end_next(end, self._transaction.targets, self._clock.seconds() + FINAL_TIMEOUT)

    def _end_next(self, end: End, left: list[Target], until: float) -> None:
        """Tell the next one, ``until`` a time that holds for all of them."""
        target, *others = left

        def ended(outcomes: tuple[Outcome, ...]) -> None:
            self._transaction.settled(target, outcomes)
            if others and all(map(_is_yes, outcomes)):
                self._end_next(end, others, until)
                return
            for other in others:
                self._transaction.failed(other, other.failed or Obstacle.WITHHELD)
            self._finish()

        seconds = max(until - self._clock.seconds(), 1)
        target.end(end, self._transaction.count(target), self._session.asks(ended), seconds)


def _is_yes(outcome: Outcome) -> bool:
    return isinstance(outcome, Reply) and outcome.positive
