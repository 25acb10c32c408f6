"""What real servers say that makes no sense refuses one login through mailroute, and troubles nobody else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from live import Live, live
from servers.accounts import ALICE, Account
from servers.auth_http import AuthServer
from servers.certificates import Certificate
from servers.databases import PASSWORD as DATABASE_PASSWORD
from servers.databases import Mariadb, Postgresql
from servers.dovecot import Dovecot, Terms
from servers.redis import Redis
from servers.slapd import BASE, SEARCHER, SECRET, Slapd
from twisted.logger import LogEvent, capturedLogs, eventAsText

pytestmark = pytest.mark.integration

PASSWORD = "s3same"
BREAKER = 3
GOOD = {"backend": "east"}
NONSENSE = {
    "unknown": {"backend": "norh"},
    "second": {"backend": "east,norh"},
    "host-for-backend": {"backend": "127.0.0.1"},
    "port-zero": GOOD | {"port": "0"},
    "port-beyond": GOOD | {"port": "65536"},
    "port-letters": GOOD | {"port": "143x"},
    "newline": GOOD | {"name": "b\r\na2 LOGOUT"},
    "long": GOOD | {"name": "x" * 513},
    "host": GOOD | {"host": "a b"},
}
"""What the accounts have; nothing of it is a route."""

NO_ACCOUNT = {
    "port-beyond": {"port": "65536"},
    "port-letters": {"port": "143x"},
    "newline": {"name": "b\r\na2 LOGOUT"},
    "long": {"name": "x" * 513},
    "host": {"host": "a b"},
    "unknown": {"backend": "norh"},
    "several": {"name": "one\ntwo"},
}
"""What is wrong with an account of an authenticator's, for whom it is no matter where somebody lives."""

OK = {"Auth-Status": "OK", "Auth-Server": "127.0.0.1", "Auth-Port": "1143"}
OF_NGINX = {
    "name-for-address": OK | {"Auth-Server": "mail.example.org"},
    "no-address": {"Auth-Status": "OK"},
    "port-zero": OK | {"Auth-Port": "0"},
    "port-beyond": OK | {"Auth-Port": "65536"},
    "port-letters": OK | {"Auth-Port": "143x"},
    "long": OK | {"Auth-User": "x" * 513},
    "control": OK | {"Auth-User": "b\x01b"},
}
"""The same in the dialect of nginx."""

OF_DOVECOT = {
    "unknown": "host=a,b",
    "port-zero": "host=east port=0",
    "port-beyond": "host=east port=65536",
    "port-letters": "host=east port=143x",
    "long": f"host=east destuser={'x' * 513}",
    "control": "host=east destuser=b\x01b",
}
"""The same in the extra fields of a Dovecot's passdb."""

PROGRAM = f"""#!{sys.executable} -u
import json, sys
known = json.load(open("known.json"))
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps({{"id": asked["id"], **known.get(asked["user"], {{}})}}))
"""


def quoted(text: str) -> str:
    """Return a text as SQL has it; without a backslash it is the same to both servers."""
    return "'" + text.replace("'", "''") + "'"


def database(kind: type[Any]) -> Callable[..., dict[str, object]]:
    """Return what starts a database with the accounts, and returns the block."""

    def start(stack: ExitStack, folder: Path, _: Certificate) -> dict[str, object]:
        server = stack.enter_context(kind())
        server.execute(
            "create table users (name varchar(99), host varchar(99), port varchar(9), account varchar(600), "
            "address varchar(99));"
        )
        for user, fields in {**NONSENSE, "bob": GOOD}.items():
            values = [user, *(fields.get(key, "") for key in ("backend", "port", "name", "host"))]
            server.execute(f"insert into users values ({', '.join(map(quoted, values))});")  # noqa: S608
        if server.kind == "postgresql":
            server.execute("grant select on users to mailroute")
        (folder / "secret").write_text(f"{DATABASE_PASSWORD}\n")
        return {
            "source": "sql",
            "database": f"{server.kind}://mailroute@127.0.0.1:{server.port}/mail",
            "password_file": str(folder / "secret"),
            "query": "select host as backend, port, account as name, address as host from users "
            "where name = :user",
        }

    return start


def redis(stack: ExitStack, _folder: Path, _certificate: Certificate) -> dict[str, object]:
    """Start a Redis with the accounts, each a hash, and return the block."""
    server = stack.enter_context(Redis())
    for user, fields in {**NONSENSE, "bob": GOOD}.items():
        server("HSET", f"mailroute:{user}", *(word for pair in fields.items() for word in pair))
    return {"source": "redis", "url": f"redis://127.0.0.1:{server.port}"}


def ldap(
    stack: ExitStack,
    folder: Path,
    certificate: Certificate,
    accounts: Mapping[str, Mapping[str, str]] = NONSENSE | {"bob": GOOD},
) -> dict[str, object]:
    """Start a slapd with the accounts, and return the block."""
    attributes = {"mailHost": "backend", "description": "name", "carLicense": "host", "roomNumber": "port"}
    server = Slapd(certificate)
    for user, fields in accounts.items():
        password = "secret" if user == "bob" else PASSWORD
        server.add(user, password, **{name: fields[key] for name, key in attributes.items() if key in fields})
    stack.enter_context(server)
    (folder / "secret").write_text(f"{SECRET}\n")
    return {
        "source": "ldap",
        "urls": [f"ldap://localhost:{server.port}"],
        "base": f"ou=people,{BASE}",
        "filter": "(&(objectClass=inetOrgPerson)(cn={user}))",
        "attributes": attributes,
        "bind_dn": SEARCHER,
        "bind_password_file": str(folder / "secret"),
    }


