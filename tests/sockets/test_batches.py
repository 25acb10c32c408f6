"""What goes out at the end of a batch of the hub's, and in which order."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from OpenSSL import SSL
from pipe.splice_rig import Creator, make_credentials
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from zope.interface import implementer

from mailroute.pipe import SpliceResult, splice
from mailroute.sockets import hub
from mailroute.sockets.endpoints import HubClientEndpoint
from mailroute.sockets.hub import hub_of
from mailroute.sockets.transport import HubTransport


@implementer(IHalfCloseableProtocol)
class Acting(Protocol):
    """Does what the test says with what it is told."""

    def __init__(self, act: Callable[[bytes], object]) -> None:
        self.dataReceived = act

    def readConnectionLost(self) -> None:
        pass

    def writeConnectionLost(self) -> None:
        pass


class Rig:
    """A hub that serves a batch when it is told to, and pairs of sockets of which it has one each."""

    def __init__(self) -> None:
        self.reactor = Clock()
        self.reactor.addReader = lambda _: None
        self.hub = hub_of(self.reactor)
        self.serve = self.hub.doRead
        self.sockets: list[socket.socket] = []
        self.failures: list[str] = []

    def connection(
        self, act: Callable[[bytes], object] = lambda _: None, kind=socket.SOCK_STREAM
    ) -> tuple[HubTransport, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        self.sockets += (ours, theirs)
        ours.setblocking(False)
        theirs.setblocking(False)
        transport = HubTransport(ours, self.hub, None)
        transport.start(Acting(act))
        return transport, theirs


@pytest.fixture
def rig(monkeypatch):
    """Nothing may fail but what the test takes out of ``failures``."""
    made = Rig()
    monkeypatch.setattr(hub, "_log", SimpleNamespace(failure=made.failures.append))
    yield made
    for member in list(made.hub):
        member.cut()
    for sock in made.sockets:
        sock.close()
    made.hub.connectionLost(None)
    assert made.failures == []


def nothing_came(sock: socket.socket) -> bool:
    """Tell whether a read would have to wait."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    return False


def test_several_writes_are_sent_at_once(rig):
    """What a protocol writes in one batch, whatever for, goes out together."""
    # Such a socket keeps apart what was sent apart.
    transport, peer = rig.connection(kind=socket.SOCK_SEQPACKET)

    def twice(_: bytes) -> None:
        transport.write(b"one, ")
        transport.write(b"two")

    _, other = rig.connection(twice)
    other.send(b"x")
    rig.serve()
    assert peer.recv(100) == b"one, two"
    assert nothing_came(peer)


def test_all_of_a_batch_are_served_before_anything_is_sent(rig):
    """Peers are woken at the end of a batch, and before the next one."""
    came: list[bool] = []
    transports = []

    def answer(number: int) -> Callable[[bytes], None]:
        def act(_: bytes) -> None:
            came.append(all(map(nothing_came, peers)))
            transports[number].write(b"y")

        return act

    made = [rig.connection(answer(number)) for number in range(3)]
    transports += [transport for transport, _ in made]
    peers = [peer for _, peer in made]
    for peer in peers:
        peer.send(b"x")
    rig.serve()
    assert came == [True] * 3
    assert [peer.recv(10) for peer in peers] == [b"y"] * 3


def test_outside_of_a_batch_nothing_waits(rig):
    """What a timer has to say goes out at once."""
    transport, peer = rig.connection()
    peer.send(b"x")
    rig.serve()
    transport.write(b"now")
    assert peer.recv(10) == b"now"


def test_last_words_to_a_client_that_finishes_in_the_same_batch(rig):
    """A client that has shut its writing side still gets what was written to it just before."""
    client, peer = None, None

    def close(_: bytes) -> None:
        client.write(b"bye")
        client.loseConnection()

    _, other = rig.connection(close)
    client, peer = rig.connection()
    other.send(b"x")
    peer.shutdown(socket.SHUT_WR)
    rig.serve()
    assert peer.recv(10) == b"bye"
    assert peer.recv(10) == b""
    assert not client.connected


