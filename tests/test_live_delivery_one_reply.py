"""Messages for several backends that get one reply (``split = true``), with scripted backends."""

from __future__ import annotations

import pytest
from delivering import Server, delivering
from pytest_twisted import ensureDeferred

MAIL = b"MAIL FROM:<s@example.net>\r\nRCPT TO:<a@east.example>\r\nRCPT TO:<a@west.example>\r\n"
GO = b"354 Send the message, and a dot on a line by itself\r\n"
LOST = b"451 4.4.2 The connection to the mail server was lost, try again later\r\n"


async def offered(running, client, content=b"DATA\r\n") -> tuple[Server, Server]:
    """Offer a message to one recipient on east and one on west, who are taken."""
    client.say(MAIL + content)
    servers = []
    for backend, name in ((running.east, b"a@east.example"), (running.west, b"a@west.example")):
        server = await backend.next()
        await server.ready(hello=b"EHLO")
        await server.takes(name)
        servers.append(server)
    await client.until(b"a@west.example\r\n")
    return servers[0], servers[1]


async def asked(running, client) -> tuple[Server, Server]:
    """Offer such a message, and wait until both backends are asked for leave to send it."""
    servers = await offered(running, client)
    for server in servers:
        await server.hears(b"DATA\r\n")
    return servers


async def sending(running, client) -> tuple[Server, Server]:
    """Offer such a message, and begin to send it."""
    servers = await asked(running, client)
    for server in servers:
        server.say(b"354 go\r\n")
    await client.until(GO)
    client.say(b"one\r\n")
    for server in servers:
        await server.until(b"one")
    return servers


@pytest.mark.parametrize("answer", [b"451 4.3.0 not now", b"554 5.7.1 never", b""])
@ensureDeferred
async def test_a_message_that_one_backend_will_not_have_is_sent_to_none(answer):
    """What one backend refuses at DATA nobody gets: the client's next attempt makes no second copy."""
    async with delivering("smtp", listen={"split": True}) as running:
        client = await running.client(b"EHLO client.example")
        east, west = await asked(running, client)
        east.say(b"354 go\r\n")
        if answer:
            west.say(answer + b"\r\n")
        else:
            west.transport.abortConnection()
        assert await client.until(b"\r\n") == (answer + b"\r\n" if answer else LOST)
        assert await east.end() == b""


@ensureDeferred
async def test_a_message_that_one_backend_can_get_no_more_is_ended_at_none():
    """A backend that is lost in the middle costs the others the message too, as nobody can say who has it."""
    async with delivering("smtp", listen={"split": True}) as running:
        client = await running.client(b"EHLO client.example")
        east, west = await sending(running, client)
        west.transport.abortConnection()
        await west.lost
        client.say(b"two\r\n.\r\n")
        assert await client.until(b"\r\n") == LOST
        assert b"." not in await east.end()


@pytest.mark.parametrize("answer", [b"354 go", b"452 4.3.1 no room"])
@ensureDeferred
async def test_chunks_for_several_backends_go_as_data(answer):
    """The last chunk of BDAT could not be taken back; what one backend refuses, the others do not get."""
    async with delivering("smtp", listen={"split": True}) as running:
        client = await running.client(b"EHLO client.example")
        east, west = await offered(running, client, b"BDAT 5\r\none\r\nBDAT 4 LAST\r\n.two")
        for server in (east, west):
            await server.hears(b"DATA\r\n")
        east.say(b"354 go\r\n")
        west.say(answer + b"\r\n")
        if answer.startswith(b"4"):
            assert await client.until(b"\r\n") == answer + b"\r\n"
            assert b"\r\n." not in await east.end()
            return
        for server in (east, west):
            assert await server.until(b"\r\n.\r\n") == b"one\r\n..two\r\n.\r\n"
            server.say(b"250 2.0.0 taken\r\n")
        assert await client.until(b"2.0.0 taken\r\n") == b"250 2.0.0 Chunk taken\r\n250 2.0.0 taken\r\n"


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ((b"250 2.0.0 one", b"250 2.0.0 two"), b"250 2.0.0 one"),
        ((b"250 2.0.0 one", b"452 4.2.2 full"), b"452 4.2.2 full"),
        ((b"250 2.0.0 one", b"554 5.6.0 spam"), b"554 5.6.0 spam"),
        ((b"250 2.0.0 one", b"421 4.3.2 bye"), LOST.strip()),
        ((b"250 2.0.0 one", b"503 5.5.1 what"), b"451 4.3.5 The mail service is not set up correctly"),
        ((b"452 4.2.2 full", b""), b"452 4.2.2 full"),
        ((b"554 5.6.0 spam", b""), b"554 5.6.0 spam"),
    ],
)
@ensureDeferred
async def test_the_backends_are_told_the_end_one_after_the_other(answers, told):
    """Who comes behind one that has not taken the message does not get it; the reply is for all of them."""
    async with delivering("smtp", listen={"split": True}) as running:
        client = await running.client(b"EHLO client.example")
        east, west = await sending(running, client)
        client.say(b"two\r\n.\r\n")
        assert await east.until(b"\r\n.\r\n") == b"\r\ntwo\r\n.\r\n"
        await west.until(b"two\r\n")
        assert not west.heard
        east.say(answers[0] + b"\r\n")
        if answers[1]:
            await west.until(b".\r\n")
            west.say(answers[1] + b"\r\n")
        assert await client.until(b"\r\n") == told + b"\r\n"
        client.say(b"NOOP\r\n")
        assert await client.until(b"\r\n") == b"250 2.0.0 Nothing done\r\n"
        if not answers[1]:
            assert await west.end() == b""


@ensureDeferred
async def test_when_mailroute_ends_all_backends_get_what_one_has():
    """The end has been sent to one, so that the others are told it as well: nobody gets the message twice."""
    async with delivering("smtp", listen={"split": True}) as running:
        client = await running.client(b"EHLO client.example")
        east, west = await sending(running, client)
        client.say(b".\r\n")
        await east.until(b"\r\n.\r\n")
        stopped = running.listener.stopService()
        east.say(b"250 2.0.0 taken\r\n")
        await west.until(b"\r\n.\r\n")
        assert not stopped.called
        west.say(b"250 2.0.0 taken\r\n")
        said = await client.end()
        assert said == b"250 2.0.0 taken\r\n421 4.3.2 Shutting down, connect again\r\n"
        await stopped
