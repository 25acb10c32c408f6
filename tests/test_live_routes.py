"""What a route may say beside a backend and a name, on real sockets."""

import socket
import threading
from base64 import b64encode

import pytest
import pytest_twisted
from live import WAIT, live, patient
from twisted.internet import reactor
from twisted.internet.error import DNSLookupError
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from mailroute import places
from mailroute.config import endpoints
from mailroute.events import Change, Identity, Method, Route, Security
from mailroute.sources import hosts
from mailroute.sources.hosts import Hosts
from mailroute.wire import sasl

GREETING = b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR ID] hello\r\n"


def dead():
    """Return an endpoint where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp:127.0.0.1:{probe.getsockname()[1]}"


async def logs_in(house, wanted, greeting=GREETING):
    """Log bob in, and hold the backend to the message that it should get."""
    client = await house.greeted()
    client.say(b"a LOGIN bob secret\r\n")
    backend = await house.east.next()
    backend.say(greeting)
    await backend.until(b" AUTHENTICATE PLAIN " + b64encode(wanted) + b"\r\n")
    backend.say(b"M1 OK [CAPABILITY IMAP4rev1] Hi\r\n")
    assert (await client.until(b"\r\n")).startswith(b"a OK")
    client.say(b"b NOOP\r\n")
    await backend.until(b"b NOOP\r\n")
    return client, backend


OWN = sasl.plain(b"bob", b"secret", b"")


@pytest_twisted.ensureDeferred
async def test_a_dead_backend_gives_way_to_the_next():
    """Nobody listens at the first: the client gets in at the second, and the log says who took its place."""
    west = {"imap": dead(), "security": "none"}
    with capturedLogs() as logs:
        async with live({"bob": Route("west", others=("east",))}, others={"west": west}) as house:
            client, _ = await logs_in(house, OWN)
            client.transport.loseConnection()
            await patient(lambda: any("bytes_in" in event for event in logs))
    said = [event for event in logs if event.get("following")]
    assert [(event["backend"], event["following"]) for event in said] == [("west", "east")]
    (ended,) = [event for event in logs if "bytes_in" in event]
    assert ended["backend"] == "east"


@pytest_twisted.ensureDeferred
async def test_a_silent_backend_gives_way_to_the_next(monkeypatch):
    """The first takes the connection and says nothing: it is given up, long before its whole time."""
    monkeypatch.setattr(places, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        west = {"imap": f"tcp:127.0.0.1:{silent.getsockname()[1]}", "security": "none"}
        async with live({"bob": Route("west", others=("east",))}, others={"west": west}) as house:
            await logs_in(house, OWN)
            taken, _ = silent.accept()
            with taken, pytest.raises(ConnectionResetError):
                taken.recv(1)


@pytest_twisted.ensureDeferred
async def test_a_slow_backend_that_has_spoken_keeps_its_time(monkeypatch):
    """Who has greeted may take longer for the password: the next one is not bothered with it."""
    monkeypatch.setattr(places, "PATIENCE", 0.2)
    west = {"imap": dead(), "security": "none"}
    async with live(
        {"bob": Route("east", others=("west",))}, others={"west": west}, limits={"backend_timeout": 1}
    ) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        backend = await house.east.next()
        backend.say(GREETING)
        await backend.until(b"AUTHENTICATE PLAIN")
        assert (await client.until(b"\r\n")).startswith(b"a NO [UNAVAILABLE]")
        await backend.end()
    assert len(house.east.talks) == 1


@pytest_twisted.ensureDeferred
async def test_a_route_may_name_another_port():
    """The block's settings hold for a server that only the source of the route knows."""
    routes = {}
    west = {"imap": "tcp:192.0.2.1:9", "identity": "none", "verify": "west.example"}
    async with live(routes, others={"west": west}) as house:
        port = house.east_port.getHost().port
        routes["bob"] = Route("west", change=Change("127.0.0.1", port, security=Security.NONE))
        await logs_in(house, OWN)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"password": b"theirs"}, sasl.plain(b"bob", b"theirs", b"")),
        ({"password": b"theirs", "name": "b2"}, sasl.plain(b"b2", b"theirs", b"")),
        ({"password": b"theirs", "name": "b2", "master": "root"}, sasl.plain(b"root", b"theirs", b"b2")),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_password_of_the_route_is_used(fields, wanted):
    """With a proof, the backend gets the route's name and password, also where it has a master login."""
    async with live({"bob": Route("east", proven=True, **fields)}) as house:
        await logs_in(house, wanted)


@pytest_twisted.ensureDeferred
async def test_a_password_of_the_route_lets_nobody_in_unchecked():
    """Without a proof nothing is dialled, and the client is told that something is wrong here."""
    async with live({"bob": Route("east", password=b"theirs")}) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob guess\r\n")
        assert (await client.until(b"\r\n")).startswith(b"a NO [SERVERBUG]")
        assert not house.east.talks


@pytest_twisted.ensureDeferred
async def test_what_is_forwarded_gets_to_the_backend():
    """The route's own words stand beside the client's address."""
    route = Route("east", forward=(("shard", '7"x'),), change=Change(identity=Identity.NATIVE))
    async with live({"bob": route}) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        backend = await house.east.next()
        backend.say(GREETING)
        said = await backend.until(b" AUTHENTICATE PLAIN ")
        assert b'"x-forward-shard" "7\\"x"' in said
        assert b'"x-originating-ip" "127.0.0.1"' in said


