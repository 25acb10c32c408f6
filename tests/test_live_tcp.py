"""Plain TCP on real sockets in this process: what passes, what ends it, and what it leaves."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from live import WAIT, Backends, Live, Talk, ended, patient, started
from servers.certificates import Authority
from servers.processes import free_port
from timers import waiting
from twisted.internet import reactor
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXServerEndpoint,
    connectProtocol,
)
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.logger import capturedLogs
from zope.interface import implementer

from mailroute import config
from mailroute.dialogs.tcp.dialog import TcpDialog
from mailroute.session import Session

# --- the ends that the tests play -------------------------------------------


@implementer(IHalfCloseableProtocol)
class End(Talk):
    """An end that sees it if the other one has finished sending."""

    def __init__(self) -> None:
        super().__init__()
        self.finished = False

    def readConnectionLost(self) -> None:
        self.finished = True
        self._look()

    def writeConnectionLost(self) -> None:
        pass

    async def until_finished(self) -> None:
        await self.wait_for(lambda: self.finished)
        assert self.finished, self.reason


class TLSEnd(End):
    """An end with TLS, which says its first words in the same segment as the handshake's last flight."""

    def __init__(self, context: ssl.SSLContext, first: bytes = b"", name: str | None = None) -> None:
        super().__init__()
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=name is None, server_hostname=name)
        self._first = first

    def connectionMade(self) -> None:
        super().connectionMade()
        self._go_on()

    def dataReceived(self, data: bytes) -> None:
        self._in.write(data)
        self._go_on()

    def _go_on(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # of which one is that it wants more
            if not self.secure:
                self.tls.do_handshake()
                self.secure = True
                if self._first:
                    self.tls.write(self._first)
            while data := self.tls.read(65536):
                self.heard += data
            self.finished = True
        self._flush()
        self._look()

    def _flush(self) -> None:
        if self.connected:
            self.transport.write(self._out.read())

    def say(self, data: bytes) -> None:
        self.tls.write(data)
        self._flush()

    def finish(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self._flush()


class Announced(TLSEnd):
    """A server that takes a PROXY header off before TLS, as such servers do."""

    header = b""

    def dataReceived(self, data: bytes) -> None:
        if not self.header.endswith(b"\r\n"):
            line, end, data = (self.header + data).partition(b"\r\n")
            self.header = line + end
        if data:
            super().dataReceived(data)


# --- mailroute between them -------------------------------------------------


WAYS = ("number", "name", "path")
"""How the backend's endpoint is written: the hub dials numbers and paths, Twisted dials names."""


class Forwarder(Live):
    """A running mailroute that forwards to ``east``, which the test plays."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.clients: list[Talk] = []

    async def client(self, talk: Talk | None = None) -> Any:
        """Connect."""
        end = End() if talk is None else talk
        self.clients.append(end)
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port), end)
        # The endpoint's wrapper keeps half-closes from a protocol that listens for handshakes, too.
        end.transport.protocol = end
        return end

    async def joined(self) -> tuple[Any, Any]:
        """Return both ends of a session."""
        return await self.client(), await self.east.next()


@contextlib.asynccontextmanager
async def forwarder(
    folder: Path,
    way: str = "number",
    *,
    serve: Callable[[], Talk] = End,
    place: str = "",
    listen: dict[str, Any] | None = None,
    backend: dict[str, Any] | None = None,
    **tables: Any,
) -> AsyncIterator[Forwarder]:
    """Run mailroute as a forwarder."""
    east = Backends()
    east.protocol = serve
    path = folder / "east"
    endpoint = (
        UNIXServerEndpoint(reactor, str(path))
        if way == "path"
        else TCP4ServerEndpoint(reactor, 0, backlog=1024, interface="127.0.0.1")
    )
    east_port = await endpoint.listen(east)
    port = getattr(east_port.getHost(), "port", 0)
    place = place or {"number": "tcp:127.0.0.1:{0}", "name": "tcp:localhost:{0}", "path": f"unix:{path}"}[way]
    block = {"protocol": "tcp", "endpoint": "tcp:0:interface=127.0.0.1", "backend": "east"} | (listen or {})
    settings = config.build(
        reactor, listen=[block], backend={"east": {"tcp": place.format(port)} | (backend or {})}, **tables
    )
    running, listener = started(settings)
    house = Forwarder(listener, running, east, east_port)
    try:
        yield house
    finally:
        await ended(running, [east_port], [*east.talks, *house.clients])


def last_line(events: Any) -> str:
    return [event["line"] for event in events if " ended: " in event.get("line", "")][-1]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return request.param


# --- what passes ------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_whoever_speaks_first_is_heard(tmp_path, way):
    """Nothing is said on either side but what the two ends say, and either may begin."""
    async with forwarder(tmp_path, way) as house:
        client, backend = await house.joined()
        backend.say(b"220 hello\r\n")
        assert await client.until(b"\r\n") == b"220 hello\r\n"
        client.say(b"EHLO there\r\n")
        assert await backend.until(b"\r\n") == b"EHLO there\r\n"


@pytest_twisted.ensureDeferred
async def test_the_first_bytes_wait_for_the_backend(tmp_path, way):
    """What a client sends before its backend is there arrives first, whole and in order."""
    async with forwarder(tmp_path, way) as house:
        client = await house.client()
        client.say(b"a" * 1_000_000 + b"end of the first")
        client.say(b"and the second")
        backend = await house.east.next()
        whole = await backend.until(b"and the second")
        assert whole == b"a" * 1_000_000 + b"end of the first" + b"and the second"


@pytest_twisted.ensureDeferred
async def test_a_client_that_has_finished_still_gets_its_answer(tmp_path, way):
    """A half-close passes through, and what the other end says behind it comes back."""
    async with forwarder(tmp_path, way) as house:
        client, backend = await house.joined()
        client.say(b"question")
        await backend.until(b"question")
        client.transport.loseWriteConnection()
        await backend.until_finished()
        backend.say(b"answer")
        await client.until(b"answer")
        backend.transport.loseConnection()
        await client.until_finished()


@pytest_twisted.ensureDeferred
async def test_a_client_that_finishes_ahead_still_gets_its_answer(tmp_path, way):
    """A request and the client's half-close, both ahead of the dial's end, pass through as well."""
    async with forwarder(tmp_path, way) as house:
        client = await house.client()
        client.say(b"question")
        client.transport.loseWriteConnection()
        backend = await house.east.next()
        await backend.until(b"question")
        await backend.until_finished()
        backend.say(b"answer")
        await client.until(b"answer")


@pytest.mark.parametrize("first", ["client", "backend"])
@pytest_twisted.ensureDeferred
async def test_one_ends_close_closes_the_other(tmp_path, way, first):
    """When either end goes, the other's connection ends at once, and the log says who went."""
    with capturedLogs() as events:
        async with forwarder(tmp_path, way) as house:
            client, backend = await house.joined()
            going, staying = (client, backend) if first == "client" else (backend, client)
            going.transport.loseConnection()
            await staying.until_finished()
            staying.transport.loseConnection()
            await patient(lambda: not house.factory.sessions)
    line = last_line(events)
    assert f"reason=the {first} " in line
    assert "user=- client=127.0.0.1:" in line
    assert 'listener="tcp tcp:0:interface=127.0.0.1" backend=east' in line


@pytest.mark.parametrize("first", ["client", "backend"])
@pytest_twisted.ensureDeferred
async def test_one_ends_reset_closes_the_other(tmp_path, first):
    """A broken connection takes the other one with it."""
    async with forwarder(tmp_path) as house:
        client, backend = await house.joined()
        going, staying = (client, backend) if first == "client" else (backend, client)
        going.transport.abortConnection()
        await staying.wait_for(lambda: staying.finished or staying.reason is not None)
        staying.transport.loseConnection()
        await patient(lambda: not house.factory.sessions)


# --- who is calling ---------------------------------------------------------


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2"])
@pytest_twisted.ensureDeferred
async def test_a_proxy_header_comes_first(tmp_path, way, identity):
    """The header stands before the client's first byte, with the client's address and ours."""
    async with forwarder(tmp_path, way, backend={"identity": identity}) as house:
        client = await house.client()
        client.say(b"hello")
        heard = await (await house.east.next()).until(b"hello")
        ours, theirs = house.port, client.transport.getHost().port
    if identity == "proxy-v1":
        assert heard == b"PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\nhello" % (theirs, ours)
    else:
        assert heard.startswith(b"\r\n\r\n\x00\r\nQUIT\n\x21\x11")
        assert heard[16:28] == bytes([127, 0, 0, 1] * 2) + theirs.to_bytes(2) + ours.to_bytes(2)
        assert heard[16 + int.from_bytes(heard[14:16]) :] == b"hello"


# --- TLS --------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


class Site:
    """Certificates for both sides, and the settings that go with them."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        names = ("localhost", "mail.example.com")
        self.issued = {name: authority.issue(name) for name in names}
        self.listen = {
            "listen": {"security": "tls"},
            "certificate": [{"chain": str(one.chain), "key": str(one.key)} for one in self.issued.values()],
        }
        self.backend = {"security": "tls", "verify": "localhost", "ca": str(authority.file)}

    def client(self, first: bytes = b"", name: str = "localhost", alpn: list[str] | None = None) -> TLSEnd:
        context = self._authority.context()
        if alpn is not None:
            context.set_alpn_protocols(alpn)
        return TLSEnd(context, first, name)

    def server(self, first: bytes = b"", newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> TLSEnd:
        return TLSEnd(self._serving(newest), first)

    def announced(self) -> Announced:
        return Announced(self._serving(ssl.TLSVersion.TLSv1_3))

    def _serving(self, newest: ssl.TLSVersion) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.issued["localhost"].chain, self.issued["localhost"].key)
        context.maximum_version = newest
        return context


def trusted(folder: Path, authority: Authority) -> Path:
    """Make a folder with the authority's certificate, as Twisted's endpoints want it."""
    made = folder / "trusted"
    made.mkdir()
    (made / "ca.pem").write_bytes(authority.file.read_bytes())
    return made


@pytest.fixture
def site(authority: Authority) -> Site:
    return Site(authority)


@pytest_twisted.ensureDeferred
async def test_tls_in_front(tmp_path, site, way):
    """A request that comes with the handshake's last flight is the backend's, and the answer the client's."""
    async with forwarder(tmp_path, way, **site.listen) as house:
        client = await house.client(site.client(b"question"))
        backend = await house.east.next()
        assert await backend.until(b"question") == b"question"
        (session,) = house.factory.sessions
        assert session.record.client.tls == "TLSv1.3"
        backend.say(b"answer")
        assert await client.until(b"answer") == b"answer"
        client.say(b"and more")
        await backend.until(b"and more")


# Twisted has not yet heard of it.
DEPRECATED = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL")


@DEPRECATED
@pytest_twisted.ensureDeferred
async def test_tls_by_the_endpoint_itself(tmp_path, site, way):
    """An ssl: endpoint does the same by Twisted's means, which is what a command line can say."""
    one = site.issued["localhost"]
    endpoint = f"ssl:0:interface=127.0.0.1:privateKey={one.key}:certKey={one.chain}"
    async with forwarder(tmp_path, way, listen={"endpoint": endpoint}) as house:
        client = await house.client(site.client(b"question"))
        backend = await house.east.next()
        assert await backend.until(b"question") == b"question"
        (session,) = house.factory.sessions
        assert session.record.client.tls == "TLSv1.3"
        backend.say(b"answer")
        assert await client.until(b"answer") == b"answer"
        backend.transport.loseConnection()
        await client.until_finished()


@DEPRECATED
@pytest_twisted.ensureDeferred
async def test_nobody_is_dialled_before_the_endpoints_own_handshake(tmp_path, site):
    """A client that does not end the handshake of an ssl: endpoint costs no backend, and is sent away."""
    one = site.issued["localhost"]
    endpoint = f"ssl:0:interface=127.0.0.1:privateKey={one.key}:certKey={one.chain}"
    async with forwarder(tmp_path, listen={"endpoint": endpoint}, limits={"login_timeout": 0.05}) as house:
        client = await house.client()
        await client.wait_for(lambda: client.finished or client.reason is not None)
        assert not house.east.talks


@DEPRECATED
@pytest.mark.parametrize("name", ["localhost", "west.example.com"])
@pytest_twisted.ensureDeferred
async def test_tls_to_the_backend_by_the_endpoint_itself(tmp_path, site, authority, name):
    """A tls: endpoint verifies its server before anything goes there, by Twisted's means."""
    folder = trusted(tmp_path, authority)
    place = f"tls:{name}:{{0}}:trustRoots={folder}:endpoint=tcp\\:127.0.0.1\\:{{0}}"

    def serve() -> TLSEnd:
        return site.server(b"220 hello\r\n")

    with capturedLogs() as events:
        async with forwarder(tmp_path, serve=serve, place=place) as house:
            client = await house.client()
            client.say(b"question")
            backend = await house.east.next()
            if name == "localhost":
                await client.until(b"220 hello\r\n")
                await backend.until(b"question")
            else:
                await client.until_finished()
                assert not backend.heard
    refused = [event["line"] for event in events if "TLS with the backend failed" in event.get("line", "")]
    assert len(refused) == (name != "localhost")


@pytest_twisted.ensureDeferred
async def test_a_client_that_says_goodbye_with_its_request_is_answered(tmp_path, site, way):
    """With TLS, a close_notify in the last flight ends the client's side like a half-close in the clear."""
    async with forwarder(tmp_path, way, **site.listen) as house:

        class Hasty(TLSEnd):
            def _flush(self) -> None:
                if self.secure:
                    with contextlib.suppress(ssl.SSLError):
                        self.tls.unwrap()
                super()._flush()

        client = site.client(b"question")
        client.__class__ = Hasty
        await house.client(client)
        backend = await house.east.next()
        assert await backend.until(b"question") == b"question"
        await backend.until_finished()
        backend.transport.loseConnection()
        await patient(lambda: not house.factory.sessions)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest_twisted.ensureDeferred
async def test_tls_behind(tmp_path, site, way, newest):
    """A greeting that comes with the handshake's last flight is the client's, and so is all that follows."""

    def serve() -> TLSEnd:
        return site.server(b"220 hello\r\n", newest)

    async with forwarder(tmp_path, way, serve=serve, backend=site.backend) as house:
        for _ in range(3):  # sessions with the backend may be resumed
            client, backend = await house.joined()
            assert await client.until(b"\r\n") == b"220 hello\r\n"
            client.say(b"question")
            assert await backend.until(b"question") == b"question"
            backend.say(b"answer")
            assert await client.until(b"answer") == b"answer"
            backend.finish()
            backend.transport.loseConnection()
            await client.until_finished()
            client.transport.loseConnection()
            await client.lost


@pytest_twisted.ensureDeferred
async def test_tls_on_both_sides(tmp_path, site, way):
    """Both sides' TLS, a PROXY header before the backend's, and the first bytes inside."""
    backend_block = site.backend | {"identity": "proxy-v1"}
    async with forwarder(tmp_path, way, serve=site.announced, backend=backend_block, **site.listen) as house:
        client = await house.client(site.client(b"question"))
        backend = await house.east.next()
        assert await backend.until(b"question") == b"question"
        assert backend.header.startswith(b"PROXY TCP4 127.0.0.1 ")
        backend.say(b"answer")
        assert await client.until(b"answer") == b"answer"


@DEPRECATED
@pytest.mark.parametrize(
    "place",
    [
        "tls:localhost:{0}:trustRoots={1}",
        "ssl:127.0.0.1:{0}:caCertsDir={1}:hostname=localhost",
        # Which nobody would write, but there is no reason why it should not work.
        "tls:localhost:{0}:trustRoots={1}:endpoint=tcp\\:127.0.0.1\\:{0}",
    ],
    ids=["tls", "ssl", "wrapped"],
)
@pytest_twisted.ensureDeferred
async def test_a_proxy_header_goes_before_the_endpoints_own_tls(tmp_path, site, authority, place):
    """An endpoint that does TLS by itself has the PROXY header before TLS, where servers look for it."""
    place = place.replace("{1}", str(trusted(tmp_path, authority)))
    backend_block = {"identity": "proxy-v1"}
    async with forwarder(tmp_path, serve=site.announced, place=place, backend=backend_block) as house:
        client = await house.client()
        client.say(b"question")
        backend = await house.east.next()
        assert await backend.until(b"question") == b"question"
        ours, theirs = house.port, client.transport.getHost().port
        assert backend.header == b"PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n" % (theirs, ours)
        backend.say(b"answer")
        assert await client.until(b"answer") == b"answer"


@pytest_twisted.ensureDeferred
async def test_a_backend_that_cannot_be_verified_gets_nothing(tmp_path, site):
    """A certificate for another name ends the session before a byte of it has gone there."""
    backend_block = site.backend | {"verify": "west.example.com"}
    with capturedLogs() as events:
        async with forwarder(tmp_path, serve=site.server, backend=backend_block) as house:
            client = await house.client()
            client.say(b"secret")
            backend = await house.east.next()
            await client.until_finished()
            await backend.wait_for(lambda: backend.finished or backend.reason is not None)
            assert not backend.heard
    assert any("TLS with the backend failed" in event.get("line", "") for event in events)


@pytest_twisted.ensureDeferred
async def test_the_certificate_is_chosen_by_name_and_no_protocol_agreed_to(tmp_path, site):
    """A client gets the certificate that it asks for; by ALPN it may ask for anything, and gets nothing."""
    async with forwarder(tmp_path, **site.listen) as house:
        for name in ("localhost", "mail.example.com"):
            client = await house.client(site.client(b"hello", name, ["h2", "http/1.1"]))
            await (await house.east.next()).until(b"hello")
            assert client.tls.selected_alpn_protocol() is None
            assert (("DNS", name),) == client.tls.getpeercert()["subjectAltName"]


@pytest_twisted.ensureDeferred
async def test_a_client_that_never_begins_tls_is_sent_away(tmp_path, site):
    """login_timeout bounds the handshake, and no backend is dialled for whoever does not end it."""
    async with forwarder(tmp_path, limits={"login_timeout": 0.05}, **site.listen) as house:
        client = await house.client()
        await client.wait_for(lambda: client.finished or client.reason is not None)
        assert not house.east.talks


@pytest_twisted.ensureDeferred
async def test_a_joined_client_has_all_the_time_it_wants(tmp_path):
    """login_timeout is over once the backend is there: a silent client is not sent away by it."""
    async with forwarder(tmp_path, limits={"login_timeout": 0.05}) as house:
        client, backend = await house.joined()
        (session,) = house.factory.sessions
        await patient(lambda: session._deadline is None)
        late = reactor.seconds() + 0.1
        await patient(lambda: reactor.seconds() > late)
        client.say(b"still here")
        await backend.until(b"still here")


# --- what goes wrong --------------------------------------------------------


PATIENT = {"failure_delay": 3600, "failed_logins": 1, "bad_commands": 1}
"""What would hold a client that has failed to log in."""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest_twisted.ensureDeferred
async def test_a_refused_dial_closes_the_client(tmp_path, host):
    """Without a backend the client's connection is closed at once, in good order, and the log says why."""
    port = free_port()
    backend = {"tcp": f"tcp:{host}:{port}"}
    with capturedLogs() as events:
        async with forwarder(tmp_path, backend=backend, limits=PATIENT) as house:
            client = await house.client()
            client.say(b"GET / HTTP/1.0\r\n\r\n")
            await client.until_finished()
            assert not client.heard
            client.transport.loseConnection()
            await client.end()
            assert isinstance(client.reason, ConnectionDone)
            await patient(lambda: not house.factory.sessions and len(house.factory.gate) == 0)
    (refused,) = [event["line"] for event in events if " refused: " in event.get("line", "")]
    assert "user=- " in refused
    assert "backend=east why=backend unavailable detail=cannot connect to backend east: " in refused
    assert "reason=backend unavailable" in last_line(events)


@pytest_twisted.ensureDeferred
async def test_whoever_is_one_too_many_is_closed_without_a_word(tmp_path):
    """A connection over a limit is closed, and its backend not dialled."""
    async with forwarder(tmp_path, limits={"connections": 1}) as house:
        first, backend = await house.joined()
        second = await house.client()
        await second.until_finished()
        assert not second.heard
        assert len(house.east.talks) == 1
        first.say(b"still here")
        await backend.until(b"still here")


@pytest.mark.parametrize("limit", ["idle_timeout", "session_lifetime"])
@pytest_twisted.ensureDeferred
async def test_the_limits_of_sessions_hold(tmp_path, limit):
    """A session that is silent, or old, for too long ends on both sides."""
    async with forwarder(tmp_path, limits={limit: 0.05}) as house:
        client, backend = await house.joined()
        await client.until_finished()
        await backend.until_finished()


@pytest_twisted.ensureDeferred
async def test_the_service_takes_its_sessions_along(tmp_path):
    """When mailroute stops, joined sessions end."""
    async with forwarder(tmp_path) as house:
        client, backend = await house.joined()
    await client.wait_for(lambda: client.finished or client.reason is not None)
    await backend.wait_for(lambda: backend.finished or backend.reason is not None)


# --- many -------------------------------------------------------------------


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def alive(*kinds: type) -> list[object]:
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, kinds)]


