"""Mail on its way through mailroute, on real sockets, with scripted backends."""

from __future__ import annotations

import pytest
from delivering import Server, delivering
from live import patient
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from zope.interface import implementer

from mailroute.delivery import DeliveryDoor, DeliverySession
from mailroute.delivery.terms import STALL_TIMEOUT
from mailroute.dialogs.smtp import LMTP
from mailroute.envelope import DeliveryTerms
from mailroute.events import LoginRefused, Mailing, Reason, Refusal, Route
from mailroute.failures import FailureTiming
from mailroute.house import House
from mailroute.interfaces import IRouter
from mailroute.names import UserNames
from mailroute.testing import FakeLeg, FakeRouter

MAIL = b"MAIL FROM:<s@example.net>\r\n"


def rcpt(*names: str) -> bytes:
    return b"".join(b"RCPT TO:<%s>\r\n" % name.encode() for name in names)


async def split_message(running, client) -> tuple[Server, Server]:
    """Offer a message to one recipient on east and one on west, and wait until it may be sent."""
    client.say(MAIL + rcpt("a@east.example", "a@west.example") + b"DATA\r\n")
    east = await running.east.next()
    await east.ready()
    await east.takes(b"a@east.example")
    west = await running.west.next()
    await west.ready()
    await west.takes(b"a@west.example")
    for server in (east, west):
        await server.hears(b"DATA\r\n")
    east.say(b"354 go\r\n")
    west.say(b"354 go\r\n")
    await client.until(b"354 Send the message, and a dot on a line by itself\r\n")
    return east, west


@ensureDeferred
async def test_a_message_is_split_and_answered_in_order():
    """Recipients on two backends get one transaction each; the replies come back in the client's order."""
    async with delivering() as running:
        client = await running.client()
        client.say(MAIL + rcpt("a@west.example", "a@east.example", "nobody@example.org", "b@west.example"))
        client.say(b"DATA\r\n")
        west = await running.west.next()
        assert await west.ready() != b""
        await west.takes(b"a@west.example")
        east = await running.east.next()
        await east.ready()
        await east.takes(b"a@east.example")
        await west.hears(b"RCPT TO:<b@west.example>")
        west.say(b"250 2.1.5 b\r\n")
        await west.hears(b"DATA\r\n")
        await east.hears(b"DATA\r\n")
        west.say(b"354 go\r\n")
        east.say(b"354 go\r\n")
        assert await client.until(b"354 ") == (
            b"250 2.1.0 Sender taken\r\n250 2.1.5 a@west.example\r\n250 2.1.5 a@east.example\r\n"
            b"550 5.1.1 No such mailbox here\r\n250 2.1.5 b\r\n354 "
        )
        await client.until(b"\r\n")
        client.say(b"Subject: x\r\n\r\n..dot\r\n.\r\n")
        assert await west.until(b"\r\n.\r\n") == b"Subject: x\r\n\r\n..dot\r\n.\r\n"
        assert await east.until(b"\r\n.\r\n") == b"Subject: x\r\n\r\n..dot\r\n.\r\n"
        west.say(b"250 2.0.0 one\r\n452 4.2.2 full\r\n")
        east.say(b"250 2.0.0 two\r\n")
        assert await client.until(b"full\r\n") == b"250 2.0.0 one\r\n250 2.0.0 two\r\n452 4.2.2 full\r\n"
        client.say(b"QUIT\r\n")
        await client.until(b"221 2.0.0 Bye\r\n")
        await east.until(b"QUIT\r\n")
        await west.until(b"QUIT\r\n")


@ensureDeferred
async def test_nothing_is_acknowledged_before_the_backend_has():
    """The client has no word on its message as long as a backend has none."""
    async with delivering() as running:
        client = await running.client()
        east, west = await split_message(running, client)
        client.say(b"x\r\n.\r\n")
        await east.until(b"\r\n.\r\n")
        await west.until(b"\r\n.\r\n")
        east.say(b"250 2.0.0 one\r\n")
        client.say(b"NOOP\r\n")
        west.say(b"250 2.0.0 ")
        assert not client.heard
        west.say(b"two\r\n")
        assert await client.until(b"Nothing done\r\n") == (
            b"250 2.0.0 one\r\n250 2.0.0 two\r\n250 2.0.0 Nothing done\r\n"
        )


