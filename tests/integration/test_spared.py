"""Whatever real server checks passwords, 10 000 logins of 100 users ask it 100 times, without any setting."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import pytest_twisted
from servers.accounts import ALICE, Account
from servers.auth_http import AuthServer
from servers.certificates import Certificate
from servers.databases import PASSWORD as DATABASE_PASSWORD
from servers.databases import Mariadb, Postgresql
from servers.dovecot import Dovecot, Terms
from servers.redis import Redis
from servers.slapd import BASE, SEARCHER, SECRET, Slapd
from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from zope.interface import directlyProvides, providedBy

from mailroute import authenticators, routers
from mailroute.events import Credentials, LoginRefused, Lookup, Reason
from mailroute.routers import SourceContext
from mailroute.testing import CLIENT

pytestmark = pytest.mark.integration

USERS = [f"user{number}" for number in range(100)]
LOGINS = 10000

PROGRAM = f"""#!{sys.executable} -u
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    right = asked["password"] == "pass " + asked["user"]
    print(json.dumps({{"id": asked["id"], "backend": "east", "proven": right}}))
"""


class Standing:
    """The reactor, but for the time, which stands still: how long the test takes is no matter."""

    def __init__(self) -> None:
        directlyProvides(self, providedBy(reactor))

    def seconds(self) -> float:
        return 1000.0

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


def secret(user: str) -> str:
    """Return a user's password."""
    return f"pass {user}"


def command(_stack: ExitStack, folder: Path, _certificate: Certificate) -> dict[str, object]:
    """Write a program that knows the passwords, and return the keys that ask it."""
    (folder / "program").write_text(PROGRAM)
    (folder / "program").chmod(0o755)
    return {"command": [str(folder / "program")], "send_password": True}


def nginx(stack: ExitStack, _folder: Path, _certificate: Certificate) -> dict[str, object]:
    """Start an auth server as nginx has it."""

    def answer(headers: Mapping[str, str], _: bytes) -> tuple[int, Mapping[str, str], bytes]:
        right = unquote(headers["Auth-Pass"]) == secret(headers["Auth-User"])
        place = {"Auth-Server": "127.0.0.1", "Auth-Port": "143"}
        return 200, {"Auth-Status": "OK" if right else "no", **place}, b""

    return {"url": stack.enter_context(AuthServer(answer)).url}


