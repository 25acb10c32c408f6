"""Connections that end at every step of a delivery, and backends that answer as they should not."""

from __future__ import annotations

import pytest
from delivering import delivering
from live import patient
from pytest_twisted import ensureDeferred

from mailroute.delivery import session, target

MAIL = b"MAIL FROM:<s@example.net>\r\n"
TO = {"east": b"a@east.example", "west": b"a@west.example"}
GO = b"354 Send the message, and a dot on a line by itself\r\n"
LOST = b"451 4.4.2 The connection to the mail server was lost, try again later\r\n"
LATE = b"451 4.4.2 The mail server took too long, try again later\r\n"
ODD = b"451 4.5.0 The mail server is not understood, try again later\r\n"
DOWN = b"451 4.4.1 The mail server cannot be reached, try again later\r\n"

STEPS = ("connected", "greeted", "asked", "recipient", "data", "message", "end", "half answered")


async def up_to(step: str, running, client, *names: str):
    """Play a delivery to backends with these names up to a step, whose answer is missing."""
    at = STEPS.index(step)
    client.say(MAIL)
    await client.until(b"Sender taken\r\n")
    servers = []
    for name in names:
        client.say(b"RCPT TO:<%s>\r\n" % TO[name])
        server = await getattr(running, name).next()
        servers.append(server)
        await take_recipient(at if name == names[-1] else 3, server, TO[name])
        if name != names[-1] or at >= 3:
            await client.until(TO[name] + b"\r\n")
    if at >= 4:
        await send_message(at, client, servers)
    return servers


async def take_recipient(at: int, server, recipient: bytes) -> None:
    """Play a backend until it has taken a recipient, or before that up to a step."""
    if at >= 1:
        server.say(b"220 backend.example ready\r\n")
    if at == 1:
        await server.hears(b"LHLO ")
    if at >= 2:
        await server.hello()
    if at == 2:
        await server.until(b"RCPT TO:<" + recipient + b">\r\n")
    if at >= 3:
        await server.takes(recipient)


async def send_message(at: int, client, servers) -> None:
    """Play the rest, from DATA on."""
    client.say(b"DATA\r\n")
    for server in servers:
        await server.hears(b"DATA\r\n")
    if at >= 5:
        for server in servers:
            server.say(b"354 go\r\n")
        await client.until(GO)
        client.say(b"one")
        for server in servers:
            await server.until(b"one")
    if at >= 6:
        client.say(b"\r\n.\r\n")
        for server in servers:
            await server.until(b"\r\n.\r\n")
    if at >= 7:
        servers[0].say(b"250 2.0.0 taken\r\n")


@pytest.mark.parametrize("step", STEPS)
@ensureDeferred
async def test_a_client_that_is_gone_at_any_step(step):
    """All backends' connections end, no message's end is sent, and nothing is left of the session."""
    async with delivering() as running:
        client = await running.client()
        servers = await up_to(step, running, client, "west", "east")
        client.transport.abortConnection()
        for server in servers:
            assert b".\r\n" not in await server.end()
        await patient(lambda: not running.listener.factory.sessions)


@pytest.mark.parametrize("step", STEPS)
@ensureDeferred
async def test_a_client_that_says_no_more_at_any_step(step):
    """It may still want to hear what becomes of what it has said; the session ends when that is known."""
    async with delivering() as running:
        client = await running.client()
        servers = await up_to(step, running, client, "west", "east")
        client.transport.loseWriteConnection()
        if step not in ("recipient", "message"):  # where nothing is waited for
            for server in servers if step in ("data", "end") else servers[-1:]:
                server.transport.abortConnection()
        for server in servers:
            assert b".\r\n" not in await server.end()
        said = await client.end()
        assert said.count(b"451 4.4.") == (
            0 if step in ("recipient", "message") else 2 if step == "end" else 1
        )
        await patient(lambda: not running.listener.factory.sessions)


@pytest.mark.parametrize("how", ["abortConnection", "loseConnection"])
@pytest.mark.parametrize("step", STEPS[:-1])
@ensureDeferred
async def test_a_backend_that_ends_at_any_step(step, how):
    """Its recipient is to be tried again, the other one has the message, and the next one finds it anew."""
    async with delivering() as running:
        client = await running.client()
        west, east = await up_to(step, running, client, "west", "east")
        getattr(east.transport, how)()
        await east.lost
        at = STEPS.index(step)
        if at < 3:
            assert await client.until(b"\r\n") == (DOWN if at < 2 else LOST)
        if at < 4:
            client.say(b"DATA\r\n")
            await west.hears(b"DATA\r\n")
        if at < 5:
            west.say(b"354 go\r\n")
            await client.until(GO)
        if at < 6:
            client.say(b"\r\n.\r\n")
            await west.until(b"\r\n.\r\n")
        west.say(b"250 2.0.0 taken\r\n")
        said = await client.until(b"taken\r\n" if at < 3 else b"later\r\n")
        assert said == b"250 2.0.0 taken\r\n" + (LOST if at >= 3 else b"")
        [east] = await up_to("end", running, client, "east")
        east.say(b"250 2.0.0 taken again\r\n")
        await client.until(b"250 2.0.0 taken again\r\n")