@ensureDeferred
async def test_a_backend_that_dies_in_the_middle_costs_only_its_own_recipients():
    """Its recipients are to be tried again, the others have the message."""
    async with delivering() as running:
        client = await running.client()
        east, west = await split_message(running, client)
        client.say(b"one\r\n")
        await east.until(b"one")
        east.transport.abortConnection()
        await east.lost
        client.say(b"two\r\n.\r\n")
        assert await west.until(b"\r\n.\r\n") == b"one\r\ntwo\r\n.\r\n"
        west.say(b"250 2.0.0 two\r\n")
        assert await client.until(b"two\r\n") == (
            b"451 4.4.2 The connection to the mail server was lost, try again later\r\n250 2.0.0 two\r\n"
        )


@ensureDeferred
async def test_a_backend_that_dies_at_the_end_has_not_answered():
    """A backend that has the whole message and says nothing gives a 4xx, and what it has answered stays."""
    async with delivering() as running:
        client = await running.client()
        client.say(MAIL + rcpt("a@east.example", "b@east.example") + b"DATA\r\n")
        east = await running.east.next()
        await east.ready()
        await east.takes(b"a@east.example", b"b@east.example")
        await east.hears(b"DATA\r\n")
        east.say(b"354 go\r\n")
        await client.until(b"354 ")
        client.say(b"x\r\n.\r\n")
        await east.until(b"\r\n.\r\n")
        east.say(b"250 2.0.0 one\r\n")
        east.transport.loseConnection()
        await client.until(b"250 2.0.0 one\r\n451 4.4.2 ")


@pytest.mark.parametrize("how", ["abort", "close", "half"])
@ensureDeferred
async def test_a_client_that_dies_in_the_middle_delivers_nothing(how):
    """Every backend's connection ends without the message's end."""
    async with delivering() as running:
        client = await running.client()
        east, west = await split_message(running, client)
        client.say(b"one\r\ntwo")
        await east.until(b"one\r\ntwo")
        await west.until(b"one\r\ntwo")
        if how == "abort":
            client.transport.abortConnection()
        elif how == "close":
            client.transport.loseConnection()
        else:
            client.transport.loseWriteConnection()
        assert await east.end() == b""
        assert await west.end() == b""


@ensureDeferred
async def test_a_client_that_dies_before_the_first_byte_delivers_nothing():
    """A backend that waits for the message gets no command in its place."""
    async with delivering() as running:
        client = await running.client()
        east, west = await split_message(running, client)
        client.transport.abortConnection()
        assert await east.end() == b""
        assert await west.end() == b""


LOST = b"451 4.4.2 The connection to the mail server was lost, try again later"

SMUGGLED = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r\n.\rX",
    b"\r\n\0.\r\n",
    b"\r\r\n.\r\r\n",
    b"\n\n.\r\n",
    b"\r\n\n.\r\n",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\n",
]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("end", SMUGGLED, ids=[repr(end) for end in SMUGGLED])
@pytest.mark.parametrize("step", [0, 1])
@ensureDeferred
async def test_smuggling_is_refused(end, chunked, step):
    """What some servers took for a message's end in 2023 is none, and the message is delivered nowhere."""
    smuggled = (
        b"first" + end + b"MAIL FROM:<admin@example.org>\r\nRCPT TO:<a@east.example>\r\nDATA\r\nsecond\r\n"
    )
    async with delivering() as running:
        client = await running.client()
        client.say(MAIL + rcpt("a@east.example"))
        east = await running.east.next()
        await east.ready("PIPELINING")
        await east.takes(b"a@east.example")
        await client.until(b"250 2.1.5 a@east.example\r\n")
        client.say(b"BDAT %d LAST\r\n" % len(smuggled) if chunked else b"DATA\r\n")
        await east.hears(b"DATA\r\n")
        east.say(b"354 go\r\n")
        if not chunked:
            await client.until(b"354 Send the message, and a dot on a line by itself\r\n")
            smuggled += b".\r\n"
        for at in range(0, len(smuggled), step or len(smuggled)):
            client.say(smuggled[at : at + (step or len(smuggled))])
        client.say(b"NOOP\r\n")
        refusal = b"550 5.6.0 The message has lines that do not end with CR LF\r\n"
        if chunked:
            assert await client.until(b"Nothing done\r\n") == refusal + b"250 2.0.0 Nothing done\r\n"
        else:
            # Where it ended is uncertain, and so is whose the next commands are.
            goodbye = b"421 4.7.0 Where such a message ends is uncertain, connect again\r\n"
            assert await client.end() == refusal + goodbye
        heard = await east.end()
        assert b"second" not in heard
        assert b"MAIL" not in heard
        for line_end in (b"\r\n", b"\r", b"\n"):
            assert line_end + b"." + line_end not in heard


