"""Connections that are kept ready: how many there are, when they are tried again, and who gets them."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from attrs import frozen
from live import Backends, Talk, live, patient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.backend import Backend, Dial
from mailroute.dialogs import protocol
from mailroute.events import Credentials, LoginOrder, Route
from mailroute.testing import CLIENT
from mailroute.warm import LATEST_AGAIN, MAX_AGE, SOONEST_AGAIN, WarmStock

BOB = {"bob": Route("east")}
GREETING = b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN ID] hello\r\n"
IMAP = protocol("imap")

# --- the policy, by a clock -------------------------------------------------


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Connects when the test says so."""

    def __init__(self) -> None:
        self.factories: list[Any] = []
        self.asked: list[Deferred[Any]] = []
        self.connected: list[Any] = []

    def connect(self, factory: Any) -> Deferred[Any]:
        asked: Deferred[Any] = Deferred(self.give_up)
        self.factories.append(factory)
        self.asked.append(asked)
        return asked

    def give_up(self, asked: Deferred[Any]) -> None:
        del self.factories[self.asked.index(asked)]
        self.asked.remove(asked)

    @property
    def waiting(self) -> int:
        return len(self.asked)

    def take(self, greeting: bytes = GREETING) -> Any:
        """Let the one that has waited for longest connect, and greet it."""
        self.asked.pop(0)
        client = self.factories.pop(0).buildProtocol(None)
        client.makeConnection(Transport(client))
        if greeting:
            client.dataReceived(greeting)
        self.connected.append(client)
        return client

    def refuse(self) -> None:
        """Let the one that has waited for longest fail."""
        self.factories.pop(0)
        self.asked.pop(0).errback(Failure(ConnectError()))


class Transport(StringTransport):
    """Ends at once when it is told to."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        self.client = client

    def loseConnection(self) -> None:
        if self.connected:
            self.connected = False
            self.client.connectionLost(Failure(ConnectionDone()))

    abortConnection = loseConnection


class House:
    """A stock of two connections, and what it needs."""

    def __init__(self) -> None:
        self.clock: Any = Clock()
        self.endpoint = Endpoint()
        self.backend = Backend("east", {"imap": Dial(self.endpoint)}, self.clock, timeout=30)
        self.stock = WarmStock(self.backend, IMAP, 2)
        self.stock.startService()
        self.clock.advance(0)

    def advance(self, seconds: float) -> None:
        self.clock.pump([0.25] * int(seconds * 4))


@pytest.fixture
def house() -> House:
    return House()


def test_it_is_filled_at_the_start_and_refilled(house: House) -> None:
    """As many as asked for are dialled at once; whoever takes one has another one dialled."""
    assert house.endpoint.waiting == 2
    first, second = house.endpoint.take(), house.endpoint.take()
    assert len(house.stock) == 2
    assert house.stock.take() is first
    house.clock.advance(0)
    assert house.endpoint.waiting == 1
    assert house.stock.take() is second
    assert house.stock.take() is None


def test_one_that_is_not_greeted_yet_is_not_given_out(house: House) -> None:
    """A connection is ready only once the backend has greeted."""
    house.endpoint.take(b"")
    assert house.stock.take() is None


def test_an_old_one_is_replaced(house: House) -> None:
    """A connection that nobody has taken for a while is closed, before the backend does it."""
    clients = house.endpoint.take(), house.endpoint.take()
    house.advance(MAX_AGE - 1)
    assert all(client.transport.connected for client in clients)
    house.advance(2)
    assert not any(client.transport.connected for client in clients)
    assert len(house.stock) == 0
    assert house.endpoint.waiting == 2


def test_one_that_the_backend_closes_is_replaced(house: House) -> None:
    """A connection that ends while it waits is forgotten, and another one dialled at once."""
    client = house.endpoint.take()
    house.advance(SOONEST_AGAIN + 1)
    client.dataReceived(b"* BYE idle\r\n")
    assert house.stock.take() is None
    house.clock.advance(0)
    assert house.endpoint.waiting == 2


def test_a_backend_that_is_down_is_tried_less_and_less(house: House) -> None:
    """Tries are one at a time, twice as long apart each time up to a bound, and logged once."""
    gaps = []
    with capturedLogs() as logged:
        house.endpoint.refuse()
        house.endpoint.refuse()
        for _ in range(9):
            assert house.endpoint.waiting == 0
            before = house.clock.seconds()
            while not house.endpoint.waiting:
                house.clock.advance(0.25)
            gaps.append(house.clock.seconds() - before)
            assert house.endpoint.waiting == 1
            house.endpoint.refuse()
    assert gaps == [1, 2, 4, 8, 16, 32, LATEST_AGAIN, LATEST_AGAIN, LATEST_AGAIN]
    (line,) = [event for event in logged if event["log_namespace"] == "mailroute.warm"]
    assert "cannot connect to backend east" in line["detail"]


def test_it_recovers(house: House) -> None:
    """When the backend answers again, all places are filled, and that is logged once somebody is served."""
    house.endpoint.refuse()
    house.endpoint.refuse()
    house.advance(1)
    house.endpoint.take()
    house.clock.advance(0)
    assert house.endpoint.waiting == 1
    with capturedLogs() as logged:
        house.stock.take()
    assert [event["log_format"] for event in logged if event["log_namespace"] == "mailroute.warm"] == [
        "connections to backend {backend} are kept ready again"
    ]


def test_a_backend_that_greets_and_closes_is_not_dialled_without_end(house: House) -> None:
    """Connections that do not last a moment count as failures."""
    for _ in range(2):
        house.endpoint.take().transport.loseConnection()
    house.clock.advance(0)
    assert house.endpoint.waiting == 0
    house.advance(SOONEST_AGAIN)
    assert house.endpoint.waiting == 1


def test_a_backend_that_does_not_greet_fails(house: House) -> None:
    """Who does not greet within the backend's time is closed, and tried again later."""
    clients = house.endpoint.take(b""), house.endpoint.take(b"")
    with capturedLogs() as logged:
        house.advance(30.5)
    assert not any(client.transport.connected for client in clients)
    assert house.endpoint.waiting == 0
    (line,) = [event for event in logged if event["log_namespace"] == "mailroute.warm"]
    assert "over 30 s, at last waiting for the greeting" in line["detail"]


