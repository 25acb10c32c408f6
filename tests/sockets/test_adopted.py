"""UNIX sockets that somebody else has made: accepted on, and left as they are."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from attrs import frozen
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from mailroute.descriptors import Descriptors
from mailroute.sockets import endpoints
from mailroute.sockets.endpoints import HubPort, HubServerEndpoint


class Hello(Protocol):
    """Says who it is, and answers once."""

    def connectionMade(self) -> None:
        self.factory.made += 1
        self.transport.write(b"hello ")

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.loseConnection()


@frozen
class Made:
    """A listening socket as systemd makes it, and what is to serve it."""

    path: Path
    socket: socket.socket
    factory: Factory

    async def listen(self) -> object:
        """Listen on a copy of it."""
        endpoint = AdoptedStreamServerEndpoint(reactor, os.dup(self.socket.fileno()), socket.AF_UNIX)
        return await HubServerEndpoint(reactor, endpoint).listen(self.factory)

    def ask(self) -> bytes:
        """Have a client say something, and return what it hears."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(self.path))
            client.sendall(b"you")
            return b"".join(iter(lambda: client.recv(100), b""))

    def connect(self) -> bytes:
        """Return what a client hears that says nothing."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(self.path))
            return client.recv(100)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    with socket.socket(socket.AF_UNIX) as listening:
        path = tmp_path / "socket"
        listening.bind(str(path))
        path.chmod(0o640)
        listening.listen(7)
        factory = Factory.forProtocol(Hello)
        factory.made = 0
        factory.noisy = False
        yield Made(path, listening, factory)


@pytest.fixture(params=[True, False], ids=["hub", "Twisted"])
def in_hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the hub serves the connections; where it cannot be, Twisted's own transports do."""
    if not request.param:
        monkeypatch.setattr(endpoints, "suits", lambda _reactor: False)
    return bool(request.param)


@pytest_twisted.ensureDeferred
async def test_it_is_left_as_it_is(made: Made, in_hub: bool) -> None:
    """Clients are served; the permissions and the name stay what they were, to the end and after."""
    port = await made.listen()
    assert isinstance(port, HubPort) is in_hub
    assert verifyObject(endpoints.IListeningPort, port)
    assert port.getHost().name == os.fsencode(made.path)
    for _ in range(2):
        assert await deferToThread(made.ask) == b"hello you"
    assert made.path.stat().st_mode & 0o777 == 0o640
    await maybeDeferred(port.stopListening)
    assert made.path.stat().st_mode & 0o777 == 0o640
    again = await made.listen()
    assert await deferToThread(made.ask) == b"hello you"
    await maybeDeferred(again.stopListening)


@pytest_twisted.ensureDeferred
async def test_nobody_is_lost_while_there_is_no_descriptor(made: Made, in_hub: bool) -> None:
    """Those who come wait until there is one, and nobody spins."""
    del in_hub
    descriptors = Descriptors(reactor, 0)
    descriptors.startService()
    port = await made.listen()
    descriptors.watch(port, lambda: made.factory.made)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(made.path))
        with socket.socket() as spare:
            lowest_free = spare.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            while not descriptors._paused:
                await deferLater(reactor, 0, lambda: None)
            assert not made.factory.made
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await deferToThread(client.recv, 100) == b"hello "
    await maybeDeferred(port.stopListening)
    descriptors.stopService()


@pytest_twisted.ensureDeferred
async def test_a_factory_may_refuse(made: Made, in_hub: bool) -> None:
    """Whom the factory has nothing for, or fails for, is sent away, and the next one comes in."""
    del in_hub
    port = await made.listen()
    made.factory.buildProtocol = lambda _address: None
    assert await deferToThread(made.connect) == b""
    del made.factory.buildProtocol
    assert await deferToThread(made.ask) == b"hello you"
    made.factory.buildProtocol = lambda _address: 1 / 0
    with capturedLogs() as logged:
        assert await deferToThread(made.connect) == b""
    assert [event["log_failure"].type for event in logged] == [ZeroDivisionError]
    del made.factory.buildProtocol
    assert await deferToThread(made.ask) == b"hello you"
    await maybeDeferred(port.stopListening)