def test_last_words_to_a_client_that_says_goodbye_with_its_first_bytes(rig, tmp_path):
    """With TLS, too: also if the end of the handshake, the bytes and close_notify come in one piece."""
    credentials = make_credentials(tmp_path)
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_privatekey_file(str(tmp_path / "both.pem"))
    context.use_certificate_file(str(tmp_path / "both.pem"))

    def close(_: bytes) -> None:
        transport.write(b"bye")
        transport.loseConnection()

    transport, peer = rig.connection(close)
    transport.startTLS(Creator(context))
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = credentials.client.wrap_bio(into, out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    peer.send(out.read())
    rig.serve()
    into.write(peer.recv(1 << 16))
    client.do_handshake()
    client.write(b"logout")
    with pytest.raises(ssl.SSLWantReadError):
        client.unwrap()
    peer.send(out.read())
    rig.serve()
    into.write(peer.recv(1 << 16))
    assert client.read() == b"bye"
    assert not transport.connected


def test_what_waits_for_the_end_of_a_batch_pauses_nobody(rig):
    """A producer is paused and resumed because of a socket that is full, and not because of a batch."""
    told: list[str] = []
    producer = SimpleNamespace(
        pauseProducing=lambda: told.append("pause"), resumeProducing=lambda: told.append("resume")
    )

    def produce(_: bytes) -> None:
        transport.write(b"before")
        transport.registerProducer(producer, True)
        transport.write(size * b"x")

    transport, peer = rig.connection()
    _, other = rig.connection(produce)
    size = 1
    other.send(b"x")
    rig.serve()
    assert peer.recv(100) == b"beforex"
    assert told == []
    size = 10_000_000
    other.send(b"x")
    rig.serve()
    assert told == ["pause"]
    came = 0
    while came < len(b"before") + size:
        came += len(peer.recv(1 << 20))
        rig.serve()
    assert told[-1] == "resume"


def test_a_dial_given_up_in_the_batch_that_it_is_made_in(rig):
    """Nobody is called who has not been called yet, and the caller hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        caller = SimpleNamespace()  # has nothing that could be called
        endpoint = HubClientEndpoint(rig.reactor, socket.AF_INET, server.getsockname())
        dialled = []

        def dial_and_cut(_: bytes) -> None:
            dialled.append(endpoint.dial(caller))
            dialled[0].cut()

        _, other = rig.connection(dial_and_cut)
        other.send(b"x")
        rig.serve()
        assert dialled
        with pytest.raises(BlockingIOError):
            server.accept()


def test_who_cannot_send_hurts_nobody_else(rig):
    """A defect in sending costs one session, and is logged."""
    transport, peer = rig.connection()
    cut: list[bool] = []

    def flush() -> None:
        raise ZeroDivisionError

    def act(_: bytes) -> None:
        rig.hub.at_end(SimpleNamespace(flush=flush, cut=lambda: cut.append(True)))
        transport.write(b"y")

    _, other = rig.connection(act)
    other.send(b"x")
    rig.serve()
    assert peer.recv(10) == b"y"
    assert rig.failures.pop() == "a session has failed"
    assert cut == [True]


def test_joined_in_a_batch(rig):
    """Bytes written before the splice, its first bytes and what was read meanwhile come in this order."""
    results: list[SpliceResult] = []
    client, their_client = rig.connection()

    def join(_: bytes) -> None:
        client.write(b"1")
        splice(client, backend, first_to_a=b"2", first_to_b=b"a", clock=rig.reactor).addCallback(
            results.append
        )

    backend, their_backend = rig.connection(join)
    their_backend.send(b"x")
    their_client.send(b"b")
    rig.serve()
    their_backend.send(b"3")
    their_backend.shutdown(socket.SHUT_WR)
    rig.serve()
    their_client.shutdown(socket.SHUT_WR)
    rig.serve()
    assert their_client.recv(10) == b"123"
    assert their_client.recv(10) == b""
    assert their_backend.recv(10) == b"ab"
    assert their_backend.recv(10) == b""
    [result] = results
    assert (result.bytes_a_to_b, result.bytes_b_to_a, result.clean) == (2, 2, True)


@pytest.mark.parametrize("last", [b"", b"2"])
def test_an_end_that_comes_in_the_batch_of_the_join(rig, last):
    """A backend that has said all and ended before it was joined: the client gets all, and then the end."""
    results: list[SpliceResult] = []

    def join(_: bytes) -> None:
        splice(client, backend, first_to_a=b"1", clock=rig.reactor).addCallback(results.append)

    _, other = rig.connection(join)
    client, their_client = rig.connection()
    backend, their_backend = rig.connection()
    other.send(b"x")
    their_backend.send(last)
    their_backend.close()
    rig.serve()
    assert their_client.recv(10) == b"1" + last
    assert their_client.recv(10) == b""
    their_client.close()
    rig.serve()
    [result] = results
    assert (result.bytes_b_to_a, result.clean) == (1 + len(last), True)


def test_a_descriptor_that_nobody_has_is_nobody_elses(rig):
    """To take out a socket that is closed already, or was never in, leaves all others in."""
    rig.connection()
    rig.connection()
    members = list(rig.hub)
    for descriptor in (-1, -2, 1 << 20):
        rig.hub.remove(descriptor)
    assert len(members) == 2
    assert list(rig.hub) == members
