"""Where one client's messages go: the transaction under way, and the backends that it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from mailroute.delivery.target import Target
from mailroute.delivery.terms import MAX_BACKENDS, Alarm, DeliveryDoor
from mailroute.delivery.transaction import Recipient, Transaction
from mailroute.envelope import (
    Begin,
    Chunk,
    End,
    MailFrom,
    Obstacle,
    Outcome,
    Piece,
    RcptTo,
    ReceiverEvent,
    Reply,
    Spoilt,
)
from mailroute.events import LoginRefused, Lookup, Reason, Route
from mailroute.house import House
from mailroute.interfaces import IBackend, IReceiver
from mailroute.record import SessionRecord
from mailroute.wire.smtp_syntax import BadSyntax, spell


class Session(Protocol):
    """Whose messages they are."""

    record: SessionRecord

    def obey(self, events: list[ReceiverEvent]) -> None:
        """Do what the receiver says."""

    def asks(self, then: Callable[..., None]) -> Callable[..., None]:
        """Do nothing else until what this returns is called, and then call ``then`` with the same."""

    def dialling(self) -> None:
        """A backend is about to be dialled."""

    def flowing(self) -> None:
        """A backend that was full is not any more, or is gone."""

    def fault(self, failure: Failure) -> None:
        """Something of ours is broken."""


class Forwarding:
    """The messages of one session, one after the other.

    :ivar dialled: the names of the backends that were needed so far.
    """

    def __init__(self, house: House, door: DeliveryDoor, receiver: IReceiver, session: Session) -> None:
        self._house = house
        self._door = door
        self._receiver = receiver
        self._session = session
        self._lookup: Deferred[Any] | None = None
        self._lookup_alarm = Alarm(house.deadlines, _LookUp(self))
        self._targets: dict[IBackend, Target] = {}
        self._transaction: Transaction | None = None
        self._messages = 0
        self.dialled: dict[str, None] = {}

    @property
    def stuck(self) -> bool:
        """Whether some backend does not take what was written."""
        return any(target.stuck for target in self._targets.values())

    def leave(self, why: str) -> None:
        """The session is over: let go of all backends, and of a message that has not ended."""
        self._lookup_alarm.clear()
        if self._lookup is not None:
            self._lookup.cancel()
        self.drop(f"given up ({why})")
        for target in self._targets.values():
            target.leave()
        self._targets.clear()

    def mail(self, mail: MailFrom) -> None:
        """Begin a transaction."""
        self.drop("called off")
        self._messages += 1
        self._transaction = Transaction(mail, self._messages)

    def drop(self, why: str = "") -> None:
        """Forget the transaction; ``why``: what to log of one that has not ended."""
        transaction, self._transaction = self._transaction, None
        if transaction is None:
            return
        transaction.log(self._session.record.client.session_id, "" if transaction.ended else why)
        for backend, target in list(self._targets.items()):
            target.reset()
            if target.gone:
                del self._targets[backend]

    def recipient(self, recipient: RcptTo) -> None:
        """Look a recipient up, and offer it to its backend."""
        try:
            user = self._house.normalise(recipient.account)
        except ValueError:
            self._refuse(recipient, Obstacle.BAD_ADDRESS)
            return
        if self._door.route is not None:
            self._routed(recipient, self._door.route)
            return
        lookup = Lookup(user, self._door.protocol.name, self._session.record.client)
        try:
            found = self._house.router.route(lookup)
        except LoginRefused as refused:
            self._refuse(recipient, _at_look_up(refused.refusal.reason))
            return
        if not isinstance(found, Deferred):
            self._routed(recipient, found)
            return
        self._lookup = found
        self._lookup_alarm.set(self._door.lookup_timeout)
        routed = self._session.asks(lambda answer: self._looked_up(recipient, answer))
        found.addBoth(routed)

    def _looked_up(self, recipient: RcptTo, answer: Route | Failure | None) -> None:
        self._lookup = None
        self._lookup_alarm.clear()
        if not isinstance(answer, Failure):
            self._routed(recipient, answer)
        elif isinstance(answer.value, LoginRefused):
            self._refuse(recipient, _at_look_up(answer.value.refusal.reason))
        elif answer.check(CancelledError):
            self._refuse(recipient, Obstacle.LOOKUP_FAILED)
        else:
            self._session.fault(answer)

    def _routed(self, recipient: RcptTo, route: Route | None) -> None:
        transaction = self._transaction
        assert transaction is not None  # noqa: S101 (a recipient has a sender)
        if route is None:
            self._refuse(recipient, Obstacle.UNKNOWN)
            return
        try:
            backend = self._house.places.find(route)
        except LoginRefused as refused:
            self._refuse(recipient, refused.refusal.reason)
            return
        others = {target.backend for target in transaction.targets} - {backend}
        if others and not (self._door.protocol.splits or self._door.split):
            self._refuse(recipient, Obstacle.ELSEWHERE, backend.name)
            return
        if len(others) >= MAX_BACKENDS:
            self._refuse(recipient, Obstacle.TOO_MANY_BACKENDS, backend.name)
            return
        if route.name is not None:
            try:
                there = spell(route.name.encode("utf-8"), recipient.mailbox)
            except BadSyntax:
                self._refuse(recipient, Reason.MISCONFIGURED, backend.name)
                return
            recipient = evolve(recipient, mailbox=there)
        self._offer(transaction, recipient, self._target(backend, others))

    def _target(self, backend: IBackend, wanted: set[IBackend]) -> Target:
        target = self._targets.get(backend)
        if target is None:
            if len(self._targets) >= MAX_BACKENDS:
                # One that has none of this message's recipients makes room.
                spare = next(spare for spare in self._targets if spare not in wanted)
                self._targets.pop(spare).leave()
            house = self._house
            self._session.dialling()
            self.dialled[backend.name] = None
            target = self._targets[backend] = Target(
                backend, self._door, house.clock, house.deadlines, self._session
            )
        return target

    def _offer(self, transaction: Transaction, recipient: RcptTo, target: Target) -> None:
        def answered(outcomes: tuple[Outcome, ...]) -> None:
            [outcome] = outcomes
            entry = Recipient(recipient, target.backend.name, outcome)
            transaction.recipients.append(entry)
            if isinstance(outcome, Reply) and outcome.positive:
                transaction.accepted.append((entry, target))
            self._session.obey(self._receiver.answer(outcome))

        if target.failed is not None:
            # It has had its connection in this transaction: the next one may try another.
            self._session.asks(answered)((target.failed,))
            return
        client, seam = self._session.record.client, self._receiver.seam()
        target.recipient(transaction.mail, recipient, client, seam, self._session.asks(answered))

    def _refuse(self, recipient: RcptTo, why: Outcome, backend: str = "-") -> None:
        assert self._transaction is not None  # noqa: S101 (a recipient has a sender)
        self._transaction.recipients.append(Recipient(recipient, backend, why))
        self._session.obey(self._receiver.answer(why))

    # --- the message ---

    def begin(self, begin: Begin) -> None:
        """Ask all backends for leave to send the message."""
        transaction = self._transaction
        assert transaction is not None  # noqa: S101 (it has recipients)
        ready = self._when_all(transaction, lambda: self._begun(transaction, begin))
        for target in transaction.targets:
            target.begin(begin, self._session.asks(lambda said, target=target: ready(target, said)))

    def _when_all(
        self, transaction: Transaction, then: Callable[[], None]
    ) -> Callable[[Target, tuple[Outcome, ...]], None]:
        """Return what takes one answer of each backend: who does not say yes has failed."""
        missing = set(transaction.targets)

        def answered(target: Target, said: tuple[Outcome, ...]) -> None:
            missing.discard(target)
            [outcome] = said
            if not (isinstance(outcome, Reply) and outcome.positive):
                target.failed = target.failed or outcome
            if not missing:
                then()

        return answered

    def _begun(self, transaction: Transaction, begin: Begin) -> None:
        if begin.chunked or self._alive(transaction):
            self._session.obey(self._receiver.proceed())
        else:
            self._give_up(transaction)

    @staticmethod
    def _alive(transaction: Transaction) -> list[Target]:
        return [target for target in transaction.targets if target.failed is None]

    def part(self, part: Chunk | Piece) -> None:
        """Pass a part of the message on."""
        transaction = self._transaction
        assert transaction is not None  # noqa: S101 (there is a message)
        if isinstance(part, Piece):
            transaction.size += len(part.data)
        for target in transaction.targets:
            target.pass_on(part)

    def spoilt(self, spoilt: Spoilt) -> None:
        """Let go of a message that nobody may get."""
        assert self._transaction is not None  # noqa: S101 (there is a message)
        for target in self._transaction.targets:
            target.fail(spoilt.why)

    def end(self, end: End) -> None:
        """End the message, or a chunk of it, at all backends."""
        transaction = self._transaction
        assert transaction is not None  # noqa: S101 (there was a message)
        if not end.last:
            then = self._when_all(transaction, lambda: self._chunk_ended(transaction))
            for target in transaction.targets:
                target.end(end, 1, self._session.asks(lambda said, target=target: then(target, said)))
            return
        missing = set(transaction.targets)

        def ended(target: Target, outcomes: tuple[Outcome, ...]) -> None:
            missing.discard(target)
            transaction.settled(target, outcomes)
            if not missing:
                self._finish(transaction)

        for target in transaction.targets:
            count = sum(1 for _ in transaction.of(target))
            target.end(end, count, self._session.asks(lambda said, target=target: ended(target, said)))

    def _chunk_ended(self, transaction: Transaction) -> None:
        if self._alive(transaction):
            self._session.obey(self._receiver.answer(Reply(250)))
        else:
            self._give_up(transaction)

    def _give_up(self, transaction: Transaction) -> None:
        """Every backend has failed before the message's end."""
        for target in transaction.targets:
            transaction.failed(target, target.failed or Obstacle.LOST)
        self._finish(transaction)

    def _finish(self, transaction: Transaction) -> None:
        """Tell the client what has become of the message."""
        transaction.ended = True
        self._session.obey(self._receiver.finish(transaction.outcomes()))
        self.drop()


class _LookUp:
    """The look-up takes too long."""

    def __init__(self, forwarding: Forwarding) -> None:
        self._forwarding = forwarding

    def time_is_up(self) -> None:
        """Give it up; it fails with CancelledError."""
        if self._forwarding._lookup is not None:
            self._forwarding._lookup.cancel()


def _at_look_up(reason: Reason) -> Outcome:
    return Obstacle.LOOKUP_FAILED if reason is Reason.UNAVAILABLE else reason
