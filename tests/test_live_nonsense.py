"""An answer that makes no sense refuses one login, in every protocol, and is nobody else's trouble."""

from __future__ import annotations

import base64
import sqlite3
from pathlib import Path

import pytest
import pytest_twisted
from delivering import delivering
from live import live
from twisted.logger import capturedLogs, eventAsText

TABLE = "create table users (name text, host, port, account, address)"
NONSENSE = {
    "norh": ("norh", None, None, None),
    "list": ("east,norh", None, None, None),
    "host": ("127.0.0.1", None, None, None),
    "zero": ("east", 0, None, None),
    "beyond": ("east", 65536, None, None),
    "letters": ("east", "143x", None, None),
    "part": ("east", 1.5, None, None),
    "newline": ("east", None, "b\r\na2 LOGOUT", None),
    "nul": ("east", None, "b\0b", None),
    "long": ("east", None, "x" * 513, None),
    "bytes": ("east", None, b"\xff", None),
    "address": ("east", None, None, "a b\r\n"),
}
"""What the accounts have for a backend, a port, a name and a host; none is one."""

QUERY = "select host as backend, port, account as name, address as host from users where name = :user"
SECRET = "s3same"
PLAIN = {user: base64.b64encode(f"\0{user}\0{SECRET}".encode()) for user in NONSENSE}

PROTOCOLS = {
    "imap": (lambda user: f"a LOGIN {user} {SECRET}\r\n".encode(), b"a NO [SERVERBUG] "),
    "pop3": (lambda user: b"AUTH PLAIN " + PLAIN[user] + b"\r\n", b"-ERR [SYS/PERM] "),
    "submission": (lambda user: b"AUTH PLAIN " + PLAIN[user] + b"\r\n", b"454 4.3.5 "),
    "managesieve": (lambda user: b'AUTHENTICATE "PLAIN" "' + PLAIN[user] + b'"\r\n', b"NO "),
}
"""How a client logs in, and how what it is told begins."""


@pytest.fixture
def route(tmp_path: Path) -> dict[str, object]:
    """Return the block of a source that has those accounts, and one as it should be."""
    path = tmp_path / "users.db"
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(TABLE)
        rows = [(name, *row) for name, row in NONSENSE.items()]
        connection.executemany(
            "insert into users values (?, ?, ?, ?, ?)", [*rows, ("bob", "east", None, None, None)]
        )
    connection.close()
    return {"source": "sql", "database": f"sqlite:{path}", "query": QUERY, "breaker_failures": 3}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest_twisted.ensureDeferred
async def test_nonsense_refuses_that_login_alone(protocol: str, route: dict[str, object]) -> None:
    """Each is refused as a fault on this side, and logged with the source's label, not with the password."""
    command, refusal = PROTOCOLS[protocol]
    backend = {} if protocol == "imap" else {protocol: "tcp:127.0.0.1:9"}
    listen = {"protocol": protocol, "security": "none"}
    limits = {"failed_logins": 0, "bad_commands": 0}
    with capturedLogs() as logs:
        async with live([route], listen=listen, backend=backend, limits=limits) as house:
            for user in NONSENSE:
                client = await house.client()
                await client.until(b"OK " if protocol == "managesieve" else b"ready")
                if protocol == "submission":
                    client.say(b"EHLO client.example\r\n")
                    await client.until(b"250 ")
                client.say(command(user))
                assert refusal in await client.until(refusal)
                client.transport.abortConnection()
    said = [eventAsText(event) for event in logs]
    made_no_sense = [line for line in said if "makes no sense" in line]
    assert len(made_no_sense) == len(NONSENSE)
    assert all("route[1] (sql) gave an answer that makes no sense: " in line for line in made_no_sense)
    assert not any("\r" in line or "\0" in line for line in made_no_sense)
    assert SECRET not in repr(said)
    assert not [line for line in said if "left alone" in line]


@pytest_twisted.ensureDeferred
async def test_others_log_in_meanwhile(route: dict[str, object]) -> None:
    """Who is joined goes on, and the next one gets in, after more nonsense than opens the breaker."""
    async with live([route], limits={"failed_logins": 0}) as house:
        joined, there = await house.logged_in()
        for user in NONSENSE:
            client = await house.greeted()
            client.say(PROTOCOLS["imap"][0](user))
            await client.until(b"a NO [SERVERBUG] ")
            client.transport.abortConnection()
        joined.say(b"b NOOP\r\n")
        await there.until(b"b NOOP\r\n")
        await house.logged_in()


@pytest_twisted.ensureDeferred
async def test_a_recipient_with_nonsense_is_to_come_later(route: dict[str, object]) -> None:
    """That recipient is refused for now, with the source in the log; the next one is taken."""
    with capturedLogs() as logs:
        async with delivering(route=[route]) as house:
            client = await house.client()
            client.say(b"MAIL FROM:<s@example.net>\r\n")
            await client.until(b"250 ")
            await client.until(b"\r\n")
            for user in NONSENSE:
                client.say(f"RCPT TO:<{user}>\r\n".encode())
                assert (await client.until(b"\r\n")).startswith(b"4"), user
            client.say(b"RCPT TO:<bob>\r\n")
            east = await house.east.next()
            await east.ready()
            await east.takes(b"bob")
            assert (await client.until(b"\r\n")).startswith(b"250 ")
    said = [eventAsText(event) for event in logs]
    assert len([line for line in said if "route[1] (sql) gave an answer that makes" in line]) == len(NONSENSE)
