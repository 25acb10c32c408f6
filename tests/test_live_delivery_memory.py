"""What a message holds on its way, and half a one comes to, in the clear and with TLS on both sides."""

from __future__ import annotations

import socket

import pytest
from delivering import delivering
from live import patient
from pytest_twisted import ensureDeferred
from servers.certificates import Authority
from twisted.internet import reactor
from twisted.internet.abstract import FileDescriptor
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.internet.task import deferLater

from mailroute.config.files import read_chain, read_key
from mailroute.delivery import target
from mailroute.delivery.terms import MAX_BACKENDS
from mailroute.events import Route
from mailroute.pipe.contract import HELD_AT_MOST
from mailroute.pipe.transport_leg import socket_under
from mailroute.testing import FakeRouter
from mailroute.tls import KeyPair, ServerTLS

NAMES = tuple(f"b{number}" for number in range(MAX_BACKENDS))

SMALL = 8192
"""Bytes that a socket keeps for its peer; the kernel's own choice would take whole messages."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


def under_it(connection):
    """Return the transport that has a backend's socket."""
    under = socket_under(connection._transport)
    return getattr(under, "_connection", under)  # that is what is under startTLS


def waiting_at(connection) -> int:
    """Return how many bytes wait at a backend's transport, whoever made it."""
    transport = connection._transport
    if hasattr(transport, "rest"):
        return len(transport.rest)
    waits = sum(map(len, getattr(transport, "_appSendBuffer", ())))
    waits += sum(map(len, transport._aggregator._buffer)) if hasattr(transport, "_aggregator") else 0
    under = under_it(connection)
    assert isinstance(under, FileDescriptor)
    return waits + under._tempDataLen + len(under.dataBuffer) - under.offset


def held_by(session) -> int:
    """Return how many bytes of a message a session holds."""
    held = sum(len(getattr(event, "data", b"")) for event in session._todo)
    held += len(session._receiver._reader)
    targets = session._forwarding._targets.values()
    return held + sum(waiting_at(one._connection) for one in targets if one._connection is not None)


@pytest.fixture
def watched(monkeypatch):
    """Look at the session each time a backend is sent something; the list has what it has held at most."""
    most, full = [0], []
    write, stop = target._Connection.write, target.Target.stop

    def looked(connection, data):
        write(connection, data)
        if connection._target is not None:
            most[0] = max(most[0], held_by(connection._target._owner))

    def stopped(one):
        full.append(one)
        stop(one)

    monkeypatch.setattr(target._Connection, "write", looked)
    monkeypatch.setattr(target.Target, "stop", stopped)
    yield most
    assert full, "no backend was ever slow"


def sides(authority, near, far):
    """Return how mailroute is to be set up, and the client's side of TLS."""
    issued = authority.issue("localhost")
    chain = read_chain(issued.chain)
    root = trustRootFromCertificates([Certificate.loadPEM(authority.file.read_bytes())])
    client_tls = None if near == "none" else optionsForClientTLS("localhost", trustRoot=root)
    tables = {"listen": {"security": near}, "backend": {"security": far}}
    tables["certificate"] = [{"chain": str(issued.chain), "key": str(issued.key)}]
    if near == "ssl:":
        endpoint = f"ssl:0:interface=127.0.0.1:privateKey={issued.key}:certKey={issued.chain}"
        tables["listen"] = {"security": "none", "endpoint": endpoint}
        del tables["certificate"]
    if far == "tls":
        tables["backend"] |= {"verify": "localhost", "ca": str(authority.file)}
        tables["backend_tls"] = ServerTLS([KeyPair(chain.certificates, read_key(issued.key, chain).private)])
    return tables, client_tls


async def offered(running, client):
    """Offer a message for all backends, whose connections take little at once, until it may be sent."""
    servers = []
    client.say(b"MAIL FROM:<s@example.net>\r\n")
    for name, port in running.ports.items():
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        client.say(b"RCPT TO:<a@%s.example>\r\n" % name.encode())
        servers.append(await running.backends[name].next())
        await servers[-1].ready("PIPELINING")
        await servers[-1].takes(b"a@%s.example" % name.encode())
    client.say(b"DATA\r\n")
    for server in servers:
        await server.hears(b"DATA\r\n")
        server.say(b"354 go\r\n")
    await client.until(b"354 Send the message, and a dot on a line by itself\r\n")
    [session] = running.listener.factory.sessions
    for one in session._forwarding._targets.values():
        under = under_it(one._connection)
        near_end = under.sock if hasattr(under, "sock") else under.socket
        near_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    return servers


async def read_by_fits_and_starts(servers):
    """Have each server read in one turn of sixteen, for a while, and then for good."""
    for turn in range(400):
        await deferLater(reactor, 0)
        for number, server in enumerate(servers):
            if (turn + number) % 16:
                server.transport.pauseProducing()
            else:
                server.transport.resumeProducing()
    for server in servers:
        server.transport.resumeProducing()


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL")  # Twisted does it
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])  # by name it is Twisted that connects
@pytest.mark.parametrize("near", ["none", "tls", "ssl:"])
@pytest.mark.parametrize("far", ["none", "tls"])
@ensureDeferred
async def test_a_message_holds_little_however_slow_its_backends_are(authority, watched, near, far, host):
    """With sixteen backends that read by fits and starts, a session holds 256 KiB at most at any time."""
    tables, client_tls = sides(authority, near, far)
    route = [FakeRouter({f"a@{name}.example": Route(name) for name in NAMES})]
    async with delivering(host=host, names=NAMES, route=route, **tables) as running:
        client = await running.client(tls=client_tls)
        servers = await offered(running, client)
        text = b"0123456789abcdef\r\n.." * 50_000 + b"\r\n.\r\n"
        for server in servers:
            server.transport.pauseProducing()
        watched[0] = 0
        client.say(text)
        await read_by_fits_and_starts(servers)
        for server in servers:
            await server.wait_for(lambda server=server: len(server.heard) >= len(text))
            assert (server.heard == text) is True
            server.say(b"250 2.0.0 taken\r\n")
        await client.until(b"250 2.0.0 taken\r\n" * len(servers))
    assert 0 < watched[0] <= HELD_AT_MOST


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL")  # Twisted does it
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("near", ["tls", "ssl:"])
@pytest.mark.parametrize("how", ["abortConnection", "loseConnection"])
@ensureDeferred
async def test_half_a_message_is_nobodys_with_tls_too(authority, near, how, host):
    """A client that is gone in the middle, with TLS's goodbye or without, has nothing delivered."""
    tables, client_tls = sides(authority, near, "tls")
    route = [FakeRouter({"a@b0.example": Route("b0"), "a@b1.example": Route("b1")})]
    async with delivering(host=host, names=NAMES[:2], route=route, **tables) as running:
        client = await running.client(tls=client_tls)
        servers = await offered(running, client)
        client.say(b"one\r\n.")
        for server in servers:
            await server.until(b"one")
        getattr(client.transport, how)()
        for server in servers:
            assert await server.end() in (b"", b"\r\n")
        await patient(lambda: not running.listener.factory.sessions)
