"""The life of one connection that delivers mail.

The client's half, a receiver, says what the client wants; each backend of a
message is a `Target`.  One thing is done after the other: while something is
asked, or a backend is full, nothing more of what the client says is looked
at, and soon nothing more is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.delivery.target import Target
from mailroute.delivery.terms import CLIENT_TIMEOUT, MAX_BACKENDS, STALL_TIMEOUT, Alarm, DeliveryDoor, lesser
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
    Reset,
    Spoilt,
)
from mailroute.events import Farewell, HangUp, LoginRefused, Lookup, Reason, Route, Send, StartTLS
from mailroute.house import House
from mailroute.interfaces import IClientLeg, ISession
from mailroute.record import SessionRecord
from mailroute.wire.smtp_syntax import BadSyntax, spell

_log = Logger(namespace="mailroute.delivery")


@implementer(ISession, IPushProducer)
class DeliverySession:
    """One client's connection from its first byte to its last."""

    def __init__(self, house: House, door: DeliveryDoor, leg: IClientLeg) -> None:
        self._house = house
        self._door = door
        self._leg = leg
        self._receiver = door.protocol.receiver(door.terms)
        self._todo: deque[ReceiverEvent] = deque()
        self._running = self._paused = self._full = self._half_closed = False
        self._over = False
        self._asked = 0  # answers that are waited for
        self._lookup: Deferred[Any] | None = None
        self._targets: dict[str, Target] = {}
        self._dialled: dict[str, None] = {}
        self._transaction: Transaction | None = None
        self._messages = 0
        self._heard = house.clock.seconds()
        self._patience = house.login_timeout
        self._begun_once = False  # a transaction: from then on only silence counts
        self._silence = Alarm(house.deadlines, self)
        self._silence.set(self._patience)
        self._lookup_alarm = Alarm(house.deadlines, _LookUp(self))
        self._full_alarm = Alarm(house.deadlines, _Full(self))
        self.record = SessionRecord(leg.client(), door.name, self._heard)

    # --- ISession: what its leg tells it ---

    def begin(self) -> None:
        """The connection is ready: greet."""
        self.record.client = self._leg.client()
        self._leg.watch(self)
        self._obey(self._receiver.greet())

    def received(self, data: bytes) -> None:
        """Bytes came from the client."""
        if self._over:
            return
        self.record.bytes_in += len(data)
        if self._begun_once:
            self._heard = self._house.clock.seconds()
        if self._blocked() or self._todo:
            # It sends ahead.  Whoever does not is read on, to see when it is gone.
            self._pause()
        self._obey(self._receiver.receive(data))

    def half_closed(self) -> None:
        """The client will send no more: what it has sent is done, and it hears how that went."""
        self._half_closed = True
        self._settle()

    def secured(self) -> None:
        """TLS that the receiver asked for is on."""
        self.record.client = self._leg.client()
        self._obey(self._receiver.secured())

    def lost(self, why: str) -> None:
        """The client's connection is gone."""
        self._end(why)

    def leave(self, why: Farewell) -> None:
        """End the connection, politely."""
        if not self._over:
            self._write(self._receiver.farewell(why))
            self._end(why.value)

    def time_is_up(self) -> None:
        """The client has said nothing for long, unless it is we who keep it waiting."""
        now = self._house.clock.seconds()
        if self._blocked():
            self._heard = now
        since = now - self._heard
        if since < self._patience:
            self._silence.set(self._patience - since)
        else:
            self.leave(Farewell.LOGIN_TIMEOUT)

    # --- IPushProducer: the client's transport says how it fares with our replies ---

    def pauseProducing(self) -> None:
        """The client does not take our replies."""
        self._full = True
        self._full_alarm.set(lesser(STALL_TIMEOUT, self._door.stall_timeout))

    def resumeProducing(self) -> None:
        """It takes them again."""
        self._full_alarm.clear()
        if self._full:
            self._full = False
            self._run()

    def stopProducing(self) -> None:
        """The connection is gone; its leg tells so."""

    # --- running ---

    def _blocked(self) -> bool:
        return (
            self._over
            or self._full
            or self._asked > 0
            or any(target.stuck for target in self._targets.values())
        )

    def flowing(self) -> None:
        """A backend that was full is not any more, or is gone."""
        self._run()

    def _obey(self, events: list[ReceiverEvent]) -> None:
        self._todo += events
        self._run()

    def _run(self) -> None:
        """Do what there is to do, as far as that can be done now."""
        if self._running:
            return
        self._running = True
        try:
            while self._todo and not self._blocked():
                event = self._todo.popleft()
                _HANDLE[type(event)](self, event)
        except Exception:
            self._fault(Failure())
        finally:
            self._running = False
        self._settle()

    def _settle(self) -> None:
        """Read on, or end, if there is nothing to do."""
        if self._over or self._todo or self._blocked():
            return
        if self._half_closed:
            self._end("the client closed the connection")
        elif self._paused:
            self._paused = False
            self._leg.resume()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._leg.pause()

    def _write(self, data: bytes) -> None:
        self.record.bytes_out += len(data)
        self._leg.write(data)

    def _fault(self, failure: Failure) -> None:
        """Something of ours is broken: the log gets the traceback, the client a plain answer."""
        _log.failure("session {session_id} failed", failure=failure, session_id=self.record.client.session_id)
        self.leave(Farewell.FAULT)

    def _asks(self, then: Callable[..., None]) -> Callable[..., None]:
        """Count a question in; its answer, which may come at once, is counted out."""
        self._asked += 1

        def answered(*answer: Any) -> None:
            self._asked -= 1
            if self._over:
                return
            try:
                then(*answer)
            except Exception:
                self._fault(Failure())
            self._run()

        return answered

    def _end(self, why: str) -> None:
        if self._over:
            return
        self._over = True
        self._todo.clear()
        for alarm in (self._silence, self._lookup_alarm, self._full_alarm):
            alarm.clear()
        if self._lookup is not None:
            self._lookup.cancel()
        self._drop_transaction(f"given up ({why})")
        for target in self._targets.values():
            target.leave()
        self.record.backend = ",".join(self._dialled) or "-"
        self._targets.clear()
        self._leg.close()
        self.record.ended(why, self._house.clock.seconds())

    # --- what the client wants ---

    def _do_send(self, event: Send) -> None:
        self._write(event.data)

    def _do_start_tls(self, _: StartTLS) -> None:
        self._leg.start_tls()

    def _do_hang_up(self, event: HangUp) -> None:
        self._end(event.why.value)

    def _do_mail(self, mail: MailFrom) -> None:
        self._drop_transaction("called off")
        if not self._begun_once:
            self._begun_once = True
            self._heard = self._house.clock.seconds()
            self._patience = lesser(CLIENT_TIMEOUT, self._door.idle_timeout)
            self._silence.set(self._patience)
        self._messages += 1
        self._transaction = Transaction(mail, self._messages)

    def _do_reset(self, _: Reset) -> None:
        self._drop_transaction("called off")

    def _drop_transaction(self, why: str = "") -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is None:
            return
        transaction.log(self.record.client.session_id, "" if transaction.ended else why)
        for name, target in list(self._targets.items()):
            target.reset()
            if target.gone:
                del self._targets[name]

    def _do_recipient(self, recipient: RcptTo) -> None:
        try:
            user = self._house.normalise(recipient.account)
        except ValueError:
            self._refuse(recipient, Obstacle.BAD_ADDRESS)
            return
        lookup = Lookup(user, self._door.protocol.name, self.record.client)
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
        routed = self._asks(lambda answer: self._looked_up(recipient, answer))
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
            self._fault(answer)

    def _routed(self, recipient: RcptTo, route: Route | None) -> None:
        transaction = self._transaction
        assert transaction is not None  # noqa: S101 (a recipient has a sender)
        if route is None:
            self._refuse(recipient, Obstacle.UNKNOWN)
            return
        backend = self._house.backends.get(route.backend)
        if backend is None:
            self._refuse(recipient, Reason.MISCONFIGURED)
            return
        others = {target.backend.name for target in transaction.targets} - {backend.name}
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
        self._offer(transaction, recipient, self._target(backend.name, others))

    def _target(self, name: str, wanted: set[str]) -> Target:
        target = self._targets.get(name)
        if target is None:
            if len(self._targets) >= MAX_BACKENDS:
                # One that has none of this message's recipients makes room.
                spare = next(spare for spare in self._targets if spare not in wanted)
                self._targets.pop(spare).leave()
            house = self._house
            self._leg.dialling()
            self._dialled[name] = None
            target = self._targets[name] = Target(
                house.backends[name], self._door, house.clock, house.deadlines, self
            )
        return target

    def _offer(self, transaction: Transaction, recipient: RcptTo, target: Target) -> None:
        def answered(outcomes: tuple[Outcome, ...]) -> None:
            [outcome] = outcomes
            entry = Recipient(recipient, target.backend.name, outcome)
            transaction.recipients.append(entry)
            if isinstance(outcome, Reply) and outcome.positive:
                transaction.accepted.append((entry, target))
            self._todo += self._receiver.answer(outcome)

        if target.failed is not None:
            # It has had its connection in this transaction: the next one may try another.
            self._asks(answered)((target.failed,))
            return
        seam = self._receiver.seam()
        target.recipient(transaction.mail, recipient, self.record.client, seam, self._asks(answered))

    def _refuse(self, recipient: RcptTo, why: Outcome, backend: str = "-") -> None:
        assert self._transaction is not None  # noqa: S101 (a recipient has a sender)
        self._transaction.recipients.append(Recipient(recipient, backend, why))
        self._todo += self._receiver.answer(why)

    # --- the message ---

    def _do_begin(self, begin: Begin) -> None:
        transaction = self._transaction
        assert transaction is not None  # noqa: S101 (it has recipients)
        ready = self._when_all(transaction, lambda: self._begun(transaction, begin))
        for target in transaction.targets:
            target.begin(begin, self._asks(lambda said, target=target: ready(target, said)))

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
            self._todo += self._receiver.proceed()
        else:
            self._give_up(transaction)

    @staticmethod
    def _alive(transaction: Transaction) -> list[Target]:
        return [target for target in transaction.targets if target.failed is None]

    def _do_part(self, part: Chunk | Piece) -> None:
        transaction = self._transaction
        assert transaction is not None  # noqa: S101 (there is a message)
        if isinstance(part, Piece):
            transaction.size += len(part.data)
        for target in transaction.targets:
            target.pass_on(part)

    def _do_spoilt(self, spoilt: Spoilt) -> None:
        assert self._transaction is not None  # noqa: S101 (there is a message)
        for target in self._transaction.targets:
            target.fail(spoilt.why)

    def _do_end(self, end: End) -> None:
        transaction = self._transaction
        assert transaction is not None  # noqa: S101 (there was a message)
        if not end.last:
            then = self._when_all(transaction, lambda: self._chunk_ended(transaction))
            for target in transaction.targets:
                target.end(end, 1, self._asks(lambda said, target=target: then(target, said)))
            return
        missing = set(transaction.targets)

        def ended(target: Target, outcomes: tuple[Outcome, ...]) -> None:
            missing.discard(target)
            transaction.settled(target, outcomes)
            if not missing:
                self._finish(transaction)

        for target in transaction.targets:
            count = sum(1 for _ in transaction.of(target))
            target.end(end, count, self._asks(lambda said, target=target: ended(target, said)))

    def _chunk_ended(self, transaction: Transaction) -> None:
        if self._alive(transaction):
            self._todo += self._receiver.answer(Reply(250))
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
        self._todo += self._receiver.finish(transaction.outcomes())
        self._drop_transaction()


class _LookUp:
    """The look-up takes too long."""

    def __init__(self, session: DeliverySession) -> None:
        self._session = session

    def time_is_up(self) -> None:
        """Give it up; it fails with CancelledError."""
        if self._session._lookup is not None:
            self._session._lookup.cancel()


class _Full:
    """The client does not take what is there for it."""

    def __init__(self, session: DeliverySession) -> None:
        self._session = session

    def time_is_up(self) -> None:
        """End it."""
        self._session._end("the client took nothing for too long")


def _at_look_up(reason: Reason) -> Outcome:
    return Obstacle.LOOKUP_FAILED if reason is Reason.UNAVAILABLE else reason


_HANDLE: Mapping[type, Callable[[DeliverySession, Any], None]] = {
    Send: DeliverySession._do_send,
    StartTLS: DeliverySession._do_start_tls,
    HangUp: DeliverySession._do_hang_up,
    MailFrom: DeliverySession._do_mail,
    Reset: DeliverySession._do_reset,
    RcptTo: DeliverySession._do_recipient,
    Begin: DeliverySession._do_begin,
    Chunk: DeliverySession._do_part,
    Piece: DeliverySession._do_part,
    Spoilt: DeliverySession._do_spoilt,
    End: DeliverySession._do_end,
}