def in_json(stack: ExitStack, _folder: Path, _certificate: Certificate) -> dict[str, object]:
    """Start a web server that is asked in JSON."""

    def answer(_headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        asked = json.loads(body)
        said = {"backend": "east", "proven": asked["password"] == secret(asked["user"])}
        return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()

    server = stack.enter_context(AuthServer(answer))
    return {"url": server.url, "dialect": "json", "send_password": True}


def ldap(stack: ExitStack, folder: Path, certificate: Certificate) -> dict[str, object]:
    """Start a slapd."""
    server = Slapd(certificate)
    for user in USERS:
        server.add(user, secret(user), mailHost="east")
    stack.enter_context(server)
    (folder / "secret").write_text(f"{SECRET}\n")
    return {
        "urls": [f"ldap://localhost:{server.port}"],
        "base": f"ou=people,{BASE}",
        "filter": "(cn={user})",
        "bind_dn": SEARCHER,
        "bind_password_file": str(folder / "secret"),
        "bind": True,
    }


def dovecot(stack: ExitStack, _folder: Path, _certificate: Certificate) -> dict[str, object]:
    """Start a Dovecot."""
    accounts = [Account(user, secret(user), "east") for user in USERS]
    server = stack.enter_context(Dovecot(Terms(ssl="no", auth_sockets=True), ALICE, *accounts))
    return {"socket": str(server.folder / "run" / "auth-client")}


def database(kind: type[Any]) -> Callable[..., dict[str, object]]:
    """Return what starts a database that keeps the passwords' hashes."""

    def start(stack: ExitStack, folder: Path, _: Certificate) -> dict[str, object]:
        server = stack.enter_context(kind())
        server.execute("create table users (name varchar(99), hash varchar(99));")
        for user in USERS:
            server.execute(f"insert into users values ('{user}', '{{PLAIN}}{secret(user)}');")  # noqa: S608
        if server.kind == "postgresql":
            server.execute("grant select on users to mailroute")
        (folder / "secret").write_text(f"{DATABASE_PASSWORD}\n")
        return {
            "database": f"{server.kind}://mailroute@127.0.0.1:{server.port}/mail",
            "password_file": str(folder / "secret"),
            "query": "select hash as password from users where name = :user",
        }

    return start


def redis(stack: ExitStack, _folder: Path, _certificate: Certificate) -> dict[str, object]:
    """Start a Redis that keeps the passwords' hashes."""
    server = stack.enter_context(Redis())
    for user in USERS:
        server("HSET", f"mailroute:{user}", "password", f"{{PLAIN}}{secret(user)}")
    return {"url": f"redis://127.0.0.1:{server.port}"}


CHECKING = {
    "command": ("command", command),
    "http-nginx": ("http", nginx),
    "http-json": ("http", in_json),
    "ldap": ("ldap", ldap),
    "dovecot": ("dovecot-auth", dovecot),
}
"""Those who check passwords themselves: what the block says, and what starts each."""

KEEPING = {
    "postgresql": ("sql", database(Postgresql)),
    "mariadb": ("sql", database(Mariadb)),
    "redis": ("redis", redis),
}
"""Those who keep hashes."""


@pytest.fixture
def made(tmp_path: Path, certificate: Certificate) -> Iterator[Callable[..., Any]]:
    """Return what makes a router or an authenticator, with its server."""
    with ExitStack() as stack:

        def make(kind: str, registry: Any, start: Callable[..., dict[str, object]], **more: object) -> Any:
            context = SourceContext(tmp_path, frozenset({"east"}), str, Standing(), deferToThread)  # type: ignore[arg-type]
            options = start(stack, tmp_path, certificate) | more
            source = registry.source(kind)
            one = (source.router if registry is routers else source.authenticator)(options, context)
            IService(one).startService()
            stack.callback(lambda: pytest_twisted.blockon(Deferred.fromCoroutine(stopped(one))))
            return one

        yield make


async def stopped(service: Any) -> None:
    await gatherResults([each for each in [service.stopService()] if each is not None])


def lookup(user: str, password: str) -> Lookup:
    return Lookup(user, "imap", CLIENT, Credentials("PLAIN", user.encode(), password.encode()))


async def outcome(ask: Callable[[Lookup], Any], user: str, password: str) -> Any:
    """Return what comes of a login: what is answered, or why not."""
    try:
        answer = ask(lookup(user, password))
        return await answer if hasattr(answer, "__await__") else answer
    except LoginRefused as refused:
        return refused.refusal.reason


async def all_of(ask: Callable[[Lookup], Any]) -> list[Any]:
    """Have all log in as often as it takes, all users at a time."""
    got = []
    for _ in range(LOGINS // len(USERS)):
        logins = [Deferred.fromCoroutine(outcome(ask, user, secret(user))) for user in USERS]
        got += await gatherResults(logins)
    return got


@pytest.mark.parametrize("kind", CHECKING)
@pytest_twisted.ensureDeferred
async def test_a_route_that_checks_passwords(kind: str, made: Callable[..., Any]) -> None:
    """Each user is asked about once, and let in; a wrong password is none the better for it."""
    source, start = CHECKING[kind]
    router = made(source, routers, start, backend="east")
    got = await all_of(router.route)
    assert len(got) == LOGINS
    assert all(route.proven for route in got)
    assert router.counts.asked == len(USERS)
    for wrong in ("guess", secret(USERS[1]), ""):
        answer = await outcome(router.route, USERS[0], wrong)
        assert answer is Reason.AUTHENTICATION_FAILED or not answer.proven
    assert router.counts.asked == len(USERS) + 3


@pytest.mark.parametrize("kind", CHECKING | KEEPING)
@pytest_twisted.ensureDeferred
async def test_an_authenticator(kind: str, made: Callable[..., Any]) -> None:
    """The same where mailroute checks who calls, whether the other side checks passwords or keeps hashes."""
    source, start = (CHECKING | KEEPING)[kind]
    authenticator = made(source, authenticators, start)
    assert await all_of(authenticator.authenticate) == USERS * (LOGINS // len(USERS))
    (router,) = authenticator
    assert router.counts.asked == len(USERS)
    for wrong in ("guess", secret(USERS[1]), ""):
        assert await outcome(authenticator.authenticate, USERS[0], wrong) is Reason.AUTHENTICATION_FAILED, (
            wrong
        )
    assert router.counts.asked == len(USERS) + 3
