"""Listeners behind a proxy that sends PROXY headers: on real sockets in this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from live import Backends, Talk, ended, let_in, patient, started
from servers.certificates import Authority
from twisted.internet import reactor
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    connectProtocol,
    serverFromString,
)
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.logger import LogLevel, capturedLogs
from zope.interface import implementer

from mailroute import config, relayed
from mailroute.events import Address, Farewell, Route
from mailroute.testing import FakeRouter
from mailroute.wire.proxy_header import SIGNATURE, version_1, version_2

LOOPBACK = ["127.0.0.0/8"]
SOURCE, DESTINATION = ("203.0.113.9", 40000), ("198.51.100.1", 143)
V1, V2 = version_1(SOURCE, DESTINATION), version_2(SOURCE, DESTINATION, unique_id="an id")
LOCAL = SIGNATURE + b"\x20\0\0\0"
UNKNOWN = version_1(None, None)
OVER_UNIX = SIGNATURE + b"\x21\x31\0\xd8" + bytes(216)


def of(host: str) -> bytes:
    """Return the header of a client at this address."""
    return version_2((host, 40000), ("2001:db8::1" if ":" in host else "198.51.100.1", 143))


class House:
    """A running mailroute with one listener, and the backend that the test plays."""

    def __init__(self, listener: Any, east: Backends, router: FakeRouter) -> None:
        self.listener = listener
        self.factory: Any = listener.factory
        self.east = east
        self.router = router
        self.clients: list[Talk] = []

    async def client(self, first: bytes = b"", end: Talk | None = None) -> Any:
        """Connect, and say this."""
        where = self.listener._port.getHost()
        endpoint = (
            TCP4ClientEndpoint(reactor, "127.0.0.1", where.port)
            if hasattr(where, "port")
            else UNIXClientEndpoint(reactor, where.name.decode())
        )
        talk = Plain() if end is None else end
        await connectProtocol(endpoint, talk)
        self.clients.append(talk)
        talk.say(first)
        return talk

    async def greeted(self, header: bytes) -> Any:
        """Connect with a header, and hear the greeting."""
        talk = await self.client(header)
        await talk.until(b"\r\n")
        return talk

    @property
    def session(self) -> Any:
        """The only session."""
        (session,) = self.factory.sessions
        return session

    def empty(self) -> bool:
        """Tell whether nobody is counted, and nobody waits."""
        return not (len(self.factory.gate) or self.factory.turned_away or self.factory._waiting)


class Plain(Talk):
    """A client on a transport of any kind."""

    def connectionMade(self) -> None:
        pass


@contextlib.asynccontextmanager
async def behind(
    protocol: str = "imap",
    *,
    listen: dict[str, Any] | None = None,
    backend: dict[str, Any] | None = None,
    **tables: Any,
) -> AsyncIterator[House]:
    """Run mailroute with a listener for a protocol that takes headers from this machine."""
    east = Backends()
    east_port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(east)
    router = FakeRouter({"bob": Route("east")})
    usual = {
        "protocol": protocol,
        "endpoint": "tcp:0:interface=127.0.0.1",
        "security": "none",
        "proxy_from": LOOPBACK,
    } | ({"backend": "east"} if protocol == "tcp" else {})
    place = {protocol: f"tcp:127.0.0.1:{east_port.getHost().port}", "security": "none", "identity": "none"}
    settings = config.build(
        reactor,
        listen=[usual | (listen or {})],
        backend={"east": place | (backend or {})},
        route=[router],
        **tables,
    )
    running, listener = started(settings)
    house = House(listener, east, router)
    try:
        yield house
    finally:
        await ended(running, [east_port], [*east.talks, *house.clients])


@pytest.fixture(params=["hub", "twisted"], autouse=True)
def transports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose transports clients' connections have."""
    if request.param == "twisted":
        monkeypatch.setattr("mailroute.sockets.endpoints.suits", lambda _: False)
    return request.param


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def trust(authority: Authority) -> Any:
    return trustRootFromCertificates([Certificate.loadPEM(authority.file.read_bytes())])


