"""A real Redis says where accounts live."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from asking import BROKEN_NAMES, HOSTILE_NAMES, explained
from attrs import evolve
from live import patient
from readme import TEXT, blocks
from servers.accounts import Account, message
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.redis import PASSWORD, READER_PASSWORD, Redis
from servers.site import backend, configuration, listeners
from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from mailroute import authenticators, routers
from mailroute.events import (
    Change,
    Credentials,
    Identity,
    LoginRefused,
    Lookup,
    Method,
    Reason,
    Route,
    Security,
)
from mailroute.routers import SourceContext
from mailroute.testing import CLIENT

pytestmark = pytest.mark.integration

FIELDS = {
    "backend": "west, east",
    "host": "10.0.0.5",
    "port": "1143",
    "name": "ü %\"'",
    "password": "s3cret\\",
    "master": "root",
    "login": "master",
    "identity": "proxy-v2",
    "security": "tls",
    "forward_of": "a b",
}
FULL = Route(
    "west",
    "ü %\"'",
    ("east",),
    b"s3cret\\",
    "root",
    change=Change("10.0.0.5", 1143, Method.MASTER, Identity.PROXY_V2, Security.TLS),
    forward=(("of", "a b"),),
)


def fill(server: Redis, database: int = 0) -> None:
    """Put some accounts into a database."""

    def say(*words: str) -> None:
        server(*words, database=database)

    say("HSET", "mailroute:hashed", *(word for pair in FIELDS.items() for word in pair))
    say("SET", "mailroute:object", json.dumps(FIELDS))
    say("SET", "mailroute:named", "west")
    say("HSET", "mailroute:closed", "refuse", "disabled")
    say("HSET", "mailroute:moving", "later", "yes")
    say("HSET", "mailroute:nonsense", "backend", "west", "port", "99999")
    say("SET", "mailroute:number", "17")
    say("RPUSH", "mailroute:list", "west")
    say("SET", "mailroute:long", "x" * 100000)
    say("SET", "secret", "west")


@pytest.fixture(scope="module")
def redis(certificate: Certificate) -> Iterator[Redis]:
    with Redis(certificate, PASSWORD) as server:
        (server.folder / "password").write_text(f"{PASSWORD}\n", encoding="utf-8")
        (server.folder / "reader").write_text(f"{READER_PASSWORD}\n")
        (server.folder / "wrong").write_text("wr0ng\n")
        fill(server)
        server("SET", "mailroute:third", "west", database=3)
        yield server


def context_of(server: Redis) -> SourceContext:
    """Return the context of a block beside this server's files."""
    return SourceContext(
        server.folder,
        frozenset({"east", "west"}),
        str.lower,
        reactor,
        deferToThread,
        label="route[1] (redis)",
    )


def made(server: Redis, **options: object):
    """Make a router that runs, and asks this server."""
    context = context_of(server)
    options = {"url": f"redis://127.0.0.1:{server.port}", **options}
    router = routers.source("redis").router(options, context)
    IService(router).startService()
    return router


async def ask(router, user: str, protocol: str = "imap"):
    """Return the route, or why there is none."""
    return await explained(router, Lookup(user, protocol, CLIENT))


WAYS = ["tcp", "tls", "unix", "relative", "acl"]


def way(server: Redis, name: str, authority: Authority) -> dict[str, object]:
    """Return the options for a way to the server."""
    password = {"password_file": "password"}
    return {
        "tcp": password,
        "tls": password | {"url": f"rediss://localhost:{server.tls_port}", "ca": str(authority.file)},
        "unix": password | {"url": f"unix:{server.socket}"},
        "relative": password | {"url": "unix:redis.sock?db=0"},
        "acl": {"username": "reader", "password_file": "reader"},
    }[name]