@ensureDeferred
async def test_recipients_elsewhere_are_asked_for_again():
    """Where a message has one reply, its recipients live on one backend: that of the first one accepted."""
    async with delivering("smtp") as running:
        client = await running.client(b"EHLO client.example")
        client.say(MAIL + rcpt("c@east.example", "a@west.example", "b@east.example", "b@west.example"))
        east = await running.east.next()
        await east.ready(hello=b"EHLO")
        await east.hears(b"MAIL FROM:")
        await east.hears(b"RCPT TO:<c@east.example>")
        east.say(b"250 2.1.0 sender\r\n550 5.1.1 not c\r\n")
        west = await running.west.next()
        await west.ready(hello=b"EHLO")
        await west.takes(b"a@west.example")
        await west.hears(b"RCPT TO:<b@west.example>")
        west.say(b"250 2.1.5 b\r\n")
        assert await client.until(b"2.1.5 b\r\n") == (
            b"250 2.1.0 Sender taken\r\n550 5.1.1 not c\r\n250 2.1.5 a@west.example\r\n"
            b"451 4.5.3 Not in one message with the recipients before, try again\r\n250 2.1.5 b\r\n"
        )
        client.say(b"DATA\r\n")
        await west.hears(b"DATA\r\n")
        west.say(b"354 go\r\n")
        await client.until(b"354 ")
        client.say(b"x\r\n.\r\n")
        await west.until(b"\r\n.\r\n")
        west.say(b"250 2.0.0 queued as 7\r\n")
        await client.until(b"250 2.0.0 queued as 7\r\n")


def waiting_at(connection) -> int:
    """Return how many bytes wait in a backend's transport, whoever made it."""
    transport = connection._transport
    if hasattr(transport, "rest"):
        return len(transport.rest)
    return transport._tempDataLen + len(transport.dataBuffer) - transport.offset


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@ensureDeferred
async def test_a_backend_that_does_not_read_holds_little_and_is_left_behind(host):
    """While a backend takes nothing the client is held up, with 256 KiB at most; then the others go on."""
    async with delivering(limits={"stall_timeout": 2}, host=host) as running:
        client = await running.client()
        east, west = await split_message(running, client)
        east.transport.pauseProducing()
        text = b"0123456789abcdef\r\n.." * 600_000
        client.say(text + b"\r\n.\r\n")
        [session] = running.listener.factory.sessions
        await patient(lambda: session._paused)
        forwarding = session._forwarding
        held = sum(len(event.data) for event in session._todo)
        held += len(session._receiver._reader)
        held += sum(waiting_at(target._connection) for target in forwarding._targets.values())
        assert held <= 256 * 1024
        # To look for the end in all that has come so far, each time some more comes, takes long.
        await west.wait_for(lambda: len(west.heard) >= len(text) + 5)
        assert (west.heard == text + b"\r\n.\r\n") is True
        west.say(b"250 2.0.0 two\r\n")
        assert await client.until(b"two\r\n") == (
            b"451 4.4.2 The mail server took too long, try again later\r\n250 2.0.0 two\r\n"
        )