def test_nothing_is_left_when_it_stops(house: House) -> None:
    """Connections are closed, and no timer rings any more."""
    client = house.endpoint.take()
    house.stock.stopService()
    assert not client.transport.connected
    house.advance(200)
    assert house.clock.getDelayedCalls() == []
    assert house.stock.take() is None


def test_a_login_takes_one(house: House) -> None:
    """A login goes out at once on a connection that is ready; its time begins then."""
    client = house.endpoint.take()
    house.advance(10)
    credentials = Credentials("PLAIN", b"bob", b"secret")
    opened: list[Any] = []
    house.backend.open(IMAP, LoginOrder(credentials, "bob", CLIENT)).addCallback(opened.append)
    assert b"AUTHENTICATE PLAIN" in client.transport.value()
    client.dataReceived(b"M1 OK\r\n" + client.transport.value().split()[-4] + b" OK [CAPABILITY X] hi\r\n")
    assert opened
    assert opened[0].connecting == 0


# --- on real sockets ----------------------------------------------------------


async def ready(house: Any, number: int) -> list[Talk]:
    """Greet the connections that are kept, and wait until they are ready."""
    talks = [await house.east.next() for _ in range(number)]
    for talk in talks:
        talk.say(GREETING)
    (stock,) = (child for child in house.running if isinstance(child, WarmStock))
    await patient(lambda: len(stock) == number)
    return talks


@pytest_twisted.ensureDeferred
async def test_a_session_on_a_connection_that_was_ready():
    """Clients get connections that were greeted before they came, one each, and bytes pass both ways."""
    async with live(BOB, backend={"warm": 2}) as house:
        backends = await ready(house, 2)
        for backend in backends:
            client = await house.greeted()
            client.say(b"a LOGIN bob secret\r\n")
            await backend.until(b"M1 AUTHENTICATE PLAIN AGJvYgBzZWNyZXQ=\r\n")
            backend.say(b"M1 OK [CAPABILITY IMAP4rev1] Hi\r\n")
            await client.until(b"a OK [CAPABILITY IMAP4rev1] Hi\r\n")
            client.say(b"b NOOP\r\n")
            await backend.until(b"b NOOP\r\n")


@pytest.mark.parametrize("words", [b"", b"* BYE Disconnected for inactivity.\r\n"])
@pytest_twisted.ensureDeferred
async def test_a_backend_that_hangs_up_as_the_login_comes(words: bytes):
    """A login that crosses with the backend's goodbye goes out again on a fresh connection, and succeeds."""
    async with live(BOB, backend={"warm": 1}) as house:
        (stale,) = await ready(house, 1)
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        await stale.until(b"\r\n")
        stale.say(words)
        stale.transport.loseConnection()
        # One of the next two replaces it in the stock, the other one is for the login.
        fresh = [await house.east.next() for _ in range(2)]
        for talk in fresh:
            talk.say(GREETING)
        await patient(lambda: any(talk.heard for talk in fresh))
        (backend,) = (talk for talk in fresh if talk.heard)
        assert bytes(backend.heard) == b"M1 AUTHENTICATE PLAIN AGJvYgBzZWNyZXQ=\r\n"
        backend.say(b"M1 OK [CAPABILITY IMAP4rev1] Hi\r\n")
        await client.until(b"a OK [CAPABILITY IMAP4rev1] Hi\r\n")


