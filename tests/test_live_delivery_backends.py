"""Backends that are many, or differ in what they can, on real sockets."""

from __future__ import annotations

import pytest
from delivering import delivering
from pytest_twisted import ensureDeferred

from mailroute.delivery.terms import MAX_BACKENDS
from mailroute.events import Route
from mailroute.testing import FakeRouter

NAMES = tuple(f"b{number}" for number in range(MAX_BACKENDS + 1))
GO = b"354 Send the message, and a dot on a line by itself\r\n"


@ensureDeferred
async def test_a_message_has_so_many_backends_and_no_more():
    """Who lives on one backend too many is to be tried again; then another connection makes room for that."""
    route = [FakeRouter({f"a@{name}.example": Route(name) for name in NAMES})]
    async with delivering(names=NAMES, route=route) as running:
        client = await running.client()
        servers = []
        client.say(b"MAIL FROM:<s@example.net>\r\n")
        for name in NAMES[:-1]:
            client.say(b"RCPT TO:<a@%s.example>\r\n" % name.encode())
            servers.append(await running.backends[name].next())
            await servers[-1].ready()
            await servers[-1].takes(b"a@%s.example" % name.encode())
        last = b"RCPT TO:<a@%s.example>\r\n" % NAMES[-1].encode()
        client.say(last)
        await client.until(b"451 4.5.3 Too many recipients of one message, try again\r\n")
        assert not running.backends[NAMES[-1]].talks
        client.say(b"RSET\r\nMAIL FROM:<s@example.net>\r\n" + last)
        server = await running.backends[NAMES[-1]].next()
        await server.ready()
        await server.takes(b"a@%s.example" % NAMES[-1].encode())
        await client.until(b"2.1.5 a@%s.example\r\n" % NAMES[-1].encode())
        assert (await servers[0].until(b"QUIT\r\n")).startswith(b"RSET\r\n")


@pytest.mark.parametrize(
    ("missing", "parameter", "told"),
    [
        ("8BITMIME", b"BODY=8BITMIME", b"550 5.6.3 The mailbox takes no 8-bit messages\r\n"),
        ("SMTPUTF8", b"SMTPUTF8", b"553 5.6.7 The mailbox takes no internationalised addresses\r\n"),
    ],
)
@ensureDeferred
async def test_what_a_backend_lacks_is_told_to_its_own_recipients(missing, parameter, told):
    """Recipients whose backend cannot carry the message as it is are refused, the others get it."""
    text = "Subject: ü\r\n\r\n\xff\r\n".encode("latin-1")
    async with delivering() as running:
        client = await running.client()
        client.say(b"MAIL FROM:<s@example.net> " + parameter + b"\r\n")
        client.say(b"RCPT TO:<a@east.example>\r\nRCPT TO:<a@west.example>\r\nDATA\r\n")
        east = await running.east.next()
        await east.ready(*(name for name in ("PIPELINING", "8BITMIME", "SMTPUTF8") if name != missing))
        west = await running.west.next()
        await west.ready()
        assert await west.hears(b"MAIL") == b"MAIL FROM:<s@example.net> " + parameter + b"\r\n"
        await west.hears(b"RCPT")
        west.say(b"250 2.1.0 s\r\n250 2.1.5 a\r\n")
        assert await west.message_after(client, text + b".\r\n") == text + b".\r\n"
        west.say(b"250 2.0.0 taken\r\n")
        await client.until(b"250 2.0.0 taken\r\n")
        assert not east.heard
        client.say(b"MAIL FROM:<s@example.net> " + parameter + b"\r\nRCPT TO:<a@east.example>\r\n")
        assert (await client.until(told)).endswith(b"Sender taken\r\n" + told)
        client.say(b"RSET\r\nMAIL FROM:<s@example.net>\r\nRCPT TO:<a@east.example>\r\n")
        await east.takes(b"a@east.example")


@ensureDeferred
async def test_one_slow_backend_keeps_the_message_from_all_where_there_is_one_reply():
    """A backend that stops reading is left after stall_timeout, and none gets the end of the message."""
    async with delivering("smtp", listen={"split": True}, limits={"stall_timeout": 1}) as running:
        client = await running.client(b"EHLO client.example")
        client.say(
            b"MAIL FROM:<s@example.net>\r\nRCPT TO:<a@east.example>\r\nRCPT TO:<a@west.example>\r\nDATA\r\n"
        )
        servers = []
        for backend, name in ((running.east, b"a@east.example"), (running.west, b"a@west.example")):
            servers.append(await backend.next())
            await servers[-1].ready(hello=b"EHLO")
            await servers[-1].takes(name)
        for server in servers:
            await server.hears(b"DATA\r\n")
            server.say(b"354 go\r\n")
        await client.until(GO)
        east, west = servers
        east.transport.pauseProducing()
        client.say(b"0123456789abcdef\r\n.." * 600_000 + b"\r\n.\r\n")
        assert await client.until(b"\r\n") == b"451 4.4.2 The mail server took too long, try again later\r\n"
        assert not (await west.end()).endswith(b"\r\n.\r\n")