@pytest.mark.parametrize("name", WAYS)
@pytest_twisted.ensureDeferred
async def test_each_way_gives_each_answer(redis, authority, name: str) -> None:
    """By TCP, TLS, a UNIX socket, or as a user that may only read: fields count, and so do strings."""
    router = made(redis, **way(redis, name, authority))
    try:
        assert await ask(router, "hashed") == FULL
        assert await ask(router, "object") == FULL
        assert await ask(router, "named") == Route("west")
        assert await ask(router, "nobody") is None
        assert await ask(router, "closed") is Reason.CONTACT_ADMIN
        assert await ask(router, "moving") is Reason.UNAVAILABLE
        assert "port must be" in await ask(router, "nonsense")
        assert "no backend" in await ask(router, "number")
        assert "neither a hash nor a string" in await ask(router, "list")
        assert "more than 65536 bytes" in await ask(router, "long")
        assert await ask(router, "named", "pop3") == Route("west")
        assert router.counts.failed == 0
    finally:
        router.stopService()


@pytest_twisted.ensureDeferred
async def test_the_database_has_a_number(redis) -> None:
    """Each database has its own keys; one that there is not is told in the log."""
    third = made(redis, url=f"redis://127.0.0.1:{redis.port}/3", password_file="password")
    socket = made(redis, url="unix:redis.sock?db=3", password_file="password")
    none = made(redis, url=f"redis://127.0.0.1:{redis.port}/99", password_file="password")
    try:
        assert await ask(third, "third") == await ask(socket, "third") == Route("west")
        assert await ask(third, "named") is None
        with capturedLogs() as logs:
            assert await ask(none, "third") is Reason.UNAVAILABLE
        assert any("no database 99" in str(event.get("why")) for event in logs)
    finally:
        for router in (third, socket, none):
            router.stopService()


INJECTIONS = (*HOSTILE_NAMES, *BROKEN_NAMES)


@pytest_twisted.ensureDeferred
async def test_no_name_is_more_than_a_name(redis) -> None:
    """Whatever a name holds, it is looked for as it is: it finds its own key alone, and does nothing else."""
    router = made(redis, password_file="password")
    keys = redis("DBSIZE")
    try:
        for name in INJECTIONS:
            assert await ask(router, name) is None
        assert redis("DBSIZE") == keys
        for name in INJECTIONS:
            if "\0" not in name:  # which no argument of a program can hold
                redis("SET", f"mailroute:{name}", "east")
                assert await ask(router, name, "pop3") == Route("east")
                redis("DEL", f"mailroute:{name}")
    finally:
        router.stopService()