@pytest.fixture
def certificate(authority: Authority) -> dict[str, str]:
    issued = authority.issue("localhost")
    return {"chain": str(issued.chain), "key": str(issued.key)}


def logged(events: Any) -> list[str]:
    """Return what mailroute has logged at info or above."""
    lines = [
        event.get("line") or event["log_format"].format(**event)
        for event in events
        if event["log_namespace"].startswith("mailroute") and event["log_level"] >= LogLevel.info
    ]
    return [line for line in lines if not line.startswith(("listening: ", "the limit of open files"))]


# --- what a header does -----------------------------------------------------


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("together", [True, False])
@pytest_twisted.ensureDeferred
async def test_the_address_in_the_header_is_the_clients(header, together):
    """Log, router and session have it; a command in the header's segment is the client's first."""
    login = b"a LOGIN bob secret\r\n"
    with capturedLogs() as events:
        async with behind() as house:
            client = await house.client(header + login if together else header)
            await client.until(b"ready.\r\n")
            if not together:
                client.say(login)
            backend = await house.east.next()
            await let_in(backend)
            await client.until(b"a OK [CAPABILITY IMAP4rev1] Hi\r\n")
            (asked,) = house.router.asked
            assert asked.client.source == Address(*SOURCE)
            assert asked.client.destination == Address(*DESTINATION)
            client.transport.loseConnection()
            await backend.end()
            await patient(house.empty)
    (line,) = logged(events)
    assert "client=203.0.113.9:40000 " in line


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
@pytest_twisted.ensureDeferred
async def test_tls_begins_behind_the_header(header, certificate, trust):
    """On a TLS listener the header comes in the clear, with the ClientHello in its segment or not."""
    async with behind(listen={"security": "tls"}, certificate=[certificate]) as house:
        for together in (True, False):
            client = await house.client(b"", Talk())
            if together:
                client.say(header)
            else:
                for byte in header:
                    client.transport.getHandle().send(bytes([byte]))
                await patient(lambda: house.factory.sessions)
            await client.starttls(optionsForClientTLS("localhost", trustRoot=trust))
            await client.until(b"ready.\r\n")
            assert house.session.record.client.source == Address(*SOURCE)
            assert house.session.record.client.tls == "TLSv1.3"
            client.transport.loseConnection()
            await client.end()
            await patient(house.empty)


@pytest_twisted.ensureDeferred
async def test_starttls_behind_a_header(certificate, trust):
    """STARTTLS is as without a header, and what is smuggled in behind it is refused."""
    async with behind(listen={"security": "starttls"}, certificate=[certificate]) as house:
        client = await house.client(V2 + b"a STARTTLS\r\n", Talk())
        await client.until(b"Begin TLS now.\r\n")
        await client.starttls(optionsForClientTLS("localhost", trustRoot=trust))
        client.say(b"b LOGIN bob secret\r\n")
        await let_in(await house.east.next())
        await client.until(b"b OK")
        smuggler = await house.client(V2 + b"a STARTTLS\r\nb LOGIN bob secret\r\n")
        assert b"BYE Nothing may follow STARTTLS" in await smuggler.end()
        assert len(house.east.talks) == 1


GREETINGS = {
    "imap": b"* OK ",
    "pop3": b"+OK ",
    "managesieve": b'"IMPLEMENTATION" ',
    "submission": b"220 ",
    "lmtp": b"220 ",
    "smtp": b"220 ",
}


@pytest.mark.parametrize("protocol", GREETINGS)
@pytest_twisted.ensureDeferred
async def test_nobody_is_greeted_before_the_header_is_there(protocol):
    """Whatever the protocol, nothing is said before the header's last byte has come."""
    async with behind(protocol) as house:
        for at in (0, 1, 5, 12, 15, 16, len(V2) - 1):
            client = await house.client()
            await patient(lambda: house.factory._waiting)
            (waiting,) = house.factory._waiting
            if at:
                client.say(V2[:at])
                await patient(lambda at=at, waiting=waiting: len(waiting._read) == at)
            assert not client.heard
            assert not house.factory.sessions
            client.say(V2[at:])
            assert (await client.until(b"\r\n")).startswith(GREETINGS[protocol])
            assert house.session.record.client.source == Address(*SOURCE)
            client.transport.loseConnection()
            await patient(house.empty)