def session_with(router: IRouter) -> tuple[DeliverySession, FakeLeg, Clock]:
    """Return a session whose recipients this router knows, its leg and the time."""
    clock, leg = Clock(), FakeLeg()
    house = House(
        router=router,
        backends={},
        normalise=UserNames().from_wire,
        join=lambda *_: None,
        failures=FailureTiming(0, ["east"]),
        clock=clock,
        login_timeout=0,
    )
    session = DeliverySession(house, DeliveryDoor("test", LMTP, DeliveryTerms("mx.example")), leg)
    session.begin()
    assert leg.producer is session
    leg.written()
    return session, leg, clock


def full_session() -> tuple[DeliverySession, FakeLeg, Clock]:
    """Return a session whose client does not take replies, its leg and the time."""
    session, leg, clock = session_with(FakeRouter({}))
    session.pauseProducing()
    session.received(b"NOOP\r\n")
    session.received(b"HELP\r\n")
    return session, leg, clock


def test_a_client_that_takes_no_replies_is_not_listened_to():
    """Nothing is done for a client whose replies wait, and nothing more is read, until it takes them."""
    session, leg, _ = full_session()
    assert leg.written() == b""
    assert leg.paused
    session.resumeProducing()
    assert leg.written() == b"250 2.0.0 Nothing done\r\n214 2.0.0 RFC 2033\r\n"
    assert not leg.paused


def test_a_client_that_takes_no_replies_is_cut_off():
    """It has as long as a backend that takes nothing."""
    _, leg, clock = full_session()
    clock.advance(STALL_TIMEOUT - 1)
    assert not leg.closed
    clock.advance(2)
    assert leg.closed


@ensureDeferred
async def test_one_connection_serves_many_messages():
    """A backend's connection is kept from one message to the next, and a transaction called off is reset."""
    async with delivering() as running:
        client = await running.client()
        client.say(MAIL + rcpt("a@east.example") + b"RSET\r\n")
        east = await running.east.next()
        await east.ready()
        await east.takes(b"a@east.example")
        await east.hears(b"RSET\r\n")
        for number in (b"1", b"2"):
            client.say(MAIL + rcpt("b@east.example") + b"DATA\r\n")
            await east.hears(b"MAIL FROM:<s@example.net>\r\n")
            if number == b"1":
                east.say(b"250 2.0.0 reset\r\n")
            await east.hears(b"RCPT TO:<b@east.example>\r\n")
            east.say(b"250 2.1.0 s\r\n250 2.1.5 b\r\n")
            await east.hears(b"DATA\r\n")
            east.say(b"354 go\r\n")
            client.say(b"x\r\n.\r\n")
            await east.until(b"\r\n.\r\n")
            east.say(b"250 2.0.0 taken " + number + b"\r\n")
            await client.until(b"250 2.0.0 taken " + number + b"\r\n")
        assert len(running.east.talks) == 1


@ensureDeferred
async def test_a_connection_that_has_ended_between_messages_is_made_anew():
    """A backend that closes an idle connection costs the next message nothing."""
    async with delivering() as running:
        client = await running.client()
        for number in (b"1", b"2"):
            client.say(MAIL + rcpt("a@east.example") + b"DATA\r\n")
            east = await running.east.next()
            await east.ready()
            await east.takes(b"a@east.example")
            assert await east.message_after(client, b"x\r\n.\r\n") == b"x\r\n.\r\n"
            east.say(b"250 2.0.0 taken " + number + b"\r\n")
            await client.until(b"250 2.0.0 taken " + number + b"\r\n")
            east.transport.loseConnection()
            await east.lost
            await patient(running.nobody_is_connected)


