"""Endpoints whose connections are sockets in the hub."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import pytest_twisted
from twisted.internet import error, reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, ITCPTransport, ITLSTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mailroute.sockets import endpoints, hub
from mailroute.sockets.endpoints import HubClientEndpoint, HubPort, HubServerEndpoint
from mailroute.sockets.transport import HubTransport

PATIENCE = 10.0


def within(expected: Deferred) -> Deferred:
    """Wait for it, and not for ever."""
    return expected.addTimeout(PATIENCE, reactor)


class Recorder(Protocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.heard = b""
        self.lost: Deferred = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason) -> None:
        self.lost.callback(reason.value)


@implementer(IHalfCloseableProtocol)
class Patient(Recorder):
    """Is told when the peer has finished, and may still speak."""

    def readConnectionLost(self) -> None:
        self.transport.write(b"after the end")
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass


class Listening:
    """A listener, its connections' protocols, and sockets that have come."""

    def __init__(self, made=Recorder) -> None:
        self.came: Deferred = Deferred()
        self.made = made
        self.factory = Factory.forProtocol(self._make)
        self.factory.noisy = False

    def _make(self) -> Protocol:
        protocol = self.made()
        reactor.callLater(0, self.came.callback, protocol)
        return protocol

    async def on(self, endpoint) -> HubPort:
        self.port = await HubServerEndpoint(reactor, endpoint).listen(self.factory)
        return self.port

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port.getHost().port), PATIENCE)
        sock.settimeout(PATIENCE)
        return sock


