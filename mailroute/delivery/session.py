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

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.delivery.forwarding import Forwarding
from mailroute.delivery.terms import (
    CLIENT_TIMEOUT,
    PARTING_TIMEOUT,
    SENT_AT_ONCE,
    STALL_TIMEOUT,
    Alarm,
    DeliveryDoor,
    lesser,
)
from mailroute.envelope import (
    Begin,
    Chunk,
    End,
    MailFrom,
    Piece,
    RcptTo,
    ReceiverEvent,
    Reset,
    Spoilt,
)
from mailroute.events import Farewell, HangUp, Send, StartTLS
from mailroute.house import House
from mailroute.legs import IClientLeg, ISession
from mailroute.record import SessionRecord

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
        self._sent = 0  # bytes of a message, in this turn of the reactor
        self._next_turn: IDelayedCall | None = None
        self._concluding = False  # a message's end has been sent, and not answered yet
        self._parting: Deferred[None] | None = None  # mailroute ends, and waits for that answer
        self._parting_alarm = Alarm(house.deadlines, _Parting(self))
        self._forwarding: Forwarding = Forwarding(house, door, self._receiver, self)
        self._heard = house.clock.seconds()
        self._patience = house.login_timeout
        self._begun_once = False  # a transaction: from then on only silence counts
        self._silence = Alarm(house.deadlines, self)
        self._silence.set(self._patience)
        self._full_alarm = Alarm(house.deadlines, _Full(self))
        self.record = SessionRecord(leg.client(), door.name, self._heard)

    # --- ISession: what its leg tells it ---

    def begin(self) -> None:
        """The connection is ready: greet."""
        self.record.client = self._leg.client()
        self._leg.watch(self)
        self.obey(self._receiver.greet())

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
        self.obey(self._receiver.receive(data))

    def half_closed(self) -> None:
        """The client will send no more: what it has sent is done, and it hears how that went."""
        self._half_closed = True
        self._settle()

    def secured(self) -> None:
        """TLS that the receiver asked for is on."""
        self.record.client = self._leg.client()
        self.obey(self._receiver.secured())

    def lost(self, why: str) -> None:
        """The client's connection is gone."""
        self._end(why)

    def leave(self, why: Farewell) -> Deferred[None] | None:
        """End the connection, politely.

        When mailroute ends, a message that its backends may have delivered is waited for: its client
        would send it again, and its recipients get it twice.
        """
        if self._over:
            return None
        if why is Farewell.SHUTDOWN and self._concluding:
            if self._parting is None:
                self._parting = Deferred()
                self._parting_alarm.set(PARTING_TIMEOUT)
                _log.info(
                    "session {session_id}: its message is with its backends, whose answer is waited for, "
                    "{seconds:g} s at most",
                    session_id=self.record.client.session_id,
                    seconds=PARTING_TIMEOUT,
                )
            return self._parting
        self._part(why)
        return None

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
            or self._sent >= SENT_AT_ONCE
            or self._forwarding.stuck
        )

    def flowing(self) -> None:
        """A backend that was full is not any more, or is gone."""
        self._run()

    def passed(self, size: int) -> None:
        """So many bytes were written for backends."""
        self._sent += size
        if self._next_turn is None:
            self._next_turn = self._house.clock.callLater(0, self._turned)

    def _turned(self) -> None:
        self._next_turn = None
        enough, self._sent = self._sent >= SENT_AT_ONCE, 0
        if enough:
            self._run()

    def concluding(self) -> None:
        """A message's end is about to be sent."""
        self._concluding = True

    def concluded(self, events: list[ReceiverEvent]) -> None:
        """It is known what has become of the message."""
        self._concluding = False
        self.obey(events)

    def _parts(self) -> bool:
        """Whether the client has heard what it was kept for; whatever it has sent ahead is not begun."""
        waits = self._parting is not None and not self._over
        return waits and not self._concluding and not (self._todo and isinstance(self._todo[0], Send))

    def dialling(self) -> None:
        """A backend is about to be dialled."""
        self._leg.dialling()

    def obey(self, events: list[ReceiverEvent]) -> None:
        """Do what the receiver says, as soon as that can be."""
        self._todo += events
        self._run()

    def _run(self) -> None:
        """Do what there is to do, as far as that can be done now."""
        if self._running:
            return
        self._running = True
        try:
            while self._todo and not self._blocked() and not self._parts():
                event = self._todo.popleft()
                _HANDLE[type(event)](self, event)
        except Exception:
            self.fault(Failure())
        finally:
            self._running = False
        if self._parts():
            self._part(Farewell.SHUTDOWN)
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

    def fault(self, failure: Failure) -> None:
        """Something of ours is broken: the log gets the traceback, the client a plain answer."""
        _log.failure("session {session_id} failed", failure=failure, session_id=self.record.client.session_id)
        self.leave(Farewell.FAULT)

    def asks(self, then: Callable[..., None]) -> Callable[..., None]:
        """Do nothing else until what this returns is called, which may be at once."""
        self._asked += 1

        def answered(*answer: Any) -> None:
            self._asked -= 1
            if self._over:
                return
            try:
                then(*answer)
            except Exception:
                self.fault(Failure())
            self._run()

        return answered

    def _end(self, why: str) -> None:
        if self._over:
            return
        self._over = True
        self._todo.clear()
        if self._next_turn is not None:
            self._next_turn.cancel()
        self._silence.clear()
        self._full_alarm.clear()
        self._parting_alarm.clear()
        self._forwarding.leave(why)
        self.record.backend = ",".join(self._forwarding.dialled) or "-"
        self._leg.close()
        self.record.ended(why, self._house.clock.seconds())
        if self._parting is not None:
            # In two turns of the reactor the last words are sent.
            clock = self._house.clock
            clock.callLater(0, clock.callLater, 0, self._parting.callback, None)

    def _part(self, why: Farewell) -> None:
        self._write(self._receiver.farewell(why))
        self._end(why.value)

    # --- what the client wants ---

    def _do_send(self, event: Send) -> None:
        self._write(event.data)

    def _do_start_tls(self, _: StartTLS) -> None:
        self._leg.start_tls()

    def _do_hang_up(self, event: HangUp) -> None:
        self._end(event.why.value)

    def _do_mail(self, mail: MailFrom) -> None:
        if not self._begun_once:
            self._begun_once = True
            self._heard = self._house.clock.seconds()
            self._patience = lesser(CLIENT_TIMEOUT, self._door.idle_timeout)
            self._silence.set(self._patience)
        self._forwarding.mail(mail)