@pytest_twisted.ensureDeferred
async def test_forwarding_begins_behind_the_header():
    """No backend is dialled before the header; what came with it gets there whole, once and in order."""
    async with behind("tcp") as house:
        client = await house.client(V1[:-1])
        await patient(lambda: house.factory._waiting)
        assert not house.east.talks
        client.say(b"\n" + b"question" * 500 + b".")
        backend = await house.east.next()
        client.say(b"more!")
        assert await backend.until(b"more!") == b"question" * 500 + b".more!"
        backend.say(b"answer")
        await client.until(b"answer")


@pytest.mark.parametrize("security", ["none", "tls"])
@pytest_twisted.ensureDeferred
async def test_a_request_and_the_end_behind_the_header(security, certificate, trust):
    """A client that has said all it wants along with the header is answered all the same."""
    async with behind("tcp", listen={"security": security}, certificate=[certificate]) as house:
        if security == "tls":
            client = await house.client(V2, Talk())
            await client.starttls(optionsForClientTLS("localhost", trustRoot=trust))
            client.say(b"question")
        else:
            client = await house.client(V2 + b"question", Ending())
            client.transport.protocol = client  # the endpoint's wrapper would keep half-closes to itself
            client.transport.loseWriteConnection()
        backend = await house.east.next()
        await backend.until(b"question")
        backend.say(b"answer")
        backend.transport.loseConnection()
        await client.until(b"answer")


@implementer(IHalfCloseableProtocol)
class Ending(Plain):
    """A client that may end its side first."""

    def readConnectionLost(self) -> None:
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2"])
@pytest_twisted.ensureDeferred
async def test_the_header_is_handed_on(identity):
    """A backend that takes headers gets one with the client's own address and the one it connected to."""
    async with behind("tcp", backend={"identity": identity}) as house:
        await house.client(V1 + b"question")
        backend = await house.east.next()
        heard = await backend.until(b"question")
        wanted = V1 if identity == "proxy-v1" else version_2(SOURCE, DESTINATION)[16:28]
        assert wanted in heard
        assert heard.count(b"question") == 1


@pytest.mark.parametrize("second", [version_1, version_2])
@pytest_twisted.ensureDeferred
async def test_a_second_header_is_the_clients(second):
    """Only the first header is one: whoever sends another behind it is sent away, and stays who it is."""
    with capturedLogs() as events:
        async with behind() as house:
            client = await house.greeted(V1)
            client.say(second(("192.0.2.66", 1), ("192.0.2.1", 2)) + b"a LOGIN bob secret\r\n")
            assert (await client.end()).endswith(b"* BYE No PROXY header is taken from your address.\r\n")
            assert not house.east.talks
    (line,) = logged(events)
    assert "client=203.0.113.9:40000 " in line


@pytest_twisted.ensureDeferred
async def test_an_ipv4_address_in_the_clothes_of_ipv6():
    """A mapped address in a header is the IPv4 address that it stands for."""
    async with behind() as house:
        await house.greeted(version_2(("::ffff:203.0.113.9", 40000), ("::ffff:198.51.100.1", 143)))
        assert house.session.record.client.source == Address(*SOURCE)
        assert house.session.record.client.destination == Address(*DESTINATION)


# --- from where it is taken -------------------------------------------------


@pytest.mark.parametrize("proxies", [[], ["192.0.2.1"]], ids=["nobody's", "another's"])
@pytest.mark.parametrize("header", [V1, UNKNOWN, V2, LOCAL], ids=["v1", "unknown", "v2", "local"])
@pytest.mark.parametrize("protocol", GREETINGS)
@pytest_twisted.ensureDeferred
async def test_a_header_from_elsewhere_is_refused(protocol, header, proxies):
    """Whoever sends one without leave is sent away in any protocol, and the log says what to look at."""
    with capturedLogs() as events:
        async with behind(protocol, listen={"proxy_from": proxies}) as house:
            client = await house.client(header)
            assert b"No PROXY header is taken from your address" in await client.end()
            await patient(house.empty if proxies else lambda: not len(house.factory.gate))
    (line,) = logged(events)
    assert "client=127.0.0.1:" in line
    assert "a PROXY header, and its address is not in this listener's proxy_from" in line