@pytest_twisted.async_yield_fixture
async def listening():
    made: list[Listening] = []

    async def listen(protocol=Recorder) -> Listening:
        one = Listening(protocol)
        made.append(one)
        await one.on(TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"))
        return one

    yield listen
    for one in made:
        await one.port.stopListening()


def dial(address, family=socket.AF_INET) -> tuple[Recorder, Deferred]:
    protocol = Recorder()
    factory = Factory.forProtocol(lambda: protocol)
    factory.noisy = False
    return protocol, HubClientEndpoint(reactor, family, address).connect(factory)


@pytest_twisted.ensureDeferred
async def test_both_ends_have_transports_with_twisteds_interfaces(listening):
    """A protocol finds what it knows from Twisted: interfaces, addresses, bytes, and an end in good order."""
    here = await listening()
    address = here.port.getHost()
    client, dialling = dial((address.host, address.port))
    assert await dialling is client
    server = await within(here.came)
    for protocol in (client, server):
        assert isinstance(protocol.transport, HubTransport)
        assert verifyObject(ITCPTransport, protocol.transport)
        assert ITLSTransport.providedBy(protocol.transport)
    assert client.transport.getPeer() == server.transport.getHost() == address
    assert client.transport.getHost() == server.transport.getPeer()
    client.transport.write(b"hello")
    client.transport.loseConnection()
    client.transport.write(b"too late")
    assert isinstance(await within(server.lost), ConnectionDone)
    assert isinstance(await within(client.lost), ConnectionDone)
    assert server.heard == b"hello"


@pytest_twisted.ensureDeferred
async def test_unix(tmp_path):
    """UNIX sockets work the same."""
    path = str(tmp_path / "socket")
    here = Listening()
    await here.on(UNIXServerEndpoint(reactor, path))
    client, dialling = dial(path, socket.AF_UNIX)
    await dialling
    server = await within(here.came)
    server.transport.write(b"hello")
    server.transport.loseConnection()
    await within(client.lost)
    assert client.heard == b"hello"
    await here.port.stopListening()


@pytest_twisted.ensureDeferred
async def test_bytes_that_the_socket_does_not_take_wait(listening):
    """What is written goes out whole and in order, however slowly it is read, and before the end."""
    here = await listening()
    sock = here.connect()
    server = await within(here.came)
    message = bytes(range(256)) * 20_000
    server.transport.write(message)
    server.transport.writeSequence([b"and", b" more"])
    server.transport.loseConnection()

    def read() -> bytes:
        parts = []
        while part := sock.recv(65536):
            parts.append(part)
        sock.close()
        return b"".join(parts)

    assert await deferToThread(read) == message + b"and more"
    assert isinstance(await within(server.lost), ConnectionDone)


@pytest_twisted.ensureDeferred
async def test_half_close(listening):
    """A protocol that knows half-closes is told of one, and can still answer."""
    here = await listening(Patient)
    with here.connect() as sock:
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        server = await within(here.came)
        assert await deferToThread(sock.recv, 100) == b"after the end"
        await within(server.lost)
    assert server.heard == b"question"


@pytest_twisted.ensureDeferred
async def test_abort_is_not_heard_before_the_caller_has_returned(listening):
    """A protocol that aborts is told of the end afterwards, and the peer is reset."""
    here = await listening()
    with here.connect() as sock:
        server = await within(here.came)
        server.transport.abortConnection()
        assert not server.lost.called
        assert isinstance(await within(server.lost), ConnectionAborted)
        with pytest.raises(ConnectionResetError):
            await deferToThread(sock.recv, 1)


@pytest_twisted.ensureDeferred
async def test_a_reset_is_noticed_while_paused(listening):
    """A peer that vanishes is missed though nothing is read."""
    here = await listening()
    sock = here.connect()
    server = await within(here.came)
    server.transport.pauseProducing()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    assert type(await within(server.lost)).__name__ == "ConnectionLost"


@pytest_twisted.ensureDeferred
async def test_nobody_listens():
    """A dial that is refused fails as with Twisted's endpoints."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        _, dialling = dial(unused.getsockname())
        with pytest.raises(error.ConnectionRefusedError):
            await dialling


@pytest_twisted.ensureDeferred
async def test_no_descriptor_for_a_dial(monkeypatch):
    """A dial without a descriptor fails, and the error has the system's number."""

    def none_left(*_) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(endpoints.socket, "socket", none_left)
    _, dialling = dial(("127.0.0.1", 1))
    monkeypatch.undo()
    with pytest.raises(ConnectError) as failed:
        await dialling
    assert failed.value.osError == errno.EMFILE


@pytest_twisted.ensureDeferred
async def test_a_dial_given_up():
    """Cancelling a dial closes its socket."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [dial(full.getsockname()) for _ in range(4)]
        _, dialling = waiting[-1]
        assert not dialling.called
        dialling.cancel()
        with pytest.raises(CancelledError):
            await dialling
        for _, other in waiting[:-1]:
            other.addErrback(lambda _: None)
            other.cancel()
        for client, other in waiting[:-1]:
            await other
            if client.transport is not None:
                client.transport.abortConnection()
                await within(client.lost)


@pytest_twisted.ensureDeferred
async def test_a_listener_that_stops_and_begins(listening):
    """A port that has stopped reading leaves clients to the kernel, and has them when it goes on."""
    here = await listening()
    here.port.stopReading()
    with here.connect() as sock:
        sock.sendall(b"x")
        assert not here.came.called
        here.port.startReading()
        server = await within(here.came)
    await within(server.lost)
    assert server.heard == b"x"


class Broken(Recorder):
    """Fails as soon as it is connected."""

    def connectionMade(self) -> None:
        raise ZeroDivisionError


@pytest_twisted.ensureDeferred
async def test_a_protocol_that_fails_at_once(listening, monkeypatch):
    """A connection whose protocol cannot be begun is closed, and the next one is served."""
    logged = []
    monkeypatch.setattr(endpoints, "_log", SimpleNamespace(failure=logged.append))
    here = await listening(Broken)
    with here.connect() as sock:
        assert await deferToThread(sock.recv, 1) == b""
    assert logged == ["a connection could not be begun"]
    with here.connect() as sock:
        assert await deferToThread(sock.recv, 1) == b""


class FullEpoll:
    """An epoll that takes no more sockets, as the system's limit (fs.epoll.max_user_watches) has it."""

    def __init__(self, real) -> None:
        self.real = real

    def __getattr__(self, name):
        return getattr(self.real, name)

    def register(self, *_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest_twisted.ensureDeferred
async def test_a_connection_that_cannot_be_watched(listening, monkeypatch):
    """When the kernel watches no more sockets, a client is closed, and a dial fails; nothing is left."""
    logged = []
    monkeypatch.setattr(endpoints, "_log", SimpleNamespace(failure=logged.append))
    monkeypatch.setattr(hub, "_log", SimpleNamespace(failure=logged.append))
    here = await listening()
    the_hub = hub.hub_of(reactor)
    members = list(the_hub)
    monkeypatch.setattr(the_hub, "_epoll", FullEpoll(the_hub._epoll))
    with ExitStack() as stack:
        sock, full = stack.enter_context(here.connect()), stack.enter_context(socket.socket())
        assert await deferToThread(sock.recv, 1) == b""
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # so that a dial is not done at once
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        _, dialling = dial(full.getsockname())
        with pytest.raises(ConnectError) as failed:
            await within(dialling)
        assert failed.value.osError == errno.ENOSPC
    assert list(the_hub) == members
    assert logged == ["a connection could not be begun"]
    monkeypatch.undo()


class Failing:
    """A member of the hub that fails, and fails at its end as well."""

    def receive(self) -> None:
        raise ZeroDivisionError

    ready = receive
    cut = receive


@pytest_twisted.ensureDeferred
async def test_the_hub_survives_its_members(monkeypatch):
    """A member that fails twice takes nobody with it."""
    logged: list[str] = []
    monkeypatch.setattr(hub, "_log", SimpleNamespace(failure=logged.append))
    here, there = socket.socketpair()
    the_hub = hub.hub_of(reactor)
    the_hub.add(here.fileno(), Failing(), hub.READ)
    there.send(b"x")
    for _ in range(100):
        if len(logged) > 1:
            break
        await deferLater(reactor, 0)
    the_hub.remove(here.fileno())
    assert set(logged) == {"a session has failed", "a session that has failed could not be ended"}
    assert the_hub in reactor.getReaders()
    here.close()
    there.close()