@ensureDeferred
async def test_chunks_go_as_data_to_a_backend_that_knows_none():
    """BDAT's message gets dots and an end where the backend has no CHUNKING, and goes as it is elsewhere."""
    async with delivering() as running:
        client = await running.client()
        client.say(MAIL + rcpt("a@east.example", "a@west.example"))
        east = await running.east.next()
        await east.ready("PIPELINING")
        await east.takes(b"a@east.example")
        west = await running.west.next()
        await west.ready()
        await west.takes(b"a@west.example")
        client.say(b"BDAT 8\r\n.one\r\n.tBDAT 5 LAST\r\nwo\r\n.")
        await east.hears(b"DATA\r\n")
        east.say(b"354 go\r\n")
        assert await west.until(b".t") == b"BDAT 8\r\n.one\r\n.t"
        west.say(b"250 2.0.0 8 bytes\r\n")
        assert await west.until(b"wo\r\n.") == b"BDAT 5 LAST\r\nwo\r\n."
        west.say(b"250 2.0.0 west\r\n")
        assert await east.until(b"\r\n.\r\n") == b"..one\r\n..two\r\n..\r\n.\r\n"
        east.say(b"250 2.0.0 east\r\n")
        await client.until(b"250 2.0.0 Chunk taken\r\n250 2.0.0 east\r\n250 2.0.0 west\r\n")


@ensureDeferred
async def test_a_route_may_give_another_name():
    """The name that a route gives takes the place of the local part, and the domain stays."""
    async with delivering() as running:
        client = await running.client()
        client.say(MAIL + rcpt("renamed@EAST.example", "A@east.example", "a@EAST.example"))
        east = await running.east.next()
        await east.ready()
        await east.takes(b"other@EAST.example", b"a@EAST.example")
        await client.until(b"250 2.1.5 other@EAST.example\r\n550 5.1.1 No such mailbox here\r\n250 2.1.5 ")


@implementer(IRouter)
class Slow:
    """Answers each look-up as the test wants."""

    def __init__(self, answer):
        self.answer = answer

    def route(self, lookup):
        del lookup
        return self.answer()


def refuses(reason):
    raise LoginRefused(Refusal(reason, "the test"))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda: refuses(Reason.UNAVAILABLE), b"451 4.3.0 "),
        (lambda: fail(LoginRefused(Refusal(Reason.UNAVAILABLE, "the test"))), b"451 4.3.0 "),
        (lambda: fail(LoginRefused(Refusal(Reason.CONTACT_ADMIN, "the test"))), b"550 5.2.1 "),
        (lambda: succeed(None), b"550 5.1.1 "),
        (lambda: Route("east", "not\r\na name"), b"451 4.3.5 "),
        (Deferred, b"451 4.3.0 "),  # which never fires
    ],
)
@ensureDeferred
async def test_look_ups_that_come_to_nothing(answer, told):
    """A look-up that fails, or takes too long, is a reason to try again; one that finds nobody is not."""
    router = Slow(answer)
    async with delivering(route=[router], limits={"backend_timeout": 0.5}) as running:
        client = await running.client()
        client.say(MAIL + rcpt("a@east.example") + b"NOOP\r\n")
        said = await client.until(b"Nothing done\r\n")
        assert said.removeprefix(b"250 2.1.0 Sender taken\r\n").startswith(told)


WAITS = {
    "at-once": lambda refusal: refuses_as(refusal),
    "later": lambda refusal: fail(LoginRefused(refusal)),
}


def refuses_as(refusal):
    raise LoginRefused(refusal)


@pytest.mark.parametrize("way", WAITS)
@pytest.mark.parametrize(
    ("reason", "told"), [(Reason.AUTHENTICATION_FAILED, b"550 "), (Reason.UNAVAILABLE, b"451 ")]
)
def test_a_source_may_have_the_client_wait_for_a_refusal(way, reason, told):
    """Whoever guesses at recipients is held up as whoever guesses at passwords, and not sent away."""
    refusal = Refusal(reason, "the test", wait=3, final=True)
    session, leg, clock = session_with(Slow(lambda: WAITS[way](refusal)))
    session.received(b"LHLO c\r\n" + MAIL)
    leg.written()
    session.received(rcpt("a@east.example") + b"NOOP\r\n")
    clock.advance(2.9)
    assert leg.written() == b""
    clock.advance(0.2)
    assert leg.written().startswith(told)
    clock.advance(0)
    session.received(b"NOOP\r\n")
    assert leg.written().endswith(b"250 2.0.0 Nothing done\r\n")
    assert not leg.closed


