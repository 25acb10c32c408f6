"""A real PostgreSQL and a real MariaDB decide where accounts live."""

from __future__ import annotations

import re
import signal
import sqlite3
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_twisted
from asking import BROKEN_NAMES, HOSTILE_NAMES, IN_A_QUERY, answered
from readme import TEXT, blocks
from servers.accounts import ALICE, Account, message
from servers.certificates import Authority, Certificate
from servers.databases import PASSWORD, SERVERS, Database, Postgresql
from servers.dovecot import Dovecot, Terms
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import backend, configuration, listeners
from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.logger import eventAsText, globalLogPublisher

from mailroute import routers
from mailroute.events import Change, Identity, Lookup, Method, Reason, Route, Security
from mailroute.routers import BadAnswer, SourceContext
from mailroute.testing import CLIENT

pytestmark = pytest.mark.integration

SCHEMA = """
create table users (name varchar(600), host varchar(40), port integer, mailbox varchar(100),
    secret varchar(100), master varchar(100), login varchar(20), identity varchar(20),
    security varchar(20),
    x varchar(20), refuse varchar(20), later boolean);
insert into users (name, host) values ('alice', 'east'), ('twice', 'east'), ('twice', 'west'),
    ('nowhere', 'norh'), ('o''brien', 'west'), ('%', 'west'), ('zoë', 'west');
insert into users values ('all', 'west,east', 1143, 'al.l', 'pa:ss', 'master', 'replay', 'none', 'tls', 'y',
    null, false);
insert into users (name, refuse) values ('closed', 'disabled');
insert into users (name, later) values ('moving', true);
"""
QUERY = """select host as backend, port, mailbox as name, secret as password, master, login, identity,
    security, x as forward_x, refuse, later from users where name = :user"""


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Database]:
    with SERVERS[request.param]() as running:
        running.execute(SCHEMA)
        if running.kind == "postgresql":
            running.execute("grant select on users to mailroute")
        yield running


def _context(folder: Path) -> SourceContext:
    return SourceContext(
        folder, frozenset({"east", "west"}), str.lower, reactor, deferToThread, label="route[1] (sql)"
    )