@pytest_twisted.ensureDeferred
async def test_a_change_that_cannot_be_refuses_one_login():
    """No master user is configured: that login is refused, and the log says why."""
    with capturedLogs() as logs:
        async with live({"bob": Route("east", proven=True, change=Change(login=Method.MASTER))}) as house:
            client = await house.greeted()
            client.say(b"a LOGIN bob secret\r\n")
            assert (await client.until(b"\r\n")).startswith(b"a NO [SERVERBUG]")
    assert any('login = "master" needs master_user' in str(event.get("detail")) for event in logs)


@pytest_twisted.ensureDeferred
async def test_a_backend_on_another_endpoint_type_cannot_be_moved():
    """A block whose endpoint has no host is no place for one."""
    async with live(
        {"bob": Route("west", change=Change("127.0.0.1"))},
        others={"west": {"imap": "unix:/nowhere", "security": "none"}},
    ) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        assert (await client.until(b"\r\n")).startswith(b"a NO [SERVERBUG]")


CHECK = [{"source": "backend", "backend": "east"}]
MASTER = {"imap": dead(), "security": "none", "login": "none"}


@pytest_twisted.ensureDeferred
async def test_a_password_is_tried_at_a_backend():
    """Who gets in there is who it says: that connection is given up, and the session's own is another one."""
    async with live({"bob": Route("west")}, others={"west": MASTER}, authenticate=CHECK) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        trial = await house.east.next()
        trial.say(GREETING)
        await trial.until(b" AUTHENTICATE PLAIN " + b64encode(OWN) + b"\r\n")
        trial.say(b"M1 OK [CAPABILITY IMAP4rev1] Hi\r\n")
        await trial.end()
        # West is down, which only who has been let in is told.
        assert (await client.until(b"\r\n")).startswith(b"a NO [UNAVAILABLE]")


@pytest_twisted.ensureDeferred
async def test_a_password_that_opens_nothing_there():
    """Who does not get in there is turned away, and nothing else is dialled."""
    async with live({"bob": Route("west")}, others={"west": MASTER}, authenticate=CHECK) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob guess\r\n")
        trial = await house.east.next()
        trial.say(GREETING)
        await trial.until(b" AUTHENTICATE PLAIN ")
        trial.say(b"M1 NO no\r\n")
        assert (await client.until(b"\r\n")).startswith(b"a NO [AUTHENTICATIONFAILED]")
        await trial.end()


@pytest_twisted.ensureDeferred
async def test_a_backend_that_checks_nothing_is_no_witness():
    """A backend that lets everybody in says nothing of a password: nobody gets in by it."""
    with capturedLogs() as logs:
        check = [{"source": "backend", "backend": "west"}]
        async with live({"bob": Route("east")}, others={"west": MASTER}, authenticate=check) as house:
            client = await house.greeted()
            client.say(b"a LOGIN bob secret\r\n")
            assert (await client.until(b"\r\n")).startswith(b"a NO [SERVERBUG]")
            assert not house.east.talks
    assert any("no password can be tried" in str(event.get("detail")) for event in logs)


@pytest.fixture
def names(monkeypatch):
    """Yield the names that were looked up where the name server hangs for all but one."""
    hangs, asked = threading.Event(), []

    def look(name, *_args, **_options):
        asked.append(name)
        if name == "here.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
        hangs.wait(2 * WAIT)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", look)
        yield asked
        hangs.set()
        pytest_twisted.blockon(
            patient(lambda: not any(each.name == "host" for each in threading.enumerate()))
        )


@pytest_twisted.ensureDeferred
async def test_names_that_cannot_be_looked_up_hold_up_those_backends_alone(names):
    """Logins to many hosts whose name server hangs take a thread for each name, and none of everybody's."""
    hanging = [f"h{number}.example" for number in range(15)]
    routes = {f"u{n}": Route("east", change=Change(host=hanging[n % 15])) for n in range(30)}
    routes["bob"] = Route("east", change=Change(host="here.example"))
    async with live(routes) as house:
        for number in range(30):
            client = await house.greeted()
            client.say(b"a LOGIN u%d secret\r\n" % number)
        await patient(lambda: set(names) == set(hanging))
        elsewhere = deferToThread(lambda: None)
        await patient(lambda: elsewhere.called)
        await logs_in(house, OWN)
        assert sorted(names) == sorted([*hanging, "here.example"])


@pytest.mark.parametrize("kind", ["tcp", "tls", "ssl"])
@pytest_twisted.ensureDeferred
async def test_every_kind_of_endpoint_looks_names_up_there(names, kind):
    """Whatever endpoint an operator writes, the name in it is not looked up in the reactor's threads."""
    dialled = endpoints.client_endpoint(f"{kind}:away.example:143", Hosts(reactor)).connect(Factory())
    dialled.addErrback(lambda _: None)
    await patient(lambda: names == ["away.example"])
    dialled.cancel()
    await dialled


@pytest_twisted.ensureDeferred
async def test_a_name_without_an_address_is_told(monkeypatch):
    """A backend whose name nobody knows cannot be dialled, and neither can one that is one too many."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: [])
    for most in (256, 0):
        monkeypatch.setattr(hosts, "MAX_LOOKING", most)
        dialled = endpoints.client_endpoint("tcp:nobody.example:143", Hosts(reactor)).connect(Factory())
        with pytest.raises(DNSLookupError, match=r"nobody\.example has no IPv4 address"):
            await dialled
