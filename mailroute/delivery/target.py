"""One backend of a delivery: its connection, which is kept from one message to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime, ITransport
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.deadlines import Deadlines
from mailroute.delivery.terms import (
    COMMAND_TIMEOUT,
    DATA_TIMEOUT,
    FINAL_TIMEOUT,
    LINGER,
    STALL_TIMEOUT,
    Alarm,
    DeliveryDoor,
    lesser,
)
from mailroute.envelope import (
    Answered,
    Begin,
    Chunk,
    End,
    MailFrom,
    Obstacle,
    Outcome,
    Piece,
    RcptTo,
    Reply,
    SenderEvent,
)
from mailroute.events import NOBODY, Client, LoginOrder, LoginRefused, Opened, Reason, Send
from mailroute.interfaces import IBackend, ISender
from mailroute.pipe.transport_leg import layer, socket_under

_log = Logger(namespace="mailroute.delivery")

BUFFER = 4096
"""Bytes that may wait in a transport of Twisted's before it asks for a pause; the hub's ask at once."""

Then = Callable[[tuple[Outcome, ...]], None]


class Owner(Protocol):
    """Whose backend it is."""

    def flowing(self) -> None:
        """A backend that could take nothing can, or is gone."""


class Target:
    """One backend.

    :ivar stuck: it does not take what was written; nothing more shall be.
    :ivar failed: why it is of no more use to this transaction, or ``None``.
    """

    def __init__(
        self, backend: IBackend, door: DeliveryDoor, clock: IReactorTime, deadlines: Deadlines, owner: Owner
    ) -> None:
        self.backend = backend
        self.stuck = False
        self.failed: Outcome | None = None
        self._door = door
        self._clock = clock
        self._owner = owner
        self._opening: Deferred[Any] | None = None
        self._connection: _Connection | None = None
        self._sender: ISender | None = None
        self._used = False  # by the transaction that there is
        self._streaming = False
        self._then: Then | None = None
        self._wanted = 0
        self._heard: list[Outcome] = []
        self._answer_alarm = Alarm(deadlines, _Rings(self._took_too_long))
        self._stall_alarm = Alarm(deadlines, _Rings(self._took_too_long))

    @property
    def gone(self) -> bool:
        """Whether it has no connection, and none is being made."""
        return self._sender is None and self._opening is None

    # --- what it is asked: one thing after the other ---

    def recipient(self, mail: MailFrom, recipient: RcptTo, client: Client, seam: object, then: Then) -> None:
        """Offer a recipient, over a new connection if there is none."""
        self._used = True
        if self._sender is not None:
            self._ask(self._sender.recipient(mail, recipient), 1, COMMAND_TIMEOUT, then)
            return
        self._expect(1, 0, then)  # the backend's own bound holds

        def offer(opened: Opened) -> None:
            self._opened(opened)
            assert self._sender is not None  # noqa: S101 (just made)
            self._answer_alarm.set(COMMAND_TIMEOUT)
            self._obey(self._sender.recipient(mail, recipient))

        protocol: Any = self._door.protocol
        opening = self._opening = self.backend.open(protocol, LoginOrder(NOBODY, "", client, seam))
        opening.addCallback(offer).addErrback(self._not_opened)

    def begin(self, event: Begin, then: Then) -> None:
        """Ask for leave to send the message."""
        if self._sender is None:
            then((self.failed or Obstacle.LOST,))
            return

        def begun(outcomes: tuple[Outcome, ...]) -> None:
            # Whatever it is sent from now on is the message.
            self._streaming = isinstance(outcomes[0], Reply) and outcomes[0].positive
            then(outcomes)

        self._ask(self._sender.begin(event), 1, DATA_TIMEOUT, begun)

    def pass_on(self, event: Chunk | Piece) -> None:
        """Send a part of the message, if it can still be sent."""
        if self._sender is not None and self.failed is None:
            self._obey(self._sender.piece(event) if isinstance(event, Piece) else self._sender.chunk(event))

    def end(self, event: End, count: int, then: Then, final: float = 0) -> None:
        """End the message, or a chunk; ``count`` answers are wanted.

        :param final: seconds for the message's, if it is not `FINAL_TIMEOUT`.
        """
        if self._sender is None or self.failed is not None:
            then((self.failed or Obstacle.LOST,) * count)
            return
        self._streaming = not event.last
        seconds = (final or FINAL_TIMEOUT) if event.last else COMMAND_TIMEOUT
        self._ask(self._sender.end(event), count, seconds, then)

    def reset(self) -> None:
        """Call the transaction off, whatever has become of it."""
        if self._streaming:
            # Nothing but the connection's end keeps a backend from having the half of a message.
            self.fail(Obstacle.LOST)
        self.failed = None
        self._used = False
        if self._sender is not None:
            self._obey(self._sender.reset())

    def fail(self, why: Outcome) -> None:
        """Give the connection up: whatever is asked, or will be in this transaction, comes to that."""
        if self.failed is None and self._used:
            self.failed = why
        self._close(abort=True)
        self._settle(why)

    def leave(self) -> None:
        """The session is over: say goodbye, if that can be."""
        self._then = None
        if self._sender is not None and not self._streaming and not self._wanted:
            self._obey(self._sender.quit())
            self._close(abort=False)
        else:
            self._close(abort=True)

    # --- its connection ---

    def _opened(self, opened: Opened) -> None:
        self._opening = None
        self._sender = self._door.protocol.sender(opened.outcome.welcome)
        self._connection = _Connection(self, opened.transport)

    def _not_opened(self, failure: Failure) -> None:
        self._opening = None
        if failure.check(CancelledError) and self._then is None:
            return
        outcome: Outcome = Reason.UNAVAILABLE
        if isinstance(failure.value, LoginRefused):
            refusal = failure.value.refusal
            outcome = refusal.reason
            self._warn(refusal.detail)
        elif not failure.check(CancelledError):
            _log.failure("backend {backend} could not be opened", failure=failure, backend=self.backend.name)
        self.fail(outcome)

    def _warn(self, detail: str) -> None:
        _log.warn("backend {backend}: {detail}", backend=self.backend.name, detail=detail)

    def _close(self, *, abort: bool) -> None:
        self._answer_alarm.clear()
        self._stall_alarm.clear()
        self._sender = None
        self._streaming = False
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(None if abort else self._clock)
        if self.stuck:
            self.stuck = False
            self._owner.flowing()

    def heard(self, data: bytes) -> None:
        """Bytes came from the backend."""
        if self._sender is not None:
            self._obey(self._sender.receive(data))

    def lost(self, why: str) -> None:
        """The connection is gone."""
        if self._sender is None:
            return
        if self._wanted or self._streaming:
            self._warn(f"the connection ended while {self._sender.doing()}: {why}")
        self.fail(Obstacle.LOST)

    def stop(self) -> None:
        """Its transport is full."""
        self.stuck = True
        self._stall_alarm.set(lesser(STALL_TIMEOUT, self._door.stall_timeout))

    def go_on(self) -> None:
        """Its transport has room again."""
        self._stall_alarm.clear()
        if self.stuck:
            self.stuck = False
            self._owner.flowing()

    def _took_too_long(self) -> None:
        doing = "taking the message" if self._sender is None else self._sender.doing()
        self._warn(f"took too long while {doing}")
        self.fail(Obstacle.TIMEOUT)

    # --- questions and answers ---

    def _expect(self, count: int, seconds: float, then: Then) -> None:
        self._wanted, self._heard, self._then = count, [], then
        self._answer_alarm.set(seconds)

    def _ask(self, events: list[SenderEvent], count: int, seconds: float, then: Then) -> None:
        self._expect(count, seconds, then)
        self._obey(events)

    def _obey(self, events: list[SenderEvent]) -> None:
        for event in events:
            if isinstance(event, Send):
                if self._connection is not None:
                    self._connection.write(event.data)
            elif isinstance(event, Answered):
                self._answered(event.outcome)
            else:
                self._warn(event.detail)
                self.fail(event.outcome)

    def _answered(self, outcome: Outcome) -> None:
        if self._wanted:
            self._heard.append(outcome)
            if len(self._heard) >= self._wanted:
                self._settle(outcome)

    def _settle(self, otherwise: Outcome) -> None:
        """Give the answers, ``otherwise`` for those that have not come."""
        self._answer_alarm.clear()
        then, self._then = self._then, None
        heard = (*self._heard, *(otherwise for _ in range(self._wanted - len(self._heard))))
        self._wanted, self._heard = 0, []
        if then is not None:
            then(heard)


class _Rings:
    """Calls one function when the time is up."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self.time_is_up = ring