class Maker:
    """Makes routers that ask the server; all are stopped in the end."""

    def __init__(self, server: Database, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.running: list[object] = []
        (folder / "secret").write_text(PASSWORD + "\n")

    def __call__(self, **options: object):
        address = f"{self.server.kind}://mailroute@127.0.0.1:{self.server.port}/mail"
        options = {
            "database": address,
            "password_file": "secret",
            "query": QUERY,
            "breaker_failures": 0,
        } | options
        router = routers.source("sql").router(options, _context(self.folder))
        IService(router).startService()
        self.running.append(router)
        return router


@pytest.fixture
def make(server: Database, tmp_path: Path) -> Iterator[Maker]:
    maker = Maker(server, tmp_path)
    yield maker
    stopping = [router.stopService() for router in maker.running if router.running]
    pytest_twisted.blockon(gatherResults([each for each in stopping if each is not None]))


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []

    def keep(event: dict[str, object]) -> None:
        lines.append(eventAsText(event))

    globalLogPublisher.addObserver(keep)
    yield lines
    globalLogPublisher.removeObserver(keep)


async def ask(router, user: str, protocol: str = "imap"):
    """Return the route, or why there is none."""
    return await answered(router, Lookup(user, protocol, CLIENT))


CHANGE = Change(None, 1143, Method.REPLAY, Identity.NONE, Security.TLS)


@pytest_twisted.ensureDeferred
async def test_columns_are_the_fields_of_a_route(make: Maker) -> None:
    """Every field has its column; an unknown user has no route; a refusal is one."""
    router = make()
    assert await ask(router, "alice") == Route("east")
    route = Route("west", "al.l", ("east",), b"pa:ss", "master", change=CHANGE, forward=(("x", "y"),))
    assert await ask(router, "all") == route
    assert await ask(router, "nobody") is None
    assert await ask(router, "closed") is Reason.CONTACT_ADMIN
    assert await ask(router, "moving") is Reason.UNAVAILABLE
    assert router.counts.failed == 0


@pytest_twisted.ensureDeferred
async def test_every_parameter_has_its_value(make: Maker) -> None:
    """The parts of the name, the protocol and the address are there, and percent signs are themselves."""
    query = (
        "select 'east' as backend, concat(:local, '|', :domain, '|', :protocol, '|', :client, '100%') as name"
    )
    if make.server.kind == "postgresql":
        query = query.replace(":client", ":client::text").replace(":local", ":local::text")
        query = query.replace(":domain", ":domain::text").replace(":protocol", ":protocol::text")
    assert await ask(make(query=query), "a@b@c.example") == Route("east", "a@b|c.example|imap|192.0.2.7100%")


@pytest.mark.parametrize(
    ("user", "words"), [("twice", "more than one row"), ("nowhere", "no backend 'norh'")]
)
@pytest_twisted.ensureDeferred
async def test_nonsense_refuses_that_login_alone(make: Maker, user: str, words: str) -> None:
    """What cannot be an answer is told, and the next question is answered."""
    router = make()
    with pytest.raises(BadAnswer, match=words):
        await router.route(Lookup(user, "imap", CLIENT))
    assert await ask(router, "alice") == Route("east")
    assert router.counts.failed == 0


HOSTILE = [*IN_A_QUERY, *BROKEN_NAMES, *(name for name in HOSTILE_NAMES if name != "%")]  # who is known here


@pytest.mark.parametrize("user", HOSTILE)
@pytest_twisted.ensureDeferred
async def test_no_name_is_more_than_a_name(make: Maker, user: str) -> None:
    """Whatever a name holds, it is compared with names and nothing else."""
    router = make()
    assert await ask(router, user) is None
    assert await ask(router, "o'brien") == await ask(router, "%") == await ask(router, "zoë") == Route("west")
    assert router.counts.failed == 0


@pytest_twisted.ensureDeferred
async def test_no_name_breaks_out_where_a_backslash_is_itself(make: Maker) -> None:
    """A server that reads a backslash the other way gets no other query either."""
    other, usual = {
        "postgresql": (
            "alter role mailroute set standard_conforming_strings = off",
            "alter role mailroute reset standard_conforming_strings",
        ),
        "mariadb": (
            "set global sql_mode = 'NO_BACKSLASH_ESCAPES,ANSI_QUOTES'",
            "set global sql_mode = default",
        ),
    }[make.server.kind]
    make.server.execute(other)
    try:
        router = make()
        for user in HOSTILE:
            assert await ask(router, user) is None
        assert await ask(router, "o'brien") == Route("west")
        assert router.counts.failed == 0
    finally:
        make.server.execute(usual)


@pytest_twisted.ensureDeferred
async def test_a_name_that_the_database_cannot_have_is_no_failure(make: Maker) -> None:
    """An encoding or a type that does not have the name refuses that login, and does not count against it."""
    if make.server.kind == "postgresql":
        router = make(query="select 'east' as backend where 1 = :user::integer")
    else:
        make.server.execute(
            "create table if not exists old (name varchar(50) character set latin1);"
            "insert into old values ('a')"
        )
        router = make(query="select 'east' as backend from old where name = :user")
    with pytest.raises(BadAnswer, match="cannot take the user's name"):
        await router.route(Lookup("Ω", "imap", CLIENT))
    assert router.counts.failed == 0


@pytest_twisted.ensureDeferred
async def test_the_server_is_started_anew(make: Maker) -> None:
    """While it is away old answers hold, others come later; when it is back, it is asked again."""
    router = make(cache_ttl=0.001, negative_ttl=0)
    assert await ask(router, "alice") == Route("east")
    make.server.kill()
    assert await ask(router, "alice") == Route("east")
    assert router.counts.stale == 1
    assert await ask(router, "zoë") is Reason.UNAVAILABLE
    make.server.start()
    assert await ask(router, "zoë") == Route("west")


@pytest_twisted.ensureDeferred
async def test_a_connection_that_the_server_has_ended_is_made_anew(make: Maker) -> None:
    """The first question after a restart is answered: nobody pays for it with a login."""
    router = make(cache_ttl=0, negative_ttl=0)
    assert await ask(router, "alice") == Route("east")
    make.server.kill()
    make.server.start()
    assert await ask(router, "alice") == Route("east")
    assert router.counts.failed == 0


async def connected(router) -> int:
    """Ask until a first answer has come in time, on a machine however busy; return how many came too late."""
    for late in range(50):
        if await ask(router, "alice") == Route("east"):
            return late
    raise AssertionError("it is never in time")


@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs(make: Maker, tmp_path: Path) -> None:
    """All connections hang, others are answered, and when it goes on so do the questions."""
    router = make(timeout=0.5, pool=2, breaker_failures=0)
    sqlite3.connect(tmp_path / "users.db").close()
    other = routers.source("sql").router(
        {"database": "sqlite:users.db", "query": "select 'west' as backend"}, _context(tmp_path)
    )
    late = await connected(router)
    make.server.signal(signal.SIGSTOP)
    try:
        stuck = [Deferred.fromCoroutine(ask(router, f"user{number}")) for number in range(6)]
        assert await ask(other, "alice") == Route("west")
        assert await ask(router, "alice") == Route("east")
        await other.stopService()
        assert await gatherResults(stuck) == [Reason.UNAVAILABLE] * 6
        assert router.counts.slow == late + 6
    finally:
        make.server.signal(signal.SIGCONT)
    # The threads have let go of what hung, or do so within the time that libpq takes at least to connect.
    for _ in range(20):
        if await ask(router, "zoë") == Route("west"):
            return
    raise AssertionError("its connections hang on")


@pytest_twisted.ensureDeferred
async def test_stopping_while_the_server_hangs(make: Maker) -> None:
    """The service ends all the same."""
    router = make(timeout=60, pool=1)
    assert await ask(router, "alice") == Route("east")
    make.server.signal(signal.SIGSTOP)
    try:
        waiting = Deferred.fromCoroutine(ask(router, "zoë"))
        await router.stopService()
        assert await waiting is Reason.UNAVAILABLE
    finally:
        make.server.signal(signal.SIGCONT)


@pytest_twisted.ensureDeferred
async def test_a_thread_is_freed_from_a_server_that_hangs(make: Maker) -> None:
    """It is there for others once the question has had its time, and it ends while the server hangs still."""
    before = set(threading.enumerate())
    router = make(timeout=0.3, pool=1, breaker_failures=0)
    await connected(router)
    assert [name for name in _new_threads(before) if "-sql-" in name]
    make.server.signal(signal.SIGSTOP)
    try:
        assert await ask(router, "zoë") is Reason.UNAVAILABLE
        await router.stopService()
        assert not [name for name in _new_threads(before) if "-sql-" in name]
    finally:
        make.server.signal(signal.SIGCONT)


def _new_threads(before: set[threading.Thread]) -> set[str]:
    return {thread.name for thread in set(threading.enumerate()) - before}


@pytest_twisted.ensureDeferred
async def test_a_slow_query_is_ended_on_the_server(make: Maker) -> None:
    """What takes longer than the timeout does not go on there."""
    slow = "pg_sleep(30)" if make.server.kind == "postgresql" else "sleep(30)"
    router = make(query=f"select 'east' as backend, {slow} as name", timeout=0.3)
    assert await ask(router, "alice") is Reason.UNAVAILABLE
    busy = {
        "postgresql": "select count(*) from pg_stat_activity where query like '%pg_sleep(30)%as name%'"
        " and state = 'active' and pid <> pg_backend_pid()",
        "mariadb": "select count(*) from information_schema.processlist where info like '%sleep(30) as%'"
        " and id <> connection_id()",
    }[make.server.kind]
    for _ in range(100):
        said = re.findall(r"\d+", await deferToThread(make.server.execute, busy))
        if said == ["0"]:
            return
    raise AssertionError("it goes on")


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_told_and_not_shown(make: Maker, logged: list[str]) -> None:
    """The log names the source and what the database says, and never the password."""
    (make.folder / "wrong").write_text("hidden-secret\n")
    router = make(password_file="wrong")
    assert await ask(router, "alice") is Reason.UNAVAILABLE
    inside = f"{make.server.kind}://mailroute:hidden-secret@127.0.0.1:{make.server.port}/mail"
    assert await ask(make(database=inside, password_file=None), "alice") is Reason.UNAVAILABLE
    said = "\n".join(logged)
    assert re.search("route.1. .sql. failed: .*(password authentication failed|Access denied)", said)
    assert "hidden-secret" not in said + str(router) + repr(router)


@pytest_twisted.ensureDeferred
async def test_a_password_in_the_address_and_a_socket(make: Maker) -> None:
    """The ways into the database that an address can say work: its password, and a UNIX socket."""
    server, secret = make.server, quote(PASSWORD, safe="")
    socket = {
        "postgresql": f"postgresql://mailroute@/mail?host={server.folder}&port={server.port}",
        "mariadb": f"mariadb://mailroute@localhost/mail?unix_socket={server.folder}/socket",
    }[server.kind]
    inside = f"{server.kind}://mailroute:{secret}@127.0.0.1:{server.port}/mail"
    assert await ask(make(database=inside, password_file=None), "alice") == Route("east")
    assert await ask(make(database=socket), "alice") == Route("east")


@pytest_twisted.ensureDeferred
async def test_tls_that_is_asked_for_is_insisted_on(make: Maker, logged: list[str]) -> None:
    """A server without TLS gets no question from one who wants its certificate checked."""
    query = {"postgresql": "sslmode=require", "mariadb": "ssl_verify_cert=true"}[make.server.kind]
    address = f"{make.server.kind}://mailroute@127.0.0.1:{make.server.port}/mail?{query}"
    assert await ask(make(database=address), "alice") is Reason.UNAVAILABLE
    assert re.search("SSL|TLS|certificate", "\n".join(logged))


@pytest.mark.parametrize("kind", SERVERS)
@pytest_twisted.ensureDeferred
async def test_a_server_is_verified_over_tls(
    tmp_path: Path, certificate: Certificate, authority: Authority, logged: list[str], kind: str
) -> None:
    """The authorities' file starts from the configuration's folder; another name or authority is refused."""
    (tmp_path / "ca.pem").write_bytes(authority.file.read_bytes())
    (tmp_path / "other.pem").write_bytes(Authority(tmp_path).file.read_bytes())
    query = {
        "postgresql": "sslmode=verify-full&sslrootcert={}",
        "mariadb": "ssl_ca={}&ssl_verify_cert=true&ssl_verify_identity=true",
    }[kind]
    with SERVERS[kind](certificate) as server:
        make = Maker(server, tmp_path)
        address = f"{kind}://mailroute@localhost:{server.port}/mail?{query}"
        seen = {
            "postgresql": "select 'east' as backend from pg_stat_ssl where pid = pg_backend_pid() and ssl",
            "mariadb": "select 'east' as backend from information_schema.session_status"
            " where variable_name = 'Ssl_cipher' and variable_value <> ''",
        }[kind]
        assert await ask(make(database=address.format("ca.pem"), query=seen), "alice") == Route("east")
        assert (
            await ask(make(database=address.format("other.pem"), query=seen), "alice") is Reason.UNAVAILABLE
        )
        assert re.search("failed: .*certificate", "\n".join(logged), re.IGNORECASE)
        for router in make.running:
            await router.stopService()


@pytest_twisted.ensureDeferred
async def test_it_is_asked_once_for_each_user(make: Maker) -> None:
    """10 000 questions about 100 users ask the database 100 times."""
    router = make(query="select 'east' as backend where :user like 'many%'")
    for _ in range(10):
        users = [f"many{number % 100}" for number in range(1000)]
        answers = await gatherResults([Deferred.fromCoroutine(ask(router, user)) for user in users])
        assert answers == [Route("east")] * 1000
    assert router.counts.asked == 100


def test_a_login_from_end_to_end(certificate: Certificate, authority: Authority) -> None:
    """The manual's examples route a login to the server and the mailbox that the database names."""
    begin = '[[route]]\nsource = "sql"'
    example = next(block for block in blocks(TEXT, "toml") if begin in block.text)
    route = tomllib.loads(example.text)["route"][0]
    there = Account("there", ALICE.password, "west")
    with Postgresql() as server, Dovecot(Terms(certificate=certificate), there) as mail:
        mail.deliver(there, message("for who moved"))
        [setting_up] = [block.text for block in blocks(TEXT, "sql")]
        quoted = PASSWORD.replace("'", "''")
        for written, here in (("create role", "alter role"), ("PASSWORD", quoted), ("a.smith", "there")):
            assert written in setting_up
            setting_up = setting_up.replace(written, here)
        server.execute(setting_up)
        route["database"] = route["database"].replace("db.example.com", f"127.0.0.1:{server.port}")
        down = {"imap": "tcp:127.0.0.1:9", "security": "none"}
        config = configuration(certificate, {"east": down, "west": backend(mail, authority)})
        files = {"database.secret": PASSWORD + "\n"}
        with (
            ExitStack() as hanging,
            Mailroute(listeners(), config | {"route": [route]}, files) as proxy,
            RawImap("127.0.0.1", proxy.ports["plain"]) as session,
        ):
            session.greeting()
            assert b"a NO" in session.command('a LOGIN "dave@example.com" "secret"')
            assert b"b OK" in session.command(f'b LOGIN "{ALICE.user}" "{ALICE.password}"')
            assert b"1 EXISTS" in session.command("c SELECT INBOX")
            # It ends in good order all the same.
            server.signal(signal.SIGSTOP)
            hanging.callback(server.signal, signal.SIGCONT)
            other = hanging.enter_context(RawImap("127.0.0.1", proxy.ports["plain"]))
            other.greeting()
            other.send(b'a LOGIN "carol@example.com" "secret"\r\n')
            command_lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
            assert not [line for line in command_lines if PASSWORD.encode() in line]
        assert PASSWORD not in proxy.log.text()
