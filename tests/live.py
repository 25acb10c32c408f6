"""mailroute running in this process on real sockets, with scripted backends behind it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest_twisted
from twisted.internet import defer, reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from mailroute import config, service
from mailroute.testing import FakeRouter

WAIT = 15
"""Seconds after which a test that waits for bytes gives up; nothing depends on its length."""


@implementer(IHandshakeListener)
class Talk(Protocol):
    """One end of a conversation: keeps what it hears, and can be waited for."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.lost: Deferred[Any] = Deferred()
        self.reason: Any = None
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []
        self.secure = False

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)

    def handshakeCompleted(self) -> None:
        self.secure = True
        self._look()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        self._look()

    def connectionLost(self, reason: Any) -> None:
        self.reason = reason.value
        self.lost.callback(None)
        self._look()

    def say(self, data: bytes) -> None:
        self.transport.write(data)

    async def until(self, text: bytes) -> bytes:
        """Wait for these bytes, and return everything up to their end."""
        await self.wait_for(lambda: text in self.heard)
        end = self.heard.index(text) + len(text)
        heard = bytes(self.heard[:end])
        del self.heard[:end]
        return heard

    async def end(self) -> bytes:
        """Wait for the connection's end, and return what was heard before."""
        self.lost.addTimeout(WAIT, reactor)
        await self.lost
        return bytes(self.heard)

    async def starttls(self, context: Any) -> None:
        self.transport.startTLS(context)
        await self.wait_for(lambda: self.secure)

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        if condition():
            return
        waiting: Deferred[None] = Deferred()
        self._waiting.append((condition, waiting))
        waiting.addTimeout(WAIT, reactor)
        try:
            await waiting
        except defer.TimeoutError:
            heard = bytes(self.heard[-1000:])
            raise AssertionError(f"heard only …{heard!r}, ended by {self.reason!r}") from None

    def _look(self) -> None:
        for entry in list(self._waiting):
            if entry[0]() or self.reason is not None:
                self._waiting.remove(entry)
                entry[1].callback(None)


class Backends(Factory):
    """A backend's listening end: each connection is a `Talk` that the test speaks through."""

    noisy = False
    protocol: Callable[[], Talk] = Talk

    def __init__(self) -> None:
        self.talks: list[Talk] = []
        self._waiting: list[Deferred[Talk]] = []
        self._unclaimed: list[Talk] = []

    def buildProtocol(self, addr: Any) -> Talk:
        del addr
        talk = self.protocol()
        self.talks.append(talk)
        if self._waiting:
            reactor.callLater(0, self._waiting.pop(0).callback, talk)
        else:
            self._unclaimed.append(talk)
        return talk

    async def next(self) -> Talk:
        """Return the next connection."""
        if self._unclaimed:
            return self._unclaimed.pop(0)
        waiting: Deferred[Talk] = Deferred()
        self._waiting.append(waiting)
        waiting.addTimeout(WAIT, reactor)
        return await waiting


class Live:
    """A running mailroute with one backend, named east, that the test plays.

    The listener is on ``port``; `Backends` is ``east``.
    """

    def __init__(self, root: Any, running: Any, east: Backends, east_port: Any) -> None:
        self.root = root
        self.running = running
        self.east = east
        self.east_port = east_port

    @property
    def factory(self) -> Any:
        return self.root.factory

    @property
    def port(self) -> int:
        return self.root._port.getHost().port

    async def client(self) -> Talk:
        """Connect."""
        return await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port), Talk())

    async def greeted(self) -> Talk:
        """Connect, and hear the greeting."""
        talk = await self.client()
        await talk.until(b"ready.\r\n")
        return talk

    async def logged_in(self) -> tuple[Talk, Talk]:
        """Connect and log in; returns both ends of the spliced session."""
        client = await self.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        backend = await self.east.next()
        await let_in(backend)
        await client.until(b"a OK [CAPABILITY IMAP4rev1] Hi\r\n")
        return client, backend


@contextlib.contextmanager
def listening(servers: Backends) -> Iterator[int]:
    """Have the test play a server, for a fixture that is no coroutine; yields the port."""
    port = pytest_twisted.blockon(TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(servers))
    try:
        yield port.getHost().port
    finally:
        pytest_twisted.blockon(port.stopListening())
        for talk in servers.talks:
            talk.transport.abortConnection()
            pytest_twisted.blockon(Deferred.fromCoroutine(talk.end()))


async def let_in(backend: Talk) -> None:
    """Play a backend that greets and takes any password."""
    backend.say(b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hello\r\n")
    await backend.until(b"\r\n")
    backend.say(b"M1 OK [CAPABILITY IMAP4rev1] Hi\r\n")


def started(settings: Any) -> tuple[Any, Any]:
    """Start a mailroute with one listener, and return its service and the listener."""
    running = service(settings, reactor)
    running.privilegedStartService()
    running.startService()
    (listener,) = (child for child in running if hasattr(child, "factory"))
    return running, listener


async def ended(running: Any, ports: Iterable[Any], talks: Iterable[Talk]) -> None:
    """Stop a mailroute and the backends behind it, and end the conversations that still go on."""
    await running.stopService()
    for port in ports:
        await defer.maybeDeferred(port.stopListening)
    for talk in talks:
        if talk.reason is None:
            talk.transport.abortConnection()
            await talk.lost


@contextlib.asynccontextmanager
async def live(
    routes: dict[str, Any] | list[Any],
    *,
    listen: dict[str, Any] | None = None,
    backend: dict[str, Any] | None = None,
    others: dict[str, Any] | None = None,
    **tables: Any,
) -> AsyncIterator[Live]:
    """Run mailroute with these tables, in front of a backend that the test plays, and of others.

    :param routes: the users whom a `FakeRouter` knows, or the ``[[route]]`` blocks.
    """
    east = Backends()
    east_port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(east)
    tables.setdefault("limits", {}).setdefault("failure_delay", 0)
    settings = config.build(
        reactor,
        listen=[
            {"protocol": "imap", "endpoint": "tcp:0:interface=127.0.0.1", "security": "none"} | (listen or {})
        ],
        backend={
            "east": {
                "imap": f"tcp:127.0.0.1:{east_port.getHost().port}",
                "security": "none",
                "identity": "none",
            }
            | (backend or {}),
            **(others or {}),
        },
        route=[FakeRouter(routes)] if isinstance(routes, dict) else routes,
        **tables,
    )
    running, listener = started(settings)
    try:
        yield Live(listener, running, east, east_port)
    finally:
        await ended(running, [east_port], east.talks)


def patient(condition: Callable[[], bool], clock: Any = reactor) -> Deferred[None]:
    """Return a Deferred that fires once the condition holds: looked at in every turn of the reactor."""
    done: Deferred[None] = Deferred()
    turns = itertools.count()
    deadline = clock.seconds() + WAIT

    def look() -> None:
        if condition():
            done.callback(None)
        elif clock.seconds() > deadline:
            done.errback(AssertionError(f"not within {WAIT} s, {next(turns)} turns"))
        else:
            next(turns)
            clock.callLater(0.001, look)

    look()
    return done
