"""mailroute on real sockets in this process: limits, bad clients, bad backends, what they leave."""

from __future__ import annotations

import base64
import contextlib
import gc
import socket
import struct
from pathlib import Path

import pytest
import pytest_twisted
from live import Backends, Talk, let_in, live, patient
from twisted.internet import reactor
from twisted.internet.endpoints import (
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    connectProtocol,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import capturedLogs, globalLogPublisher

from mailroute import frontend, proxy_client
from mailroute.backend import Attempt
from mailroute.events import Change, Farewell, Route
from mailroute.session import Session

BOB = {"bob": Route("east")}


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def reset(talk: Talk) -> None:
    """Close so that the peer gets a reset."""
    talk.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    talk.transport.abortConnection()


@pytest_twisted.ensureDeferred
async def test_a_session_from_greeting_to_logout():
    """Bytes go both ways once the backend has let the client in, and one side's end is the other's."""
    async with live(BOB) as house:
        client, backend = await house.logged_in()
        client.say(b"b SELECT INBOX\r\n")
        assert await backend.until(b"SELECT INBOX\r\n") == b"b SELECT INBOX\r\n"
        backend.say(b"b OK done\r\n")
        assert await client.until(b"done\r\n") == b"b OK done\r\n"
        backend.transport.loseConnection()
        await client.end()


@pytest.mark.parametrize("joined", [False, True])
@pytest_twisted.ensureDeferred
async def test_who_is_said_to_have_left_is_counted_out(joined):
    """When the log says that a client's session has ended, its place is free already."""
    taken = []

    def observe(event):
        if event.get("log_namespace") == "mailroute.session":
            taken.append(len(house.factory.gate))

    globalLogPublisher.addObserver(observe)
    try:
        async with live(BOB) as house:
            client = (await house.logged_in())[0] if joined else await house.greeted()
            assert len(house.factory.gate) == 1
            reset(client)
            await patient(lambda: taken)
            assert taken == [0]
    finally:
        globalLogPublisher.removeObserver(observe)


@pytest_twisted.ensureDeferred
async def test_pipelined_bytes_are_the_first_of_the_splice():
    """What follows LOGIN in the same segment reaches the backend behind the login, byte for byte."""
    async with live(BOB) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\nb SELECT INBOX\r\n\0\xff c")
        backend = await house.east.next()
        await let_in(backend)
        assert await backend.until(b"\xff c") == b"b SELECT INBOX\r\n\0\xff c"


@pytest_twisted.ensureDeferred
async def test_what_the_backend_says_behind_its_ok_reaches_the_client():
    """Bytes in the same segment as the backend's OK come behind the client's OK."""
    async with live(BOB) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        backend = await house.east.next()
        backend.say(b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hello\r\n")
        await backend.until(b"\r\n")
        backend.say(b"M1 OK [CAPABILITY IMAP4rev1] Hi\r\n* 1 EXISTS\r\n")
        assert (await client.until(b"EXISTS\r\n")).endswith(b"Hi\r\n* 1 EXISTS\r\n")


@pytest_twisted.ensureDeferred
async def test_a_client_that_sends_everything_and_shuts_its_side():
    """A client that pipelines all it has to say, then half-closes, gets every answer."""
    async with live(BOB) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob wrong\r\nb LOGIN bob secret\r\nc LOGOUT\r\n")
        client.transport.loseWriteConnection()
        first = await house.east.next()
        first.say(b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hello\r\n")
        await first.until(b"\r\n")
        first.say(b"M1 NO wrong\r\n")
        backend = await house.east.next()
        await let_in(backend)
        await backend.until(b"c LOGOUT\r\n")
        backend.say(b"* BYE\r\nc OK bye\r\n")
        backend.transport.loseConnection()
        assert (await client.end()).endswith(b"b OK [CAPABILITY IMAP4rev1] Hi\r\n* BYE\r\nc OK bye\r\n")


@pytest_twisted.ensureDeferred
async def test_the_total_is_bounded_with_a_polite_bye():
    """One connection too many gets BYE; when another leaves there is room again."""
    async with live(BOB, limits={"connections": 1}) as house:
        first = await house.greeted()
        second = await house.client()
        assert await second.end() == b"* BYE [UNAVAILABLE] Too many connections. Try again later.\r\n"
        first.transport.loseConnection()
        await first.end()
        await patient(lambda: len(house.factory.gate) == 0)
        await house.greeted()


@pytest_twisted.ensureDeferred
async def test_one_address_is_bounded():
    """One address gets its share, joined sessions counted, and no more."""
    async with live(BOB, limits={"connections_per_address": 2}) as house:
        await house.logged_in()
        await house.greeted()
        third = await house.client()
        assert await third.end() == b"* BYE [LIMIT] Too many connections from your address.\r\n"
        await patient(lambda: house.factory.turned_away == 0)


@pytest_twisted.ensureDeferred
async def test_a_byte_at_a_time_does_not_stretch_the_time_to_log_in():
    """A client that sends a byte now and then is sent away as early as one that sends nothing."""
    async with live(BOB, limits={"login_timeout": 0.3}) as house:
        client = await house.greeted()

        def drip() -> None:
            if client.reason is None:
                client.say(b"a")
                reactor.callLater(0.05, drip)

        drip()
        assert await client.end() == b"* BYE No login in time.\r\n"


@pytest.mark.parametrize(
    ("flood", "words"),
    [
        (b"x" * 100_000, b"* BYE Line or literal too long.\r\n"),
        (b"a LOGIN {99999999+}\r\n" + b"x" * 100_000, b"* BYE Line or literal too long.\r\n"),
        (b"a NOOP\r\n" * 10_000, b"* BYE Too many commands before login.\r\n"),
        (b"\0\1\2\xff\r\n" * 10_000, b"* BYE Too many bad commands.\r\n"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"* BYE This is an IMAP server.\r\n"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_floods_end_with_a_bye(flood, words):
    """Whatever passes a bound gets a polite BYE and the end."""
    async with live(BOB) as house:
        client = await house.greeted()
        client.say(flood)
        assert (await client.end()).endswith(words)
        assert not house.east.talks


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_nothing_is_let_go():
    """A client that never takes its BYE does not keep its connection."""
    async with live(BOB, limits={"login_timeout": 0.2}) as house:
        client = await house.client()
        client.transport.pauseProducing()
        await patient(lambda: len(house.factory.gate) == 0)
        client.transport.abortConnection()


@pytest.mark.parametrize("moment", ["greeting", "login", "joined"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_resets_leaves_nothing(moment):
    """A reset in any moment ends both connections, and the session is forgotten."""
    async with live(BOB) as house:
        if moment == "joined":
            client, backend = await house.logged_in()
        else:
            client = await house.greeted()
            if moment == "login":
                client.say(b"a LOGIN bob secret\r\n")
                backend = await house.east.next()
        reset(client)
        if moment != "greeting":
            await backend.end()
        await patient(lambda: len(house.factory.gate) == 0)
        assert not house.factory.sessions


CAPABLE = b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hello\r\n"
BROKEN = {
    "closes at once": (b"", b"[UNAVAILABLE]"),
    "says BYE": (b"* BYE busy\r\n", b"[UNAVAILABLE]"),
    "says BYE instead of an answer": (CAPABLE + b"* BYE busy\r\n", b"[UNAVAILABLE]"),
    "speaks another protocol": (b"220 mx.example ESMTP\r\n", b"[UNAVAILABLE]"),
    "never ends its line": (b"x" * 200_000, b"[UNAVAILABLE]"),
    "claims PREAUTH": (b"* PREAUTH [CAPABILITY IMAP4rev1] come in\r\n", b"[SERVERBUG]"),
    "offers nothing": (b"* OK [CAPABILITY IMAP4rev1 LOGINDISABLED] hm\r\n", b"[SERVERBUG]"),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest_twisted.ensureDeferred
async def test_a_backend_that_misbehaves(what):
    """Whatever a backend does instead of letting the client in, the client is told, and may try again."""
    words, code = BROKEN[what]
    async with live(BOB) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        backend = await house.east.next()
        backend.say(words)
        if what in ("closes at once", "says BYE instead of an answer"):
            backend.transport.loseConnection()
        assert (await client.until(b"\r\n")).startswith(b"a NO " + code)
        await backend.end()
        client.say(b"b LOGIN bob secret\r\n")
        await let_in(await house.east.next())
        await client.until(b"b OK")


@pytest_twisted.ensureDeferred
async def test_a_backend_that_stays_silent():
    """A backend that accepts and says nothing is given up in time, and its connection closed."""
    async with live(BOB, limits={"backend_timeout": 0.2}) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        backend = await house.east.next()
        assert (await client.until(b"\r\n")).startswith(b"a NO [UNAVAILABLE]")
        await backend.end()


@pytest_twisted.ensureDeferred
async def test_a_backend_that_is_down():
    """A backend that nobody listens on is unavailable, and the log names it."""
    async with live(BOB) as house:
        await house.east_port.stopListening()
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        assert (await client.until(b"\r\n")).startswith(b"a NO [UNAVAILABLE]")


@pytest.mark.parametrize(
    ("route", "probed"),
    [
        (Route("east"), "east"),
        (Route("east", change=Change(host="127.0.0.1")), "tcp:host=127.0.0.1:port={port} --protocol imap"),
    ],
)
@pytest.mark.parametrize("way", ["closed", "ends", "talks"])
@pytest_twisted.ensureDeferred
async def test_what_is_wrong_with_a_backend_is_told_with_what_to_do(way, route, probed):
    """The session's line names the command that finds the remedy, for the place that was dialled."""
    with capturedLogs() as logs:
        async with live({"bob": route}) as house:
            port = house.east_port.getHost().port
            client = await house.greeted()
            if way == "closed":
                await house.east_port.stopListening()
            client.say(b"a LOGIN bob secret\r\n")
            if way != "closed":
                backend = await house.east.next()
                backend.say(b"what\r\n" if way == "talks" else b"")
                backend.transport.loseConnection()
            assert (await client.until(b"\r\n")).startswith(b"a NO [UNAVAILABLE]")
    (detail,) = [event["detail"] for event in logs if "detail" in event]
    assert detail.endswith(f"; see mailroute probe {probed.format(port=port)}")


@pytest.mark.parametrize("login", ["replay", "master"])
@pytest_twisted.ensureDeferred
async def test_a_password_that_a_backend_refuses_is_not_its_fault(login, tmp_path):
    """Nothing is wrong with the backend then; with a master's it is told where that comes from."""
    (tmp_path / "secret").write_text("m4ster\n")
    master = {"login": "master", "master_user": "m", "master_password_file": str(tmp_path / "secret")}
    more = {"authenticate": "memory:bob:secret"} if login == "master" else {}
    with capturedLogs() as logs:
        async with live(BOB, listen=more, backend=master if login == "master" else {}) as house:
            client = await house.greeted()
            client.say(b"a LOGIN bob secret\r\n")
            backend = await house.east.next()
            backend.say(b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hello\r\n")
            await backend.until(b"\r\n")
            backend.say(b"M1 NO [AUTHENTICATIONFAILED] no\r\n")
            await client.until(b"a NO ")
    (detail,) = [event["detail"] for event in logs if "detail" in event]
    assert "mailroute probe" not in detail
    assert ("look at master_user" in detail) is (login == "master")


@pytest_twisted.ensureDeferred
async def test_a_backend_that_cannot_be_reached_in_time():
    """A dial that gets no answer is given up in time, and the log says that time was the reason."""
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = [socket.socket() for _ in range(4)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex(full.getsockname())
    where = f"tcp:127.0.0.1:{full.getsockname()[1]}"
    with capturedLogs() as logs:
        async with live(BOB, backend={"imap": where}, limits={"backend_timeout": 0.2}) as house:
            client = await house.greeted()
            client.say(b"a LOGIN bob secret\r\n")
            assert (await client.until(b"\r\n")).startswith(b"a NO [UNAVAILABLE]")
    (detail,) = [event["detail"] for event in logs if "detail" in event]
    assert detail == "backend east took over 0.2 s, at last connecting; see mailroute probe east"
    for one in (*waiting, full):
        one.close()


@pytest_twisted.ensureDeferred
async def test_a_backend_that_keeps_its_end_open_after_a_refusal(monkeypatch):
    """A backend that refuses and then neither reads nor closes does not keep its connection."""
    monkeypatch.setattr(proxy_client, "LINGER", 0.1)
    async with live(BOB) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob " + b"{8000+}\r\n" + b"x" * 8000 + b"\r\n")
        backend = await house.east.next()
        backend.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        backend.say(b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hello\r\n")
        await backend.until(b"AUTHENTICATE PLAIN\r\n")
        backend.say(b"M1 NO no\r\n")
        await client.until(b"a NO ")
        await backend.end()


@pytest_twisted.ensureDeferred
async def test_a_joined_session_can_be_looked_at_and_ended():
    """Who, where, since when and how many bytes can be told at any time, and both ends closed at a word."""
    async with live(BOB) as house:
        before = reactor.seconds()
        client, backend = await house.logged_in()
        (session,) = house.factory.sessions
        answer = len(b"a OK [CAPABILITY IMAP4rev1] Hi\r\n")
        for count in (1, 2):
            client.say(b"b NOOP\r\n")
            await backend.until(b"b NOOP\r\n")
            backend.say(b"b OK\r\n")
            await client.until(b"b OK\r\n")
            known = session.known()
            assert (known.bytes_in, known.bytes_out) == (8 * count, answer + 6 * count)
        assert (known.user, known.backend) == ("bob", "east")
        assert known.client.source.port == client.transport.getHost().port
        assert before <= known.started <= reactor.seconds()
        session.leave(Farewell.SHUTDOWN)
        await client.end()
        await backend.end()
        assert not house.factory.sessions


@pytest_twisted.ensureDeferred
async def test_stopping_says_bye_and_ends_joined_sessions():
    """A shutdown is polite to who is not logged in, and closes both ends of who is."""
    async with live(BOB) as house:
        waiting = await house.greeted()
        client, backend = await house.logged_in()
        client.say(b"b NOOP\r\n")
        await backend.until(b"b NOOP\r\n")
        with capturedLogs() as logs:
            await house.running.stopService()
        (event,) = [event for event in logs if event.get("user") == "bob"]
        assert (event["bytes_in"], event["reason"]) == (8, "shutting down")
        assert await waiting.end() == b"* BYE [UNAVAILABLE] Shutting down. Connect again.\r\n"
        await client.end()
        await backend.end()


@pytest.mark.parametrize("version", ["proxy-v1", "proxy-v2"])
@pytest_twisted.ensureDeferred
async def test_the_proxy_header_comes_first(version):
    """With a PROXY identity the backend hears the client's address before anything else."""
    async with live(BOB, backend={"identity": version}) as house:
        client = await house.greeted()
        port = client.transport.getHost().port
        client.say(b"a LOGIN bob secret\r\n")
        backend = await house.east.next()
        if version == "proxy-v1":
            line = f"PROXY TCP4 127.0.0.1 127.0.0.1 {port} {house.port}\r\n".encode()
            assert await backend.until(b"\r\n") == line
        else:
            assert await backend.until(struct.pack("!HH", port, house.port)) == (
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x1f\x7f\0\0\1\x7f\0\0\1"
                + struct.pack("!HH", port, house.port)
            )


@pytest_twisted.ensureDeferred
async def test_a_thousand_sessions_leave_nothing():
    """Logins that succeed, fail, stop half-way and break leave no descriptor, timer or object."""
    async with live(BOB, limits={"connections_per_address": 0}) as house:
        await house.logged_in()
        for talk in list(house.east.talks):
            talk.transport.loseConnection()
        await patient(lambda: len(house.factory.gate) == 0)
        before = descriptors(), len(reactor.getDelayedCalls())
        for number in range(250):
            client, backend = await house.logged_in()
            (client if number % 2 else backend).transport.loseConnection()
            other = await house.greeted()
            other.say(b"a LOGIN nobody x\r\nb LOGOUT\r\n")
            third = await house.greeted()
            reset(third)
            fourth = await house.greeted()
            fourth.say(b"a LOGIN bob secret\r\n")
            await house.east.next()
            fourth.transport.abortConnection()
            for talk in (client, backend, other, third, fourth):
                await talk.end()
        await patient(lambda: len(house.factory.gate) == 0)
        await patient(lambda: all(talk.reason is not None for talk in house.east.talks))
        await patient(lambda: (descriptors(), len(reactor.getDelayedCalls())) <= before)
        gc.collect()
        assert not [thing for thing in gc.get_objects() if isinstance(thing, Session)]


@pytest_twisted.ensureDeferred
async def test_a_login_leaves_no_cycles():
    """A login that is over needs no garbage collector: thousands must not pile up until it comes."""
    async with live(BOB) as house:
        gc.collect()
        gc.disable()
        try:
            client, backend = await house.logged_in()
            other = await house.greeted()
            other.say(b"a LOGIN bob wrong\r\n")
            refusing = await house.east.next()
            refusing.say(b"* BYE not now\r\n")
            await other.until(b"a NO ")
            refusing.transport.loseConnection()
            await refusing.end()
            await patient(lambda: not connecting())
            for talk in (client, backend, other):
                talk.transport.loseConnection()
                await talk.end()
        finally:
            gc.enable()


def connecting() -> list[object]:
    return [thing for thing in gc.get_objects() if isinstance(thing, proxy_client.ProxyClient | Attempt)]


@pytest_twisted.ensureDeferred
async def test_out_of_descriptors_recovers():
    """When descriptors run out new clients fail, old sessions go on, and later all is well."""
    resource = pytest.importorskip("resource")
    async with live(BOB, limits={"connections_per_address": 0}) as house:
        client, backend = await house.logged_in()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        waiting = await house.greeted()
        late = socket.socket()  # which has its descriptor before they run out
        hoard = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 20, hard))
            with contextlib.suppress(OSError):
                while True:
                    hoard.append(Path("/dev/null").open())  # noqa: SIM115 - closed below
            waiting.say(b"a LOGIN bob secret\r\n")
            assert (await waiting.until(b"\r\n")).startswith(b"a NO [UNAVAILABLE]")
            late.connect(("127.0.0.1", house.port))
            client.say(b"b NOOP\r\n")
            await backend.until(b"b NOOP\r\n")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for one in (*hoard, late):
                one.close()
        await house.logged_in()


class _Greeter(Protocol):
    def connectionMade(self) -> None:
        self.transport.write(b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] clear\r\n")


@pytest_twisted.ensureDeferred
async def test_no_credentials_reach_a_backend_without_tls():
    """A backend that should have TLS and has none hears STARTTLS and nothing else."""
    heard = bytearray()

    class Server(_Greeter):
        def dataReceived(self, data: bytes) -> None:
            heard.extend(data)
            self.transport.write(b"M1 BAD what?\r\n")

    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory.forProtocol(Server))
    try:
        where = f"tcp:127.0.0.1:{port.getHost().port}"
        async with live(BOB, backend={"imap": where, "security": "starttls"}) as house:
            client = await house.greeted()
            client.say(b"a LOGIN bob secret\r\n")
            assert (await client.until(b"\r\n")).startswith(b"a NO [SERVERBUG]")
    finally:
        await port.stopListening()
    assert bytes(heard) == b"M1 STARTTLS\r\n"


@pytest.mark.parametrize("login", ["master", "none"])
@pytest_twisted.ensureDeferred
async def test_passwords_checked_here(tmp_path, login):
    """With a password file only who passes gets in, by a master user or a backend that needs no login."""
    (tmp_path / "passwd").write_text("bob:secret\n")
    (tmp_path / "master").write_text("m4ster\n")
    backend = {"login": login}
    if login == "master":
        backend |= {"master_user": "root", "master_password_file": "master"}
    async with live(BOB, listen={"authenticate": "file:passwd"}, backend=backend, folder=tmp_path) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob wrong\r\n")
        assert (await client.until(b"\r\n")).startswith(b"a NO [AUTHENTICATIONFAILED]")
        assert not house.east.talks
        client.say(b"b LOGIN bob secret\r\n")
        talk = await house.east.next()
        if login == "master":
            talk.say(b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hello\r\n")
            message = base64.b64encode(b"bob\0root\0m4ster")
            assert await talk.until(b"\r\n") == b"M1 AUTHENTICATE PLAIN " + message + b"\r\n"
            talk.say(b"M1 OK [CAPABILITY IMAP4rev1] Hi\r\n")
        else:
            talk.say(b"* PREAUTH [CAPABILITY IMAP4rev1] you are bob\r\n")
        await client.until(b"b OK [CAPABILITY IMAP4rev1]")
        client.say(b"c NOOP\r\n")
        await talk.until(b"c NOOP\r\n")


@pytest_twisted.ensureDeferred
async def test_unix_sockets_on_both_sides(tmp_path):
    """A client and a backend on UNIX sockets have no addresses, and are joined all the same."""
    east = Backends()
    port = await UNIXServerEndpoint(reactor, str(tmp_path / "east")).listen(east)
    listen = {"endpoint": f"unix:{tmp_path / 'front'}"}
    backend = {"imap": f"unix:{tmp_path / 'east'}", "identity": "proxy-v1"}
    try:
        async with live(BOB, listen=listen, backend=backend, limits={"connections_per_address": 1}) as house:
            for _ in range(2):
                client = await connectProtocol(UNIXClientEndpoint(reactor, str(tmp_path / "front")), Talk())
                client.say(b"a LOGIN bob secret\r\n")
                talk = await east.next()
                assert await talk.until(b"\r\n") == b"PROXY UNKNOWN\r\n"
                await let_in(talk)
                await client.until(b"a OK")
            assert len(house.factory.gate) == 2
    finally:
        await port.stopListening()
    for talk in east.talks:
        await talk.end()


@pytest_twisted.ensureDeferred
async def test_a_flood_of_connections_is_cut_off(monkeypatch):
    """Beyond the polite answers, connections over the limit are just closed, and nothing of them is kept."""
    monkeypatch.setattr(frontend, "MAX_TURNED_AWAY", 0)
    async with live(BOB, limits={"connections": 1}) as house:
        await house.greeted()
        second = await house.client()
        assert await second.end() == b""
        assert len(house.factory.gate) == 1
        assert house.factory.turned_away == 0


@pytest_twisted.ensureDeferred
async def test_ipv4_clients_of_a_dual_stack_listener():
    """An IPv4 client of a dual-stack listener is its IPv4 address for limits, log and backend."""
    listen = {"endpoint": r"tcp6:0:interface=\:\:"}
    async with live(BOB, listen=listen, backend={"identity": "proxy-v1"}) as house:
        client = await house.greeted()
        (session,) = house.factory.sessions
        assert session.record.client.source.host == "127.0.0.1"
        client.say(b"a LOGIN bob secret\r\n")
        backend = await house.east.next()
        assert (await backend.until(b"\r\n")).startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