@pytest.mark.parametrize("proxies", [[], ["192.0.2.1"]], ids=["nobody's", "another's"])
@pytest.mark.parametrize("protocol", ["imap", "tcp"])
@pytest.mark.parametrize("header", [V1, UNKNOWN, V2, LOCAL], ids=["v1", "unknown", "v2", "local"])
@pytest_twisted.ensureDeferred
async def test_a_header_from_elsewhere_before_tls(header, protocol, proxies, certificate):
    """Where TLS begins with the first byte a header fails in it, and the log says what to look at."""
    listen = {"security": "tls", "proxy_from": proxies}
    with capturedLogs() as events:
        async with behind(protocol, listen=listen, certificate=[certificate]) as house:
            client = await house.client(header)
            await client.end()
            await patient(house.empty if proxies else lambda: not len(house.factory.gate))
            assert not house.east.talks
    (line,) = logged(events)
    assert "client=127.0.0.1:" in line
    assert "if it is a proxy that sends a PROXY header, name it in this listener's proxy_from" in line


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
@pytest_twisted.ensureDeferred
async def test_a_header_from_elsewhere_is_not_honoured(header):
    """Who is not in proxy_from is greeted at once; its header is no command, and its address its own."""
    with capturedLogs() as events:
        async with behind(listen={"proxy_from": ["192.0.2.0/24", "2001:db8::/32", "unix"]}) as house:
            client = await house.client()
            await client.until(b"ready.\r\n")
            client.say(header)
            await client.wait_for(lambda: b" BAD " in client.heard or b"* BYE " in client.heard)
            client.transport.loseConnection()
            await patient(house.empty)
    (line,) = logged(events)
    assert "client=127.0.0.1:" in line


