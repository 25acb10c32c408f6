"""The fakes that mailroute's own tests use, for those who write dialogs, logins, routers or backends."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from mailroute.events import (
    Address,
    Change,
    Client,
    DialogEvent,
    LoggedIn,
    LoginEvent,
    LoginOrder,
    Lookup,
    Method,
    Opened,
    Route,
    Send,
)
from mailroute.interfaces import IBackend, IDialog, ILogin, IMailProtocol, IRouter
from mailroute.legs import IClientLeg

CLIENT = Client("session-1", Address("192.0.2.7", 40000), Address("192.0.2.1", 143))
"""A client to test with; the addresses are documentation's (RFC 5737)."""


class Conversation:
    """Speaks with a dialog or a login, and keeps what it says.

    :param half: an `IDialog` or an `ILogin`.
    """

    def __init__(self, half: IDialog | ILogin) -> None:
        self.half = half
        self.events: list[DialogEvent | LoginEvent] = []
        self._said = bytearray()

    def take(self, events: list[DialogEvent] | list[LoginEvent]) -> None:
        """Keep what a call returned."""
        for event in events:
            if isinstance(event, Send):
                self._said += event.data
            else:
                self.events.append(event)

    def hears(self, data: bytes, segment: int = 0) -> None:
        """Give it these bytes, in segments of that many bytes, or at once."""
        step = segment or max(len(data), 1)
        for start in range(0, len(data), step):
            self.take(self.half.receive(data[start : start + step]))

    def said(self) -> bytes:
        """Return what it has said since the last call."""
        said = bytes(self._said)
        self._said.clear()
        return said

    def event(self) -> Any:
        """Return the only event since the last call."""
        (event,) = self.events
        self.events.clear()
        return event


@implementer(IRouter)
class FakeRouter:
    """Knows the users that it is given, and keeps the questions."""

    def __init__(self, routes: dict[str, Route]) -> None:
        self.routes = routes
        self.asked: list[Lookup] = []

    def route(self, lookup: Lookup) -> Route | None:
        """Return the user's route, if it has one."""
        self.asked.append(lookup)
        return self.routes.get(lookup.user)


@implementer(IBackend)
class FakeBackend:
    """Keeps what it is asked to open; the test decides what becomes of it.

    ``opening`` has a Deferred for each call, ``calls`` its order, and
    ``cancelled`` counts those that were given up; ``changes`` are what routes had otherwise.
    """

    def __init__(self, name: str, method: Method = Method.REPLAY) -> None:
        self.name = name
        self.method = method
        self.calls: deque[LoginOrder] = deque()
        self.changes: list[Change] = []
        self.opening: deque[Deferred[Opened]] = deque()
        self.cancelled = 0

    def changed(self, change: Change) -> IBackend:
        """Keep the change, and return this one."""
        self.changes.append(change)
        return self

    def open(self, protocol: IMailProtocol, order: LoginOrder) -> Deferred[Opened]:
        """Keep the order, and leave the caller waiting."""
        del protocol
        self.calls.append(order)
        self.opening.append(Deferred(self._cancel))
        return self.opening[-1]

    def _cancel(self, opening: Deferred[Opened]) -> None:
        del opening
        self.cancelled += 1


@implementer(IClientLeg)
class FakeLeg:
    """A client's connection that keeps what is written to it."""

    def __init__(self, client: Client = CLIENT, transport: Any = None) -> None:
        self._client = client
        self._transport = transport
        self._written = bytearray()
        self.paused = False
        self.closed = 0
        self.handshakes = 0
        self.handed_over = False
        self.binding: bytes | None = None
        self.producer: IPushProducer | None = None

    def written(self) -> bytes:
        """Return what was written since the last call."""
        written = bytes(self._written)
        self._written.clear()
        return written

    def write(self, data: bytes) -> None:
        """Keep the bytes."""
        self._written += data

    def start_tls(self) -> None:
        """Count the handshake."""
        self.handshakes += 1

    def pause(self) -> None:
        """Remember that reading is paused."""
        self.paused = True

    def resume(self) -> None:
        """Remember that reading goes on."""
        self.paused = False

    def watch(self, producer: IPushProducer) -> None:
        """Keep who is to be paused, for the test to do so."""
        self.producer = producer

    def close(self) -> None:
        """Count the close."""
        self.closed += 1

    def dialling(self) -> None:
        """Do nothing: a fake takes no descriptor."""

    def client(self) -> Client:
        """Return the client."""
        return self._client

    def channel_binding(self) -> bytes | None:
        """Return what the test has given it."""
        return self.binding

    def hand_over(self) -> Any:
        """Return the transport, itself for the rest, and nothing that was not told."""
        self.handed_over = True
        return self._transport, self, b""


def opened(transport: Any, welcome: object = None, rest: bytes = b"", backend: str = "east") -> Opened:
    """Make what a backend's ``open`` ends with."""
    return Opened(transport, LoggedIn(welcome, rest), 0.25, 0.5, backend)