@pytest_twisted.ensureDeferred
async def test_three_hundred_at_once(tmp_path):
    """Each of 300 open connections has its own way through, and no one waits for another."""
    async with forwarder(tmp_path, limits={"connections_per_address": 0}) as house:
        pairs = []
        for number in range(300):
            client, backend = await house.joined()
            pairs.append((client, backend, b"%d." % number))
        for client, _, word in pairs:
            client.say(word)
        for _, backend, word in reversed(pairs):
            assert await backend.until(b".") == word
            backend.say(word)
        for client, _, word in pairs:
            assert await client.until(b".") == word
        for client, backend, _ in pairs:
            client.transport.loseConnection()
            backend.transport.loseConnection()
        await patient(lambda: not house.factory.sessions)


@pytest_twisted.ensureDeferred
async def test_a_crowd_is_let_in_that_comes_while_nobody_accepts(tmp_path):
    """The kernel keeps 300 connections for a listener that is busy with something else, such as this test."""
    async with forwarder(tmp_path, limits={"connections_per_address": 0}) as house:
        with contextlib.ExitStack() as crowd:
            for _ in range(300):
                crowd.enter_context(socket.create_connection(("127.0.0.1", house.port), timeout=WAIT))
            await patient(lambda: len(house.east.talks) == 300)
        await patient(lambda: all(talk.finished for talk in house.east.talks))


@pytest_twisted.ensureDeferred
async def test_a_thousand_in_a_row_leave_nothing(tmp_path):
    """After 1000 sessions no descriptor, timer or object of theirs is left."""
    async with forwarder(tmp_path) as house:

        async def visit(number: int) -> None:
            client, backend = await house.joined()
            client.say(b"hello")
            await backend.until(b"hello")
            going, staying = (client, backend) if number % 2 else (backend, client)
            going.transport.loseConnection()
            await staying.until_finished()
            staying.transport.loseConnection()
            await client.lost
            await backend.lost
            house.east.talks.clear()
            house.clients.clear()

        await visit(0)
        await patient(lambda: not house.factory.sessions)
        files, timers = descriptors(), waiting()
        for number in range(1000):
            await visit(number)
        await patient(lambda: not house.factory.sessions and len(house.factory.gate) == 0)
        assert descriptors() <= files
        assert waiting() <= timers
        assert not alive(Session, TcpDialog)