@pytest.mark.parametrize(
    "said",
    [
        b"a LOGIN bob secret\r\n",
        b"\x16\3\1\2\0\1\0",
        b"PROXY TCP4 203.0.113.9 198.51.100.1 4 x\r\n",
        b"PROXY " + b"x" * 200,
        SIGNATURE + b"\x21\x11\xff\xff",
        V2[:14] + b"\0\x0d" + V2[16:28] + b"\xffa LOGIN bob secret\r\n",
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_connection_from_a_proxy_without_a_proper_header_is_closed(said):
    """Nothing is said to it and nothing of it is run; the log says from where, and what to do."""
    with capturedLogs() as events:
        async with behind() as house:
            client = await house.client(said)
            assert await client.end() == b""
            await patient(house.empty)
            assert not house.east.talks
    (line,) = logged(events)
    assert line.startswith("no PROXY header from 127.0.0.1:")
    assert 'on "imap tcp:0:interface=127.0.0.1": it' in line
    assert line.endswith("; have one sent (send-proxy-v2), or take that address out of proxy_from")
    assert "bob" not in line


@pytest.mark.parametrize("drips", [False, True])
@pytest.mark.parametrize("bound", ["HEADER_TIMEOUT", "login_timeout"])
@pytest_twisted.ensureDeferred
async def test_a_header_that_never_ends(monkeypatch, bound, drips):
    """A header has its own time, or that of a login if it is shorter, however it drips in."""
    limits = {"login_timeout": 0.25} if bound == "login_timeout" else {"login_timeout": 0}
    if bound == "HEADER_TIMEOUT":
        monkeypatch.setattr(relayed, "HEADER_TIMEOUT", 0.25)
    with capturedLogs() as events:
        async with behind(limits=limits) as house:
            client = await house.client(b"\r")

            def drip(rest: bytes) -> None:
                if client.reason is None and rest:
                    client.say(rest[:1])
                    reactor.callLater(0.05, drip, rest[1:])

            if drips:
                drip((SIGNATURE + b"\x21\0\x0f\0" + bytes(1000))[1:])
            assert await client.end() == b""
            await patient(house.empty)
    (line,) = logged(events)
    assert "it has not come within 0.25 s" in line


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_behind_a_proxy(tmp_path: Path):
    """With "unix" whoever comes over a UNIX socket has to bring a header; so may one who has come by one."""
    endpoint = f"unix:{tmp_path}/imap"
    async with behind(listen={"endpoint": endpoint, "proxy_from": ["unix"]}) as house:
        client = await house.greeted(V1)
        assert house.session.record.client.source == Address(*SOURCE)
        client.transport.loseConnection()
        await patient(house.empty)
        assert await (await house.client(b"a NOOP\r\n")).end() == b""
        await patient(house.empty)
        await house.greeted(OVER_UNIX)
        assert house.session.record.client.source is None


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL")  # Twisted does it
@pytest_twisted.ensureDeferred
async def test_an_endpoint_object_that_begins_tls(certificate):
    """Where a header could only come inside TLS, nobody is taken for somebody else: all are sent away."""
    text = f"ssl:0:interface=127.0.0.1:privateKey={certificate['key']}:certKey={certificate['chain']}"
    with capturedLogs() as events:
        async with behind(listen={"endpoint": serverFromString(reactor, text)}) as house:
            client = await house.client(V1)
            assert await client.end() == b""
            await patient(house.empty)
    (line,) = logged(events)
    assert "the endpoint has begun TLS" in line


# --- limits -----------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_address_in_the_header_counts():
    """Each client has its own share, though all come from one proxy; who is one too many is told politely."""
    async with behind(limits={"connections_per_address": 1}) as house:
        first = await house.greeted(of("203.0.113.1"))
        await house.greeted(of("203.0.113.2"))
        await house.greeted(of("2001:db8:1::1"))
        for header in (
            of("203.0.113.1"),
            of("2001:db8:1::2"),
            version_1(("::ffff:203.0.113.2", 1), ("::1", 2)),
        ):
            again = await house.client(header)
            assert await again.end() == b"* BYE [LIMIT] Too many connections from your address.\r\n"
        first.transport.loseConnection()
        await patient(lambda: len(house.factory.gate) == 2)
        await house.greeted(of("203.0.113.1"))


@pytest_twisted.ensureDeferred
async def test_a_joined_session_counts_by_the_address_in_the_header():
    """What is counted in by the header's address is counted out by it, after a login too."""
    async with behind(limits={"connections_per_address": 1}) as house:
        client = await house.greeted(V2)
        client.say(b"a LOGIN bob secret\r\n")
        backend = await house.east.next()
        await let_in(backend)
        await client.until(b"a OK")
        assert (await (await house.client(V2)).end()).startswith(b"* BYE [LIMIT]")
        backend.transport.loseConnection()
        await client.end()
        await patient(house.empty)
        assert not house.factory.gate._by_network
        await house.greeted(V2)


@pytest.mark.parametrize(
    "header", [LOCAL, UNKNOWN, SIGNATURE + b"\x21\0\0\0"], ids=["local", "unknown", "v2"]
)
@pytest_twisted.ensureDeferred
async def test_the_proxys_own_address_has_no_limit(header):
    """Connections that stand for nobody known have the proxy's address, and are only counted in all."""
    async with behind(limits={"connections_per_address": 1, "connections": 3}) as house:
        for _ in range(3):
            await house.greeted(header)
        assert {session.record.client.source.host for session in house.factory.sessions} == {"127.0.0.1"}
        assert (await (await house.client(header)).end()).startswith(b"* BYE [UNAVAILABLE] Too many")
        assert not house.factory.gate._by_network


@pytest_twisted.ensureDeferred
async def test_connections_without_a_header_are_bounded(monkeypatch):
    """Who has not said whose it is counts as well; of those too many a few may, and are told politely."""
    monkeypatch.setattr(relayed, "MAX_TURNED_AWAY", 2)
    async with behind(limits={"connections": 2}) as house:
        silent = [await house.client() for _ in range(2)]
        await patient(lambda: len(house.factory.gate) == 2)
        late = await house.client(V2)
        assert await late.end() == b"* BYE [UNAVAILABLE] Too many connections. Try again later.\r\n"
        await patient(lambda: not house.factory.turned_away)
        more = [await house.client() for _ in range(2)]
        await patient(lambda: house.factory.turned_away == 2)
        assert await (await house.client(V2)).end() == b""
        for talk in (*silent, *more):
            talk.transport.loseConnection()
            await talk.end()
        await patient(house.empty)
        await house.greeted(V2)


@pytest_twisted.ensureDeferred
async def test_no_descriptor_is_left_for_the_backend(monkeypatch):
    """Where descriptors have run out a client behind a proxy is told so, behind its header, as any other."""
    async with behind() as house:
        monkeypatch.setattr(house.factory.descriptors, "keep", lambda _: None)
        client = await house.client(V2)
        assert await client.end() == b"* BYE [UNAVAILABLE] Too many connections. Try again later.\r\n"
        await patient(house.empty)


# --- health checks, and ends ------------------------------------------------


@pytest.mark.parametrize("protocol", ["imap", "lmtp", "tcp"])
@pytest.mark.parametrize("said", [b"", LOCAL, UNKNOWN])
@pytest.mark.parametrize("how", ["loseConnection", "abortConnection"])
@pytest_twisted.ensureDeferred
async def test_a_health_check_leaves_no_line(protocol, said, how):
    """A proxy that looks whether anybody is there, with a header or without, is not worth a line."""
    with capturedLogs() as events:
        async with behind(protocol) as house:
            made = house.factory.made
            client = await house.client(said)
            if said and protocol != "tcp":
                await client.until(b"\r\n")
            elif said:
                await house.east.next()
            await patient(lambda: house.factory.made > made)
            getattr(client.transport, how)()
            await client.end()
            await patient(house.empty)
    assert not logged(events)


@pytest_twisted.ensureDeferred
async def test_a_header_that_names_its_own_connection():
    """HAProxy's checks with version 1 say that they come from where they do: they stand for nobody else."""
    with capturedLogs() as events:
        async with behind(limits={"connections_per_address": 1}) as house:
            for _ in range(2):
                client = await house.client()
                here, there = client.transport.getHost(), client.transport.getPeer()
                client.say(version_1((here.host, here.port), (there.host, there.port)))
                await client.until(b"ready.\r\n")
            for client in house.clients:
                client.transport.loseConnection()
            await patient(house.empty)
    assert not logged(events)


@pytest_twisted.ensureDeferred
async def test_a_health_check_that_logs_in_leaves_its_lines():
    """A check that does more than to look is a session as any other, from the proxy's address."""
    with capturedLogs() as events:
        async with behind() as house:
            client = await house.client(LOCAL + b"a LOGIN bob secret\r\n")
            backend = await house.east.next()
            await let_in(backend)
            await client.until(b"a OK")
            client.transport.loseConnection()
            await backend.end()
            await patient(house.empty)
    (line,) = logged(events)
    assert "user=bob client=127.0.0.1:" in line


@pytest_twisted.ensureDeferred
async def test_a_connection_that_ends_within_its_header():
    """Half a header and then the end is a mistake of somebody's, and the log says so."""
    with capturedLogs() as events:
        async with behind() as house:
            client = await house.client(V1[:-1])
            await patient(lambda: [one for one in house.factory._waiting if one._read])
            client.transport.loseConnection()
            await patient(house.empty)
    (line,) = logged(events)
    assert "the connection has ended before its end" in line


@pytest_twisted.ensureDeferred
async def test_whoever_waits_is_closed_when_mailroute_ends():
    """A connection whose header has not come does not outlive the listener."""
    async with behind() as house:
        client = await house.client(V1[:-1])
        await patient(lambda: house.factory._waiting)
        house.factory.leave(Farewell.SHUTDOWN)
        assert house.empty()
        assert await client.end() == b""


@pytest_twisted.ensureDeferred
async def test_a_dual_stack_listener_behind_an_ipv4_proxy():
    """A proxy that comes by IPv4 to an IPv6 socket is found in its IPv4 network."""
    endpoint = r"tcp6:0:interface=\:\:"
    async with behind(listen={"endpoint": endpoint, "proxy_from": ["127.0.0.1"]}) as house:
        await house.greeted(V2)
        assert house.session.record.client.source == Address(*SOURCE)