def test_a_client_that_waits_for_a_refusal_may_leave():
    """Nothing of it is left then."""
    session, leg, clock = session_with(
        Slow(lambda: refuses_as(Refusal(Reason.CONTACT_ADMIN, "the test", wait=3)))
    )
    session.received(b"LHLO c\r\n" + MAIL + rcpt("a@east.example"))
    leg.written()
    session.lost("gone")
    assert not [call for call in clock.getDelayedCalls() if call.getTime() < 4]
    assert leg.written() == b""


@ensureDeferred
async def test_a_router_is_told_of_the_message():
    """What the client calls itself, the sender and the recipient, with what stands behind them."""
    asked = []

    class Listening(FakeRouter):
        def route(self, lookup):
            asked.append(lookup.mailing)

    async with delivering(route=[Listening({})]) as running:
        client = await running.client(hello=b"LHLO client.example")
        client.say(b'mail from:<> body=8BITMIME\r\nRCPT TO:<"a b"@east.example>\r\nNOOP\r\n')
        await client.until(b"Nothing done\r\n")
    assert asked == [Mailing(b"client.example", b"", ((b"BODY", b"8BITMIME"),), b'"a b"@east.example')]


@ensureDeferred
async def test_a_look_up_may_take_its_time():
    """What is pipelined behind a look-up that is under way waits for it."""
    waiting = Deferred()
    async with delivering(route=[Slow(lambda: waiting)]) as running:
        client = await running.client()
        client.say(MAIL + rcpt("a@east.example") + b"DATA\r\n")
        await client.until(b"Sender taken\r\n")
        waiting.callback(Route("east"))
        east = await running.east.next()
        await east.ready()
        await east.takes(b"a@east.example")
        assert await east.message_after(client, b"x\r\n.\r\n") == b"x\r\n.\r\n"


@ensureDeferred
async def test_a_client_that_begins_nothing_is_sent_away():
    """Until the first MAIL, login_timeout counts from the connection's begin, whatever else is said."""
    async with delivering(limits={"login_timeout": 0.5}) as running:
        client = await running.client()
        assert (await client.end()).endswith(b"421 4.4.2 Nothing was said for too long\r\n")


@ensureDeferred
async def test_the_log_tells_what_became_of_a_message():
    """One event for each message: session, backends, how many recipients and bytes, and what came of each."""
    seen = []
    globalLogPublisher.addObserver(seen.append)
    try:
        async with delivering() as running:
            client = await running.client()
            east, west = await split_message(running, client)
            client.say(b"secret\r\n.\r\n")
            east.say(b"250 2.0.0 taken\r\n")
            west.say(b"452 4.2.2 full\r\n")
            await client.until(b"full\r\n")
            client.say(MAIL + rcpt("nobody@example.org") + b"RSET\r\n")
            await client.until(b"Forgotten\r\n")
    finally:
        globalLogPublisher.removeObserver(seen.append)
    first, second = [event for event in seen if "recipients" in event]
    assert first["log_namespace"] == "mailroute.delivery"
    assert (first["outcome"], first["delivered"], first["recipients"]) == ("delivered in part", 1, 2)
    assert (first["backends"], first["bytes"], first["message"]) == ("east,west", 8, 1)
    assert first["to"] == ("<a@east.example>(east: 250 2.0.0 taken), <a@west.example>(west: 452 4.2.2 full)")
    assert (second["outcome"], second["delivered"], second["message"]) == ("called off", 0, 2)
    assert not [event for event in seen if "secret" in str(event)]
    [ended] = [event for event in seen if " ended: " in event.get("line", "")]
    assert ended["backend"] == "east,west"
    assert ended["session_id"] == first["session_id"]


@ensureDeferred
async def test_a_listener_may_name_its_backend():
    """Where the listener says to which backend everybody goes, no route is asked."""
    async with delivering(listen={"backend": "west"}) as running:
        client = await running.client()
        client.say(MAIL + rcpt("anybody@example.org"))
        west = await running.west.next()
        await west.ready()
        await west.takes(b"anybody@example.org")
        await client.until(b"250 2.1.5 anybody@example.org\r\n")