@pytest.mark.parametrize(
    ("kept", "secret"),
    [
        ('{"backend": "{PLAIN}wonderland"}', "wonderland"),
        ("$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaA", "argon2id$v=19"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_string_that_is_a_hash_is_not_shown(redis, kept: str, secret: str) -> None:
    """An authenticator that finds the hash where a backend's name would be says so, without the hash."""
    redis("SET", "mailroute:astray", kept)
    options = {"url": f"redis://127.0.0.1:{redis.port}", "password_file": "password"}
    context = evolve(context_of(redis), label="authenticate[1] (redis)")
    authenticator = authenticators.source("redis").authenticator(options, context)
    IService(authenticator).startService()
    question = Lookup("astray", "imap", CLIENT, Credentials("PLAIN", b"astray", b"a guess"))
    try:
        with capturedLogs() as logs, pytest.raises(LoginRefused) as refused:
            await authenticator.authenticate(question)
    finally:
        await authenticator.stopService()
        redis("DEL", "mailroute:astray")
    assert refused.value.refusal.reason is Reason.MISCONFIGURED
    (told,) = [event for event in logs if "makes no sense" in event["log_format"]]
    assert told["source"] == "authenticate[1] (redis)"
    assert secret not in repr(logs) + repr(refused.value.refusal)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "it wants a password"),
        ({"password_file": "wrong"}, "do not match"),
        ({"username": "reader", "password_file": "wrong"}, "do not match"),
        ({"username": "nobody", "password_file": "password"}, "do not match"),
        ({"username": "reader", "password_file": "reader", "key": "other:{user}"}, r"\+hgetall"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_who_is_not_let_in_is_told_why(redis, options, told: str) -> None:
    """Where a password or an ACL does not do, the log says which, without the secret."""
    router = made(redis, **options)
    try:
        with capturedLogs() as logs:
            assert await ask(router, "named") is Reason.UNAVAILABLE
    finally:
        router.stopService()
    complaint = next(event for event in logs if "Redis at" in event.get("why", ""))
    assert complaint["source"] == "route[1] (redis)"
    assert re.search(told, complaint["why"])
    assert not any(secret in repr(logs) for secret in (PASSWORD, READER_PASSWORD, "wr0ng"))


@pytest_twisted.ensureDeferred
async def test_a_password_to_a_server_without_one() -> None:
    """A server that has no passwords is told apart from one that has another, and gets no question."""
    with Redis() as server:
        fill(server)
        (server.folder / "password").write_text("s3cret\n")
        open_to_all, closed = made(server), made(server, password_file="password")
        try:
            with capturedLogs() as logs:
                assert await ask(open_to_all, "named") == Route("west")
                assert await ask(closed, "named") is Reason.UNAVAILABLE
            assert any("does not take the password" in str(event.get("why")) for event in logs)
            assert "s3cret" not in repr(logs)
        finally:
            open_to_all.stopService()
            closed.stopService()


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_not_who_it_should_be(redis, authority, tmp_path) -> None:
    """With another authority or name there is no answer, no password is sent, and the log says why."""
    other = Authority(tmp_path / "other")
    url = f"rediss://localhost:{redis.tls_port}"
    ours = str(authority.file)
    for options, told in (
        ({"url": url, "ca": str(other.file)}, "no TLS: .*certificate"),
        ({"url": url}, "no TLS: .*certificate"),
        ({"url": url.replace("localhost", "127.0.0.2"), "ca": ours}, "no TLS: .*the name 127.0.0.2"),
        # It waits for the end of a command.
        ({"url": url.replace(str(redis.tls_port), str(redis.port)), "ca": ours}, "no answer within 1 s"),
    ):
        asked = redis.calls("auth")
        router = made(redis, password_file="password", timeout=1, **options)
        with capturedLogs() as logs:
            assert await ask(router, "named") is Reason.UNAVAILABLE
        router.stopService()
        # What asks for the count logs in as well.
        assert redis.calls("auth") == asked + 1
        why = [str(event.get("why")) for event in logs]
        assert any(re.match(told, each) for each in why), why


@pytest_twisted.ensureDeferred
async def test_ten_thousand_lookups_ask_a_hundred_times(redis) -> None:
    """The server counts one question for each user, over no more connections than allowed."""
    redis("CONFIG", "RESETSTAT")
    router = made(redis, password_file="password", connections=3)
    try:
        questions = [Lookup(f"u{number % 100}", "imap", CLIENT) for number in range(10000)]
        answers = [router.route(question) for question in questions]
        waiting = [answer for answer in answers if isinstance(answer, Deferred)]
        await gatherResults(waiting)
        assert redis.calls("hgetall") == 100
        assert 1 <= redis.clients() <= 3
    finally:
        router.stopService()
    await patient(lambda: redis.clients() == 0)


@pytest.mark.parametrize("name", ["tcp", "tls", "unix"])
@pytest_twisted.ensureDeferred
async def test_it_comes_back_by_itself(certificate, authority, name: str) -> None:
    """While Redis is away old answers hold; when it is back, it is asked over a new connection."""
    with Redis(certificate, PASSWORD) as server:
        (server.folder / "password").write_text(f"{PASSWORD}\n", encoding="utf-8")
        fill(server)
        options = way(server, name, authority)
        router = made(server, cache_ttl=0.001, breaker_pause=0.01, breaker_failures=2, **options)
        try:
            assert await ask(router, "named") == Route("west")
            server.kill()
            assert await ask(router, "named") == Route("west")
            assert await ask(router, "hashed") is Reason.UNAVAILABLE
            assert router.counts.stale == 1
            assert await ask(router, "hashed") is Reason.UNAVAILABLE
            server.start()
            fill(server)
            assert await ask(router, "hashed") == FULL
        finally:
            router.stopService()


@pytest_twisted.ensureDeferred
async def test_a_restart_between_two_questions_costs_nobody_a_login() -> None:
    """The connection that was kept is gone, and the next question finds a new one."""
    with Redis() as server:
        fill(server)
        router = made(server)
        try:
            assert await ask(router, "named") == Route("west")
            server.kill()
            server.start()
            fill(server)
            assert await ask(router, "hashed") == FULL
            assert router.counts.failed == 0
        finally:
            router.stopService()


@pytest.mark.parametrize("name", ["tcp", "tls", "unix"])
@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs(redis, authority, name: str) -> None:
    """A question has its time, known answers are told, the breaker opens, and a stop waits for nothing."""
    options = {"timeout": 0.3, "connections": 2, "breaker_failures": 3, **way(redis, name, authority)}
    router = made(redis, **options)
    assert await ask(router, "named") == Route("west")
    redis.hang()
    try:
        slow = [Deferred.fromCoroutine(ask(router, f"u{number}")) for number in range(20)]
        assert router.route(Lookup("named", "imap", CLIENT)) == Route("west")
        assert set(await gatherResults(slow)) == {Reason.UNAVAILABLE}
        assert router.counts.slow == 20
        assert await ask(router, "hashed") is Reason.UNAVAILABLE
        assert router.counts.spared == 1
        waiting = made(redis, **options | {"timeout": 60})
        pending = [Deferred.fromCoroutine(ask(waiting, f"u{number}")) for number in range(20)]
        assert waiting.stopService() is None
        assert set(await gatherResults(pending)) == {Reason.UNAVAILABLE}
    finally:
        redis.wake()
        router.stopService()


def example(language: str) -> str:
    """Return the example of the README: the configuration's part, or Redis's."""
    text = TEXT.partition('`source = "redis"`: a Redis server')[2]
    return blocks(text, language)[0].text


def test_a_login_from_end_to_end(redis: Redis, certificate: Certificate, authority: Authority) -> None:
    """The README's example, with other addresses: Redis says where, and mailroute logs in there."""
    password = "its-0wn"
    alice, bob = Account("alice", "wonderland", "shards"), Account("bob@example.org", "builder", "shards")
    with Dovecot(Terms(certificate=certificate), alice, bob) as mail:
        mail.deliver(alice, message("for who moved"))
        there = example("redis").replace("10.0.0.5 port 1143", f"localhost port {mail.imap}")
        assert str(mail.imap) in there
        assert redis.type(there.replace("PASSWORD", password)) == ["OK", "OK", "3", "OK"]
        [route] = tomllib.loads(example("toml"))["route"]
        route["url"] = route["url"].replace("127.0.0.1:6379", f"127.0.0.1:{redis.port}")
        assert str(redis.port) in route["url"]
        config = configuration(certificate, {"shards": backend(mail, authority)}) | {"route": [route]}
        files = {"redis-password": f"{password}\n"}
        with Mailroute(listeners(), config, files) as proxy:
            with RawImap("127.0.0.1", proxy.ports["plain"]) as session:
                session.greeting()
                assert b"a NO [AUTHENTICATIONFAILED]" in session.command('a LOGIN "nobody@example.org" "x"')
                assert b"b OK" in session.command('b LOGIN "alice@example.org" "wonderland"')
                assert b"1 EXISTS" in session.command("c SELECT INBOX")
            with RawImap("127.0.0.1", proxy.ports["plain"]) as session:
                session.greeting()
                assert b"a OK" in session.command('a LOGIN "bob@example.org" "builder"')
                assert b"0 EXISTS" in session.command("b SELECT INBOX")
            started = Path(f"/proc/{proxy._process.pid}/cmdline").read_bytes()
            assert password.encode() not in started
        assert mail.log.find("user=<alice>")
        assert password not in proxy.log.text()