PLAIN = b"AGJvYgBzZWNyZXQ="  # bob, secret
SIEVE = b'"IMPLEMENTATION" "x"\r\n"SASL" "PLAIN"\r\n"SIEVE" "fileinto"\r\nOK\r\n'


@frozen
class Crossing:
    """How a login goes in a protocol, and how a backend says goodbye instead of an answer."""

    protocol: str
    greeting: tuple[bytes, ...]
    """What a backend says, each after a line from us but for the first."""

    login: bytes
    said: bytes
    """What mailroute says to the backend behind that."""

    goodbye: bytes
    answers: tuple[bytes, ...]
    ready: bytes


CROSSINGS = [
    Crossing(
        "submission",
        (b"220 east ESMTP\r\n",),
        b"EHLO me\r\nAUTH PLAIN %s\r\n" % PLAIN,
        b"EHLO me\r\n",
        b"421 4.4.2 timeout\r\n",
        (b"250-east\r\n250 AUTH PLAIN\r\n", b"235 2.7.0 in\r\n"),
        b"235 2.7.0 in\r\n",
    ),
    Crossing(
        "managesieve",
        (SIEVE,),
        b'AUTHENTICATE "PLAIN" "%s"\r\n' % PLAIN,
        b'AUTHENTICATE "PLAIN" ',
        b'BYE "timeout"\r\n',
        (b"OK\r\n",),
        b"OK",
    ),
]


@pytest.mark.parametrize("crossing", CROSSINGS, ids=lambda crossing: crossing.protocol)
@pytest_twisted.ensureDeferred
async def test_a_goodbye_instead_of_an_answer(crossing: Crossing):
    """A backend that says with words of the protocol that it goes is left, and the login goes out again."""
    west = Backends()
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(west)
    block = {crossing.protocol: f"tcp:127.0.0.1:{port.getHost().port}", "identity": "none"}
    async with live(
        {"bob": Route("west")},
        listen={"protocol": crossing.protocol},
        others={"west": {**block, "security": "none", "warm": 1}},
    ) as house:
        (stock,) = (child for child in house.running if isinstance(child, WarmStock))

        async def greet(talk: Talk) -> None:
            first, *more = crossing.greeting
            talk.say(first)
            for each in more:
                await talk.until(b"\r\n")
                talk.say(each)

        stale = await west.next()
        await greet(stale)
        await patient(lambda: len(stock) == 1)
        client = await house.client()
        await client.wait_for(lambda: b"\n" in client.heard)
        client.say(crossing.login)
        await stale.until(crossing.said)
        stale.say(crossing.goodbye)
        fresh = [await west.next() for _ in range(2)]
        for talk in fresh:
            await greet(talk)
        await patient(lambda: any(talk.heard for talk in fresh))
        (backend,) = (talk for talk in fresh if talk.heard)
        for answer in crossing.answers:
            await backend.until(b"\r\n")
            backend.say(answer)
        await client.until(crossing.ready)
        await stale.end()
        for talk in west.talks:
            if talk.reason is None:
                talk.transport.abortConnection()
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_refusal_is_not_tried_twice():
    """A wrong password is refused once, on the connection that was ready."""
    async with live(BOB, backend={"warm": 1}) as house:
        (backend,) = await ready(house, 1)
        client = await house.greeted()
        client.say(b"a LOGIN bob wrong\r\n")
        await backend.until(b"\r\n")
        backend.say(b"M1 NO [AUTHENTICATIONFAILED] no\r\n")
        await client.until(b"a NO [AUTHENTICATIONFAILED]")
        assert sum(b"AUTHENTICATE" in talk.heard for talk in house.east.talks) == 0


@pytest_twisted.ensureDeferred
async def test_sessions_leave_nothing():
    """After many sessions the stock is as full as before, and the backend has no other connection."""
    async with live(BOB, backend={"warm": 2}) as house:
        talks = await ready(house, 2)
        (stock,) = (child for child in house.running if isinstance(child, WarmStock))
        for _ in range(40):
            client = await house.greeted()
            client.say(b"a LOGIN bob secret\r\n")
            backend = talks.pop(0)
            await backend.until(b"\r\n")
            backend.say(b"M1 OK [CAPABILITY IMAP4rev1] Hi\r\n")
            await client.until(b"Hi\r\n")
            talks.append(await house.east.next())
            talks[-1].say(GREETING)
            await patient(lambda: len(stock) == 2)
            client.transport.loseConnection()
            await backend.end()
        assert len(stock._members) == 2
        assert sum(talk.reason is None for talk in house.east.talks) == 2
    assert not stock._members