@implementer(IPushProducer)
class _Connection(TwistedProtocol):
    """The protocol of a backend's transport, once that is ready for mail."""

    def __init__(self, target: Target, transport: ITransport) -> None:
        self._target: Target | None = target
        self._transport: Any = layer(transport)
        self._closing: Any = None
        under = socket_under(transport)
        if isinstance(under, FileDescriptor):
            under.bufferSize = BUFFER
        self.gone = not getattr(transport, "connected", True)
        if isinstance(self._transport, ProtocolWrapper):
            self._transport.wrappedProtocol = self
        else:
            self._transport.protocol = self
        self._transport.registerProducer(self, True)
        self._transport.resumeProducing()

    def write(self, data: bytes) -> None:
        """Send these bytes."""
        self._transport.write(data)

    def close(self, clock: IReactorTime | None) -> None:
        """Close: at once, or with a clock once everything is written."""
        self._target = None
        if self.gone:
            return
        self._transport.unregisterProducer()
        if clock is None:
            self._transport.abortConnection()
        else:
            self._transport.loseConnection()
            if not self.gone:
                self._closing = clock.callLater(LINGER, self._transport.abortConnection)

    def dataReceived(self, data: bytes) -> None:
        """Bytes came from the backend."""
        if self._target is not None:
            self._target.heard(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The connection is gone."""
        self.gone = True
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        if self._target is not None:
            self._target.lost(reason.getErrorMessage())

    # --- IPushProducer: the transport says how it fares with what is written ---

    def pauseProducing(self) -> None:
        """The transport is full."""
        if self._target is not None:
            self._target.stop()

    def resumeProducing(self) -> None:
        """The transport has room."""
        if self._target is not None:
            self._target.go_on()

    def stopProducing(self) -> None:
        """The connection is gone; it is told once more."""
