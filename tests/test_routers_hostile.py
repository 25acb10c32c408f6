"""Sources whose servers hang, drip, talk rubbish or go away: who else is asked, and what is left of it."""

import contextlib
import socket
import threading
from pathlib import Path

import pytest
import pytest_twisted
from asking import explained
from live import WAIT, Talk, patient
from timers import waiting
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread

from mailroute import routers
from mailroute.events import Credentials, Lookup, Reason, Route
from mailroute.routers import Chain, SourceContext
from mailroute.sources.dovecot import MAX_IGNORED
from mailroute.testing import CLIENT, FakeRouter

DIRECTORY = {"urls": ["ldap://127.0.0.1:{port}"], "base": "dc=x", "filter": "(mail={{user}})"}

SOURCES = {
    "http": {"url": "http://127.0.0.1:{port}/"},
    "http-json": {"url": "http://127.0.0.1:{port}/", "dialect": "json"},
    "ldap": DIRECTORY,
    "ldap-bind": DIRECTORY | {"bind": True, "starttls": True},
    "redis": {"url": "redis://127.0.0.1:{port}/1"},
    "redis-unix": {"url": "unix:{path}"},
    "dovecot-auth": {"socket": "{path}"},
    "dovecot-auth-master": {"master_socket": "{path}"},
    "sql-postgresql": {"database": "postgresql://u:p@127.0.0.1:{port}/d", "query": "select :user as name"},
    "sql-mariadb": {"database": "mariadb://u:p@127.0.0.1:{port}/d", "query": "select :user as name"},
}
"""The keys of blocks whose servers the tests play."""

BEGINNINGS = {
    "http": b"HTTP/1.1 200 OK\r\nX: ",
    "ldap": b"\x30\x84\x00\x00\xf0\x00\x02\x01\x01\x64\x84\x00\x00\xef\x00",
    "redis": b"$60000\r\n",
    "dovecot": b"VERSION\t1\t1\nDONE\nOK\t1\tuser=",
    "sql-postgresql": b"S\x00\x00\xf0\x00server_version\x00",
    "sql-mariadb": b"\x00\xf0\x00\x00\x0a",
}
"""What the first bytes of a long answer may be."""


class Server(Factory):
    """What the connections of a server have in common."""

    noisy = False

    def __init__(self, kind, protocol):
        self.beginning = next(text for name, text in BEGINNINGS.items() if kind.startswith(name))
        self.protocol = protocol
        self.talks = []

    def buildProtocol(self, addr):
        talk = super().buildProtocol(addr)
        self.talks.append(talk)
        return talk

    def heard_all(self):
        """Tell whether all connections are at their end, also where nobody listened."""
        for talk in self.talks:
            talk.hear()
        return all(talk.reason for talk in self.talks)


class Silent(Talk):
    """Takes questions, and says nothing."""

    def connectionMade(self):
        """Unlike `Talk`'s, for UNIX sockets as well."""

    def hear(self):
        """Notice what has become of the connection, if nothing has been heard so far."""


class Deaf(Silent):
    """Does not even take them."""

    def connectionMade(self):
        self.transport.pauseProducing()

    def hear(self):
        if self.reason is None:
            self.transport.resumeProducing()


class Gone(Silent):
    """Resets each connection when it is made."""

    def connectionMade(self):
        reactor.callLater(0, self.transport.abortConnection)


class GoesAway(Silent):
    """Resets each connection when a question comes."""

    def dataReceived(self, _data):
        self.transport.abortConnection()


class Breaks(Silent):
    """Begins an answer, and breaks off."""

    def dataReceived(self, _data):
        self.transport.write(self.factory.beginning)
        self.transport.loseConnection()


class Rubbish(Silent):
    """Says what nobody understands, asked and unasked."""

    def connectionMade(self):
        self.transport.write(bytes(range(256)) * 20)

    def dataReceived(self, _data):
        self.transport.write(b"\0" * 1000)


class Flood(Silent):
    """Begins an answer that does not end, and sends it as fast as it is taken."""

    def connectionMade(self):
        self.transport.write(self.factory.beginning)
        self.transport.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self):
        self.going = reactor.callLater(0, self.more)

    def more(self):
        self.resumeProducing()
        self.transport.write(b"x" * 10000)

    def pauseProducing(self):
        if self.going.active():
            self.going.cancel()

    stopProducing = pauseProducing

    def connectionLost(self, reason):
        self.pauseProducing()
        super().connectionLost(reason)


class Drip(Silent):
    """Sends such an answer one byte after the other."""

    def connectionMade(self):
        self.rest = iter(self.factory.beginning)
        self.more()

    def more(self):
        self.going = reactor.callLater(0.01, self.more)
        self.transport.write(bytes([next(self.rest, 0x78)]))

    def connectionLost(self, reason):
        self.going.cancel()
        super().connectionLost(reason)


def left():
    """Count what is held: what waits in the reactor, its descriptors, all descriptors, threads for SQL."""
    threads = [each for each in threading.enumerate() if "sql" in each.name]
    watched = len(reactor.getReaders()) + len(reactor.getWriters())
    return waiting(), watched, len(list(Path("/proc/self/fd").iterdir())), len(threads)


@contextlib.asynccontextmanager
async def served(kind, protocol, tmp_path):
    """Play a server over TCP and a UNIX socket; yields it with the address for a block's keys."""
    server, path = Server(kind, protocol), str(tmp_path / "socket")
    ports = [
        await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(server),
        await UNIXServerEndpoint(reactor, path).listen(server),
    ]
    try:
        yield server, {"port": ports[0].getHost().port, "path": path}
    finally:
        for port in ports:
            await maybeDeferred(port.stopListening)