def command(_stack: ExitStack, folder: Path, _certificate: Certificate) -> dict[str, object]:
    """Write a program that knows the accounts, and return the block."""
    program = folder / "program"
    (folder / "known.json").write_text(json.dumps({**NONSENSE, "bob": GOOD}))
    program.write_text(PROGRAM.replace("known.json", str(folder / "known.json")))
    program.chmod(0o755)
    return {"source": "command", "command": [str(program)]}


def http(stack: ExitStack, _folder: Path, _certificate: Certificate) -> dict[str, object]:
    """Start a web server that knows the accounts, and return the block that asks it in JSON."""

    def answer(_headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        found = {**NONSENSE, "bob": GOOD}[json.loads(body)["user"]]
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()

    server = stack.enter_context(AuthServer(answer))
    return {"source": "http", "dialect": "json", "urls": [server.url]}


def nginx(stack: ExitStack, _folder: Path, _certificate: Certificate) -> dict[str, object]:
    """Start an auth server as nginx has it, which knows the accounts, and return the block."""

    def answer(headers: Mapping[str, str], _: bytes) -> tuple[int, Mapping[str, str], bytes]:
        user = headers["Auth-User"]
        return 200, OK | {"Auth-Port": str(EAST["port"])} if user == "bob" else OF_NGINX[user], b""

    server = stack.enter_context(AuthServer(answer))
    return {"source": "http", "urls": [server.url], "backend": "east"}


def dovecot(socket: str, key: str) -> Callable[..., dict[str, object]]:
    """Return what starts a Dovecot with the accounts, to be asked at one of its sockets."""

    def start(stack: ExitStack, _folder: Path, _certificate: Certificate) -> dict[str, object]:
        server = stack.enter_context(Dovecot(Terms(ssl="no", auth_sockets=True), ALICE))
        for user, extra in OF_DOVECOT.items():
            server.add(Account(user, PASSWORD, "east"), extra)
        server.add(Account("bob", "secret", "east"), "host=east")
        return {"source": "dovecot-auth", key: str(server.folder / "run" / socket)}

    return start


EAST = {"port": 0}
"""Where the backend listens, for who has to say it."""

SOURCES = {
    "postgresql": database(Postgresql),
    "mariadb": database(Mariadb),
    "redis": redis,
    "ldap": ldap,
    "command": command,
    "http-json": http,
    "http-nginx": nginx,
    "dovecot-login": dovecot("auth-client", "socket"),
    "dovecot-master": dovecot("auth-master", "master_socket"),
}
"""What starts each, by its name."""

OTHERS = {"http-nginx": OF_NGINX, "dovecot-login": OF_DOVECOT, "dovecot-master": OF_DOVECOT}
"""Those that say their nonsense in other words."""


@pytest.fixture
def route(kind: str, tmp_path: Path, certificate: Certificate) -> Iterator[dict[str, object]]:
    """Start a server, and return the block that asks it."""
    with ExitStack() as stack:
        yield SOURCES[kind](stack, tmp_path, certificate) | {"breaker_failures": BREAKER}


async def refused_one_by_one(house: Live, users: Collection[str]) -> None:
    """Insist that each of these logins is refused, while others go on and come in."""
    joined, there = await house.logged_in()
    for user in users:
        client = await house.greeted()
        client.say(f"a LOGIN {user} {PASSWORD}\r\n".encode())
        assert (await client.until(b"\r\n")).startswith(b"a NO [SERVERBUG] "), user
        client.transport.abortConnection()
    joined.say(b"b NOOP\r\n")
    await there.until(b"b NOOP\r\n")
    await house.logged_in()


def told(logs: Sequence[LogEvent], users: Collection[str], source: str) -> None:
    """Insist that the log tells each of them once, with the source's name and without the password."""
    said = [eventAsText(event) for event in logs]
    lines = [line for line in said if "gave an answer that makes no sense: " in line]
    assert len(lines) == len(users)
    assert all(source in line and "\r" not in line for line in lines)
    assert PASSWORD not in repr(said)


@pytest.mark.parametrize("kind", SOURCES)
@pytest_twisted.ensureDeferred
async def test_nonsense_refuses_that_login_alone(kind: str, route: dict[str, object]) -> None:
    """More of it than opens a breaker is told each time, without the password; others go on and come in."""
    nonsense = OTHERS.get(kind, NONSENSE)
    assert len(nonsense) > BREAKER
    with capturedLogs() as logs:
        async with live([route], limits={"failed_logins": 0}) as house:
            EAST["port"] = house.east_port.getHost().port
            await refused_one_by_one(house, nonsense)
    told(logs, nonsense, f"route[1] ({route['source']})")


@pytest_twisted.ensureDeferred
async def test_nonsense_of_a_directory_lets_nobody_in(tmp_path: Path, certificate: Certificate) -> None:
    """Where a directory checks passwords, an entry without sense is refused, though its password is right."""
    with ExitStack() as stack:
        block = ldap(stack, tmp_path, certificate, {**NO_ACCOUNT, "bob": {}})
        block |= {"bind": True, "breaker_failures": BREAKER}
        route = {"source": "default", "backend": "east"}
        with capturedLogs() as logs:
            async with live([route], authenticate=[block], limits={"failed_logins": 0}) as house:
                await refused_one_by_one(house, NO_ACCOUNT)
    assert len(NO_ACCOUNT) > BREAKER
    told(logs, NO_ACCOUNT, "authenticate[1] (ldap)")