ODD_REPLIES = [
    ("asked", b"250 2.1.0 s\r\n250-a\r\n251 b\r\n", ODD),
    ("asked", b"250 2.1.0 s\r\n354 go\r\n", ODD),
    ("asked", b"354 go\r\n250 a\r\n", ODD),
    ("asked", b"what?\r\n", ODD),
    ("asked", b"250 " + b"x" * 5000, ODD),
    ("asked", b"250-x\r\n" * 70, ODD),
    ("asked", b"199 x\r\n", ODD),
    ("asked", b"\r\n", ODD),
    ("asked", b"421 4.3.2 bye\r\n", LOST),
    ("asked", b"250 2.1.0 s\r\n250-2.1.5 a\r\n250 2.1.5 b\r\n", b"250-2.1.5 a\r\n250 2.1.5 b\r\n"),
    (
        "asked",
        b"250 2.1.0 s\r\n250-2.1.5 \r250 2.1.5 b\r\n250 c\0\r\n",
        b"250-2.1.5 ?250 2.1.5 b\r\n250 c?\r\n",
    ),
    ("data", b"250 2.0.0 taken\r\n", ODD),
    ("data", b"354-go\r\n250 on\r\n", ODD),
    ("data", b"451 4.3.0 no\r\n", b"451 4.3.0 no\r\n"),
    ("data", b"500 5.5.2 what\r\n", b"451 4.3.5 The mail service is not set up correctly\r\n"),
    ("end", b"354 go on\r\n", ODD),
    ("end", b"250-2.0.0 taken\r\n451 4.3.0 or not\r\n", ODD),
    ("end", b"250\r\n", b"250 \r\n"),
    ("end", b"554 5.6.0 spam\r\n", b"554 5.6.0 spam\r\n"),
    ("end", b"502 5.5.1 what\r\n", b"451 4.3.5 The mail service is not set up correctly\r\n"),
]


@pytest.mark.parametrize(("step", "answer", "told"), ODD_REPLIES)
@ensureDeferred
async def test_answers_of_all_kinds(step, answer, told):
    """What a backend says is passed on, made harmless; what makes no sense is a reason to try again."""
    async with delivering() as running:
        client = await running.client()
        [east] = await up_to(step, running, client, "east")
        for at in range(0, len(answer), 3 if len(answer) < 100 else 5000):
            east.say(answer[at : at + (3 if len(answer) < 100 else 5000)])
        assert await client.until(told[-2:] if told.count(b"\r\n") == 1 else told) == told
        client.say(b"NOOP\r\n")
        assert await client.until(b"\r\n") == b"250 2.0.0 Nothing done\r\n"


@pytest.mark.parametrize(
    ("early", "told"),
    [
        (b"250 2.0.0 taken\r\n", ODD),
        (b"354 go\r\n", ODD),
        (b"552 5.3.4 too large\r\n", b"552 5.3.4 too large\r\n"),
        (b"421 4.3.2 bye\r\n", LOST),
    ],
)
@pytest.mark.parametrize("step", ["data", "message"])
@ensureDeferred
async def test_an_answer_before_the_end_is_none_to_the_message(step, early, told):
    """A backend that says "taken" before it has all of the message has not taken it."""
    async with delivering() as running:
        client = await running.client()
        [east] = await up_to(step, running, client, "east")
        if step == "data":
            east.say(b"354 go\r\n" + early)
            await client.until(GO)
        else:
            east.say(early)
        await east.end()
        client.say(b"\r\n.\r\n")
        assert await client.until(b"\r\n") == told


@ensureDeferred
async def test_an_answer_too_many_is_none_to_the_next_message():
    """A second answer to a message ends the connection, so that it is not taken for one to the next."""
    async with delivering() as running:
        client = await running.client()
        [east] = await up_to("end", running, client, "east")
        client.say(MAIL + b"RCPT TO:<a@east.example>\r\nDATA\r\n")
        [session] = running.listener.factory.sessions
        await patient(lambda: len(session._receiver._reader))
        east.say(b"250 2.0.0 taken\r\n250 2.0.0 and again\r\n")
        assert (await client.until(b"taken\r\n")) == b"250 2.0.0 taken\r\n"
        await east.end()
        await client.until(ODD)


