"""Sockets that one process binds and others accept on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from servers.processes import free_port
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

from mailroute.workers.inherited import Inherited
from mailroute.workers.sockets import Binder, HeldPort


class Bound:
    """Endpoints that listen by way of a Binder."""

    def __init__(self) -> None:
        self.ports: list[HeldPort] = []

    def listen(self, endpoint: str, workers: int = 3) -> HeldPort:
        """Bind, or raise what keeps it from that."""
        found: list[Any] = []
        serverFromString(Binder(reactor, workers), endpoint).listen(Factory()).addBoth(found.append)
        if not isinstance(found[0], HeldPort):
            found[0].raiseException()
        self.ports.append(found[0])
        return found[0]


@pytest.fixture
def bound() -> Iterator[Bound]:
    bound = Bound()
    yield bound
    for port in bound.ports:
        pytest_twisted.blockon(maybeDeferred(port.stopListening))


@pytest.mark.parametrize(
    ("endpoint", "family", "host"),
    [
        ("tcp:{}", socket.AF_INET, "0.0.0.0"),  # noqa: S104
        ("tcp:{}:interface=127.0.0.1", socket.AF_INET, "127.0.0.1"),
        (r"tcp:{}:interface=\:\:1", socket.AF_INET6, "::1"),
        ("tcp6:{}", socket.AF_INET6, "::"),
        ("tcp:0:interface=127.0.0.1", socket.AF_INET, "127.0.0.1"),
    ],
)
def test_each_worker_has_a_socket_of_each_port(
    bound: Bound, endpoint: str, family: socket.AddressFamily, host: str
) -> None:
    """All sockets of a port have the same address, listen, and are inherited by no program."""
    port = bound.listen(endpoint.format(free_port()))
    assert port.family == family
    assert port.each
    assert len({port.descriptor(place) for place in range(3)}) == 3
    names = set()
    for place in range(3):
        with socket.socket(fileno=os.dup(port.descriptor(place))) as copy:
            names.add(copy.getsockname())
            assert copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            assert not os.get_blocking(port.descriptor(place))
        assert not os.get_inheritable(port.descriptor(place))
    [(found, number, *_)] = names
    assert found == host
    assert number


def test_the_kernel_spreads_the_clients(bound: Bound) -> None:
    """Of a few hundred connections, each worker's socket gets its share."""
    port = bound.listen("tcp:0:interface=127.0.0.1:backlog=400", 2)
    clients = [socket.create_connection(port.getHost(), timeout=20) for _ in range(300)]
    counts = []
    for place in range(2):
        with socket.socket(fileno=os.dup(port.descriptor(place))) as listening:
            counts.append(0)
            while True:
                try:
                    listening.accept()[0].close()
                except BlockingIOError:
                    break
                counts[-1] += 1
    for client in clients:
        client.close()
    assert sum(counts) == 300
    assert min(counts) >= 90  # seven standard deviations from even


def test_the_backlog_is_the_endpoints(bound: Bound) -> None:
    """A socket's queue is as long as the endpoint says."""
    port = bound.listen("tcp:0:interface=127.0.0.1:backlog=7", 1)
    number = port.getHost()[1]
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    [queues] = [
        fields[4] for fields in lines if int(fields[1].split(":")[1], 16) == number and fields[3] == "0A"
    ]
    assert queues  # the kernel tells a listener's backlog only to ss; that it listens is seen here
    clients = []
    try:
        for _ in range(9):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(port.getHost())
            clients.append(client)
        established = [
            fields
            for fields in (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
            if int(fields[1].split(":")[1], 16) == number and fields[3] == "01"
        ]
        assert len(established) == 8  # one more than the backlog, as Linux counts
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize("shared", [True, False], ids=["another mailroute with workers", "another program"])
def test_a_port_that_is_taken_is_not_shared_by_mistake(bound: Bound, shared: bool) -> None:
    """Whoever listens there already, sharing or not, is not joined: the port is busy."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(CannotListenError, match="Address already in use"):
            bound.listen(f"tcp:{other.getsockname()[1]}:interface=127.0.0.1")


def test_the_same_port_is_not_taken_twice(bound: Bound) -> None:
    """Two listeners on one port get in each other's way with workers as they do without."""
    number = free_port()
    bound.listen(f"tcp:{number}:interface=127.0.0.1")
    with pytest.raises(CannotListenError, match="Address already in use"):
        bound.listen(f"tcp:{number}")


def test_an_address_that_is_not_ours_is_told(bound: Bound) -> None:
    """What the system says of an address reaches the operator."""
    with pytest.raises(CannotListenError, match="Cannot assign requested address"):
        bound.listen(f"tcp:{free_port()}:interface=192.0.2.1")


def test_nothing_stays_open_after_a_failure(bound: Bound) -> None:
    """A port that cannot be had costs no descriptor."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with socket.create_server(("127.0.0.1", 0)) as other:
        for _ in range(5):
            with pytest.raises(CannotListenError):
                bound.listen(f"tcp:{other.getsockname()[1]}:interface=127.0.0.1")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- UNIX sockets ---------------------------------------------------------------


class Hello(Protocol):
    """Says which worker it is."""

    def connectionMade(self) -> None:
        self.transport.write(self.factory.name)
        self.transport.loseConnection()


def factory(name: bytes) -> Factory:
    made = Factory.forProtocol(Hello)
    made.name = name
    made.noisy = False
    return made


@pytest_twisted.ensureDeferred
async def test_workers_share_a_unix_socket(bound: Bound, tmp_path: Path) -> None:
    """The socket's file has the endpoint's permissions, and keeps them and its name when a worker ends."""
    path = tmp_path / "imap.sock"
    port = bound.listen(f"unix:{path}:mode=640")
    assert not port.each
    workers = [Inherited(reactor, port.family, os.dup(port.descriptor(place)), place) for place in range(2)]

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(path))
            return client.recv(100)

    for place, worker in enumerate(workers):
        await worker.listen(factory(b"%d" % place))
    assert await deferToThread(ask) in (b"0", b"1")
    for place, worker in enumerate(workers):
        await worker.stopListening()
        assert path.stat().st_mode & 0o777 == 0o640
        if place == 0:
            assert await deferToThread(ask) == b"1"


@pytest_twisted.ensureDeferred
async def test_a_worker_accepts_for_another(bound: Bound) -> None:
    """While it has another worker's socket too, it serves those who come there, and then only its own."""
    port = bound.listen("tcp:0:interface=127.0.0.1", 2)
    helper = Inherited(reactor, port.family, os.dup(port.descriptor(0)), 0)
    await helper.listen(factory(b"0"))
    helper.adopt(1, os.dup(port.descriptor(1)))
    helper.adopt(1, os.dup(port.descriptor(1)))  # it does no harm to say so twice

    def ask() -> bytes:
        with socket.create_connection(port.getHost(), timeout=20) as client:
            return client.recv(100)

    for _ in range(20):
        assert await deferToThread(ask) == b"0"
    helper.drop(1)
    helper.drop(1)
    helper.drop(0)  # its own is not given up by mistake
    other = Inherited(reactor, port.family, os.dup(port.descriptor(1)), 1)
    await other.listen(factory(b"1"))
    assert {await deferToThread(ask) for _ in range(40)} == {b"0", b"1"}
    await helper.stopListening()
    await other.stopListening()