class _Parting:
    """Its backends do not say what has become of a message, and mailroute ends."""

    def __init__(self, session: DeliverySession) -> None:
        self._session = session

    def time_is_up(self) -> None:
        """End it; what has become of the message nobody knows."""
        self._session._part(Farewell.SHUTDOWN)


class _Full:
    """The client does not take what is there for it."""

    def __init__(self, session: DeliverySession) -> None:
        self._session = session

    def time_is_up(self) -> None:
        """End it."""
        self._session._end("the client took nothing for too long")


_HANDLE: Mapping[type, Callable[[DeliverySession, Any], None]] = {
    Send: DeliverySession._do_send,
    StartTLS: DeliverySession._do_start_tls,
    HangUp: DeliverySession._do_hang_up,
    MailFrom: DeliverySession._do_mail,
    Reset: lambda session, _: session._forwarding.drop("called off"),
    RcptTo: lambda session, event: session._forwarding.recipient(event),
    Begin: lambda session, event: session._forwarding.begin(event),
    Chunk: lambda session, event: session._forwarding.passage.part(event),
    Piece: lambda session, event: session._forwarding.passage.part(event),
    Spoilt: lambda session, event: session._forwarding.passage.spoilt(event),
    End: lambda session, event: session._forwarding.passage.end(event),
}