def filled(value, address):
    """Return an option with the server's address in it."""
    if isinstance(value, list):
        return [filled(each, address) for each in value]
    return value.format(**address) if isinstance(value, str) else value


def made(kind, tmp_path, address, **options):
    """Return the router of a block, started."""
    source = kind if kind in ("dovecot-auth", "http", "ldap", "redis") else kind.rpartition("-")[0]
    source = source.removesuffix("-auth") + "-auth" if source.startswith("dovecot") else source
    context = SourceContext(
        tmp_path, frozenset({"east", "west"}), str.lower, reactor, deferToThread, label="route[2] (slow)"
    )
    options = {key: filled(value, address) for key, value in SOURCES[kind].items()} | options
    router = routers.source(source).router({"backend": "east", "breaker_failures": 0, **options}, context)
    router.startService()
    return router


def lookup(user):
    return Lookup(user, "imap", CLIENT, Credentials("PLAIN", user.encode(), b"wonderland"))


@pytest.mark.parametrize("protocol", [Silent, Deaf, Gone, GoesAway, Breaks, Rubbish, Flood, Drip])
@pytest.mark.parametrize("kind", SOURCES)
@pytest_twisted.ensureDeferred
async def test_a_hostile_server_holds_up_nobody_else(kind, protocol, tmp_path):
    """Twenty are told to come later, others log in meanwhile, and when it stops nothing is left."""
    async with served(kind, protocol, tmp_path) as (server, address):
        # A connection of an earlier test may still have its two seconds to end in.
        await patient(lambda: waiting() == 0)
        before = left()
        router = made(kind, tmp_path, address, timeout=0.3)
        chain = Chain(
            [("table", FakeRouter({"alice": Route("west")})), ("slow", router)], frozenset({"west"})
        )
        asked = [Deferred.fromCoroutine(explained(chain, lookup(f"u{number}"))) for number in range(20)]
        assert await explained(chain, lookup("alice")) == Route("west")
        assert set(await gatherResults(asked)) <= {Reason.UNAVAILABLE, Reason.MISCONFIGURED}
        assert await explained(chain, lookup("alice")) == Route("west")
        late = Deferred.fromCoroutine(explained(chain, lookup("late")))
        stopped = reactor.seconds()
        await maybeDeferred(router.stopService)
        assert reactor.seconds() - stopped < 3
        assert await late in (Reason.UNAVAILABLE, Reason.MISCONFIGURED)
        await patient(lambda: server.heard_all() and left() == before)


class Forgets(Silent):
    """Does its handshake as a Dovecot, and answers nobody but carol."""

    def connectionMade(self):
        self.transport.write(b"VERSION\t1\t1\nDONE\n")

    def dataReceived(self, data):
        for line in data.splitlines():
            if line.startswith(b"PASS") and b"carol" in line:
                self.transport.write(b"PASS\t%s\tuser=carol\n" % line.split(b"\t")[1])


@pytest.mark.parametrize("answered", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_connection_that_is_ignored_is_made_anew(answered, tmp_path):
    """Nothing piles up for a Dovecot that reads nothing; one that answers somebody is asked on."""
    async with served("dovecot-auth-master", Forgets, tmp_path) as (server, address):
        router = made("dovecot-auth-master", tmp_path, address, timeout=0.1)
        for number in range(MAX_IGNORED + 1):
            if answered and number == MAX_IGNORED - 1:
                assert await explained(router, lookup("carol")) == Route("east")
            assert await explained(router, lookup(f"u{number}")) is Reason.UNAVAILABLE
        assert len(server.talks) == (1 if answered else 2)
        await maybeDeferred(router.stopService)
        await patient(lambda: server.heard_all())


NOWHERE = {"port": 0, "path": ""}

NAMED = {
    "http": {"url": "http://hanging.example/"},
    "ldap": {"urls": ["ldap://hanging.example"], "connections": 30},
    "redis": {"url": "redis://hanging.example", "connections": 30},
}


@pytest.mark.parametrize("kind", NAMED)
@pytest_twisted.ensureDeferred
async def test_names_that_cannot_be_looked_up_hold_up_nobody_else(kind, tmp_path, monkeypatch):
    """Thirty questions to a host whose name server hangs take one thread, and none of those of everybody."""
    hangs, asked = threading.Event(), []

    def look(name, *_args, **_options):
        asked.append(name)
        hangs.wait(WAIT)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", look)
        router = made(kind, tmp_path, NOWHERE, timeout=0.2, **NAMED[kind])
        questions = [Deferred.fromCoroutine(explained(router, lookup(f"u{each}"))) for each in range(30)]
        assert await deferToThread(lambda: "here") == "here"
        assert set(await gatherResults(questions)) == {Reason.UNAVAILABLE}
        assert await deferToThread(lambda: "here") == "here"
        await maybeDeferred(router.stopService)
        assert asked == ["hanging.example"]
        hangs.set()
        await patient(lambda: not any(each.name == "host" for each in threading.enumerate()))


@pytest_twisted.ensureDeferred
async def test_a_host_has_several_addresses(tmp_path, monkeypatch):
    """Each is tried, of either family; a name without any is no server's."""
    found = {
        "here.example": [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::ffff:127.0.0.2", 0, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        ],
        "nowhere.example": [],
    }
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *_args, **_options: found[name])
    async with served("redis", Silent, tmp_path) as (server, address):
        for name in found:
            url = f"redis://{name}:{address['port']}"
            router = made("redis", tmp_path, address, url=url, timeout=1)
            asked = Deferred.fromCoroutine(explained(router, lookup("alice")))
            if found[name]:
                await patient(lambda: server.talks)
            await maybeDeferred(router.stopService)
            assert await asked is Reason.UNAVAILABLE
        assert len(server.talks) == 1
        await patient(server.heard_all)