@pytest.mark.parametrize("step", ["asked", "data", "end"])
@ensureDeferred
async def test_an_answer_that_comes_too_late(monkeypatch, step):
    """A backend that takes too long has its connection closed: what it says later is nobody's answer."""
    for name in ("COMMAND_TIMEOUT", "DATA_TIMEOUT", "FINAL_TIMEOUT"):
        monkeypatch.setattr(target, name, 0.3)
    async with delivering() as running:
        client = await running.client()
        [east] = await up_to(step, running, client, "east")
        assert await client.until(b"\r\n") == LATE
        await east.end()


@ensureDeferred
async def test_replies_keep_the_clients_order_whoever_is_faster():
    """LMTP: the replies are in the order of the recipients, though the last backend answers first."""
    async with delivering() as running:
        client = await running.client()
        west, east = await up_to("recipient", running, client, "west", "east")
        client.say(b"RCPT TO:<b@west.example>\r\nRCPT TO:<b@east.example>\r\nDATA\r\n")
        for server in (west, east):
            await server.hears(b"RCPT TO:<b@")
            server.say(b"250 2.1.5 b\r\n")
        for server in (west, east):
            await server.hears(b"DATA\r\n")
            server.say(b"354 go\r\n")
        await client.until(GO)
        client.say(b".\r\n")
        for server in (west, east):
            await server.until(b".\r\n")
        east.say(b"250 2.0.0 east a\r\n452 4.2.2 east b\r\n")
        west.say(b"550 5.2.1 west a\r\n")
        client.say(b"NOOP\r\n")
        assert not client.heard
        west.say(b"250 2.0.0 west b\r\n")
        assert await client.until(b"Nothing done\r\n") == (
            b"550 5.2.1 west a\r\n250 2.0.0 east a\r\n250 2.0.0 west b\r\n452 4.2.2 east b\r\n"
            b"250 2.0.0 Nothing done\r\n"
        )


@ensureDeferred
async def test_a_whole_session_in_one_segment():
    """What a client pipelines, the message and QUIT among it, is done in order once it can be."""
    async with delivering() as running:
        client = await running.client()
        client.say(
            MAIL + b"RCPT TO:<a@east.example>\r\nDATA\r\none\r\n.\r\n"
            + MAIL + b"RCPT TO:<a@east.example>\r\nDATA\r\n..two\r\n.\r\nQUIT\r\n"
        )  # fmt: skip
        east = await running.east.next()
        await east.ready()
        for text in (b"one\r\n.\r\n", b"..two\r\n.\r\n"):
            await east.takes(b"a@east.example")
            await east.hears(b"DATA\r\n")
            east.say(b"354 go\r\n")
            assert await east.until(b"\r\n.\r\n") == text
            east.say(b"250 2.0.0 taken\r\n")
        assert (await client.end()).endswith(b"250 2.0.0 taken\r\n221 2.0.0 Bye\r\n")
        await east.hears(b"QUIT\r\n")


# --- mailroute ends -----------------------------------------------------------

FAREWELL = b"421 4.3.2 Shutting down, connect again\r\n"


@pytest.mark.parametrize("step", STEPS)
@ensureDeferred
async def test_when_it_ends_only_a_message_that_may_be_delivered_is_waited_for(step):
    """Before a message's end has been sent there is nothing to wait for, and nothing is delivered."""
    async with delivering() as running:
        client = await running.client()
        servers = await up_to(step, running, client, "west", "east")
        if step == "half answered":
            client.say(MAIL + b"RCPT TO:<b@east.example>\r\n")  # which is not begun any more
        stopped = running.listener.stopService()
        if step not in ("end", "half answered"):
            assert await client.end() == FAREWELL
            for server in servers:
                assert b"\r\n.\r\n" not in await server.end()
        else:
            for server in servers[step == "half answered" :]:
                assert not stopped.called
                server.say(b"250 2.0.0 taken\r\n")
            assert await client.end() == b"250 2.0.0 taken\r\n" * 2 + FAREWELL
            for server in servers:
                assert b"RCPT" not in await server.end()
        await stopped


@ensureDeferred
async def test_when_it_ends_it_does_not_wait_for_ever(monkeypatch):
    """A backend that does not say what has become of a message keeps mailroute for some seconds at most."""
    monkeypatch.setattr(session, "PARTING_TIMEOUT", 0.05)
    async with delivering() as running:
        client = await running.client()
        servers = await up_to("half answered", running, client, "west", "east")
        await running.listener.stopService()
        assert await client.end() == FAREWELL
        for server in servers:
            await server.end()


@ensureDeferred
async def test_when_it_ends_a_client_that_is_gone_is_not_waited_for():
    """Nobody is left to be told."""
    async with delivering() as running:
        client = await running.client()
        await up_to("end", running, client, "west", "east")
        stopped = running.listener.stopService()
        client.transport.abortConnection()
        await stopped
