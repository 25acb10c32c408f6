"""The sql source: the operator's query stays as it is, and what clients send is never a part of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from asking import BROKEN_NAMES, HOSTILE_NAMES, IN_A_QUERY, answered
from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from mailroute import routers
from mailroute.events import Change, Client, Identity, Lookup, Method, Reason, Route, Security
from mailroute.routers import BadAnswer, BadOption, SourceContext
from mailroute.routers.sql.drivers import Sqlite
from mailroute.routers.sql.pool import Pool
from mailroute.routers.sql.query import MARIADB, POSTGRESQL, SQLITE, translated
from mailroute.sources.context import Unanswered
from mailroute.testing import CLIENT

# --- the query ---------------------------------------------------------------------

UNTOUCHED = {
    "sqlite": (SQLITE, ["'a :x b'", "'it''s :x'", '":x"', "`:x`", "[a :x]", "-- :x\n", "/* :x */", "/* :x"]),
    "postgresql": (
        POSTGRESQL,
        [
            "'a\\' || ':x'",
            "E'a\\':x'",
            '"a"":x"',
            "$$ :x $$",
            "$t$ $$ :x $t$",
            "a::text",
            "-- :x\n",
            "/* /* */ :x */",
            "a$b$c",
            "some_e'a\\'",
        ],
    ),
    "mariadb": (MARIADB, ["'a\\':x'", '"a\\":x"', "`:x`", "# :x\n", "-- :x\n", "/* :x */", "@a := 1"]),
}


@pytest.mark.parametrize(
    ("dialect", "text"), [(dialect, text) for dialect, texts in UNTOUCHED.values() for text in texts]
)
def test_a_colon_in_text_is_no_parameter(dialect, text: str) -> None:
    """Strings, quoted names, comments and casts are as they were, and the parameter behind them is one."""
    name = dialect.parameter("user")
    assert translated(text, dialect) == text
    if text != "/* :x":
        assert translated(f"{text} :user", dialect) == f"{text} {name}"


def test_parameters_are_as_the_driver_wants_them() -> None:
    """Each gets a driver's own way to write it, and a percent sign means nothing else to that driver."""
    query = "select '100%', a%2 from t where u=:user and d = :domain::text"
    assert translated(query, SQLITE).startswith("select '100%', a%2 from t where u=:user")
    expected = "select '100%%', a%%2 from t where u=%(user)s and d = %(domain)s::text"
    assert translated(query, POSTGRESQL) == expected


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("select :usr", 'there is no parameter :usr; did you mean "user"?'),
        ("select :password", "there is no parameter :password"),
        ("select a[1:n]", "put a space behind the colon"),
        ("select 'a", "the ' at character 8 has no end"),
        ('select "a', 'the " at character 8 has no end'),
        ("select /* a", "the comment at character 8 has no end"),
        ("select /* /* a */", "the comment at character 8 has no end"),
    ],
)
def test_a_query_that_cannot_be_meant_is_refused(query: str, words: str) -> None:
    """The operator is told which character or which parameter is wrong."""
    with pytest.raises(BadOption) as caught:
        translated(query, POSTGRESQL)
    assert caught.value.key == "query"
    assert words in caught.value.message


@given(
    st.text(alphabet="ab:user$'\"`[]/*-#\\ \n%e") | st.text(), st.sampled_from([SQLITE, POSTGRESQL, MARIADB])
)
def test_any_text_is_read_or_refused(query: str, dialect) -> None:
    """Nothing but BadOption is raised, and but for parameters and percent signs nothing changes."""
    try:
        said = translated(query, dialect)
    except BadOption:
        return
    if ":" not in query:
        assert said == dialect.literal(query)


# --- asking SQLite -----------------------------------------------------------------

TABLE = """
create table users (name text, host text, port any, account any, password any, master text, login text,
    identity text, security text, forward_x text, refuse text, later any);
insert into users (name, host) values ('alice', 'east'), ('twice', 'east'), ('twice', 'west'),
    ('nowhere', 'norh'), ('o''brien', 'west'), ('%', 'west'), ('zoë', 'west'), ('empty', '');
insert into users values
    ('all', 'west,east', 1143, 'al.l', 'pa:ss', 'master', 'replay', 'none', 'tls', 'y', null, 0);
insert into users (name, refuse) values ('closed', 'disabled');
insert into users (name, later) values ('moving', 1);
"""
QUERY = """select host as backend, port, account as name, password, master, login, identity, security,
    forward_x, refuse, later from users where name = :user"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(TABLE)
    connection.close()
    return path


def made(folder: Path, **options: object):
    context = SourceContext(
        folder, frozenset({"east", "west"}), str.lower, reactor, deferToThread, label="route[1] (sql)"
    )
    options = {"database": "sqlite:users.db", "query": QUERY, **options}
    return routers.source("sql").router(options, context)


@pytest.fixture
def make(file: Path) -> Iterator[object]:
    """Return what makes a router; it is stopped in the end."""
    running = []

    def making(**options: object):
        router = made(file.parent, **options)
        IService(router).startService()
        running.append(router)
        return router

    yield making
    pytest_twisted.blockon(gatherResults([router.stopService() for router in running if router.running]))


async def ask(router, user: str, client: Client = CLIENT):
    """Return the route, or why there is none."""
    return await answered(router, Lookup(user, "imap", client))


@pytest_twisted.ensureDeferred
async def test_columns_are_the_fields_of_a_route(make) -> None:
    """Every field has its column; an unknown user and an empty row are none; a refusal is one."""
    router = make()
    assert await ask(router, "alice") == Route("east")
    change = Change(None, 1143, Method.REPLAY, Identity.NONE, Security.TLS)
    route = Route("west", "al.l", ("east",), b"pa:ss", "master", change=change, forward=(("x", "y"),))
    assert await ask(router, "all") == route
    assert await ask(router, "nobody") is None
    assert await ask(router, "empty") is None
    assert await ask(router, "closed") is Reason.CONTACT_ADMIN
    assert await ask(router, "moving") is Reason.UNAVAILABLE


HOSTILE = [*IN_A_QUERY, *BROKEN_NAMES, *(name for name in HOSTILE_NAMES if name != "%")]  # who is known here


@pytest.mark.parametrize("user", HOSTILE)
@pytest_twisted.ensureDeferred
async def test_no_name_is_more_than_a_name(make, user: str) -> None:
    """Whatever a name holds, it is compared with names and nothing else."""
    router = make()
    assert await ask(router, user) is None
    assert await ask(router, "o'brien") == await ask(router, "%") == await ask(router, "zoë") == Route("west")
    assert router.counts.failed == 0


@pytest_twisted.ensureDeferred
async def test_every_parameter_has_its_value(make) -> None:
    """The parts of the name, the protocol and the address are there; a client without an address has none."""
    query = "select 'east' as backend, :user || '|' || :local || '|' || :domain || '|' || :protocol as name"
    router = make(query=query)
    assert await ask(router, "a@b@c.example") == Route("east", "a@b@c.example|a@b|c.example|imap")
    assert await ask(router, "alice") == Route("east", "alice|alice||imap")
    router = make(query="select 'east' as backend, coalesce(:client, 'none') as name")
    assert await ask(router, "alice") == Route("east", "192.0.2.7")
    router = make(query="select 'east' as backend, coalesce(:client, 'none') as name")
    assert await ask(router, "alice", Client("1", None, None)) == Route("east", "none")


@pytest.mark.parametrize(
    ("user", "query", "words"),
    [
        ("twice", QUERY, "more than one row"),
        ("nowhere", QUERY, "no backend 'norh'"),
        ("alice", "select host from users where name = :user", "names no backend"),
        ("alice", "select host as server from users where name = :user", "no field 'server'"),
        ("alice", "select 'east' as backend, 'west' as backend", "two columns of one name"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_nonsense_refuses_that_login_alone(make, user: str, query: str, words: str) -> None:
    """What cannot be an answer is told, and is no failure of the database."""
    router = make(query=query)
    with pytest.raises(BadAnswer, match=words):
        await router.route(Lookup(user, "imap", CLIENT))
    assert router.counts.failed == 0


@pytest.mark.parametrize("query", ["select backend from nowhere", "begin", "delete from users", "selec"])
@pytest_twisted.ensureDeferred
async def test_a_query_that_fails_is_the_sources_fault(make, file: Path, query: str) -> None:
    """A login is told to come later, and nothing is ever written."""
    before = file.read_bytes()
    router = make(query=query)
    assert await ask(router, "alice") is Reason.UNAVAILABLE
    assert router.counts.failed == 1
    assert file.read_bytes() == before


@pytest_twisted.ensureDeferred
async def test_a_locked_file_is_waited_for(make, file: Path) -> None:
    """While somebody writes a question waits, no longer than its time; then it is answered."""
    router = make(timeout=10)
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("begin exclusive")
    waiting = Deferred.fromCoroutine(ask(router, "alice"))
    assert await ask(make(timeout=0.2), "alice") is Reason.UNAVAILABLE
    assert not waiting.called
    writer.execute("commit")
    writer.close()
    assert await waiting == Route("east")


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_replaced_is_opened_anew(make, file: Path) -> None:
    """A database that another has been renamed over is asked no more."""
    router = make(cache_ttl=0)
    assert await ask(router, "alice") == Route("east")
    other = file.with_name("new.db")
    with sqlite3.connect(other) as connection:
        connection.executescript(TABLE.replace("('alice', 'east')", "('alice', 'west')"))
    connection.close()
    other.replace(file)
    assert await ask(router, "alice") == Route("west")


ENDLESS = """with recursive n(i) as (select 1 union all select i + 1 from n)
    select 'east' as backend from n where i < 0 or :user = 'alice'"""


@pytest_twisted.ensureDeferred
async def test_a_query_without_end_holds_no_thread(make) -> None:
    """All connections are busy for their time, and then answer others."""
    router = make(query=f"{ENDLESS} limit 1", timeout=0.3, pool=2)
    stuck = [ask(router, f"user{number}") for number in range(4)]
    answers = await gatherResults([Deferred.fromCoroutine(each) for each in stuck])
    assert answers == [Reason.UNAVAILABLE] * 4
    assert await ask(router, "alice") == Route("east")


@pytest_twisted.ensureDeferred
async def test_stopping_waits_for_nothing_that_hangs(make) -> None:
    """A question under way is given up, its thread ends, and so does the service."""
    router = make(query=ENDLESS, timeout=60, pool=1)
    waiting = Deferred.fromCoroutine(ask(router, "user"))
    await deferToThread(lambda: None)
    await router.stopService()
    assert await waiting is Reason.UNAVAILABLE


@pytest_twisted.ensureDeferred
async def test_stopping_ends_even_with_a_thread_that_cannot_be_stopped(make, file: Path) -> None:
    """A thread that waits for a lock is left behind after two seconds, and keeps nothing from ending."""
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("begin exclusive")
    router = make(timeout=20, pool=1)
    waiting = Deferred.fromCoroutine(ask(router, "alice"))
    await router.stopService()
    assert await waiting is Reason.UNAVAILABLE
    writer.close()


@pytest_twisted.ensureDeferred
async def test_a_password_in_an_error_is_left_out(file: Path) -> None:
    """Whatever a database says, the log does not have the password."""
    pool = Pool(Sqlite(file, 5), "select hidden as backend", 1, reactor, "hidden")
    with pytest.raises(Unanswered, match="no such column: ") as caught:
        await pool.ask({})
    await pool.close()
    assert "hidden" not in str(caught.value)


class NotYetRunning:
    """The reactor, before it runs."""

    def __init__(self) -> None:
        self.when_running = []

    def callWhenRunning(self, function) -> object:  # noqa: N802 - as the reactor has it
        self.when_running.append(function)
        return function

    def __getattr__(self, name: str) -> object:
        return getattr(reactor, name)


@pytest_twisted.ensureDeferred
async def test_a_question_before_the_reactor_runs_is_answered_later(file: Path) -> None:
    """A program that asks at once, before it has its reactor run, gets its answer when it does."""
    early = NotYetRunning()
    pool = Pool(Sqlite(file, 5), "select 'east' as backend", 1, early, None)
    asked = Deferred.fromCoroutine(pool.ask({}))
    [start] = early.when_running
    start()
    assert await asked.addTimeout(10, reactor) == {"backend": "east"}
    await pool.close()


# --- the options -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({"database": "sqlit:users.db"}, "database", 'did you mean "sqlite"?'),
        ({"database": "users.db"}, "database", "must begin with sqlite:"),
        ({"database": "sqlite:other.db"}, "database", "there is no file"),
        ({"database": "sqlite:"}, "database", "there is no file"),
        ({"password_file": "secret"}, "password_file", "SQLite file has no password"),
        ({"database": "postgresql:users"}, "database", "must begin with postgresql://"),
        ({"database": "postgresql://u:hidden@h/d?sslmod=x"}, "database", "is no address of a PostgreSQL"),
        ({"database": "postgresql://u:hidden@h:x y/d"}, "database", "is no address of a PostgreSQL"),
        ({"database": "mariadb://u:hidden@h:port/d"}, "database", "is no address"),
        ({"database": "mariadb://h/d?ssl_cca=x"}, "database", 'did you mean "ssl_ca"?'),
        ({"database": "mariadb://h/d?ssl_verify_cert=x"}, "database", "must be true or false"),
        ({"database": "mariadb://u:hidden@h/d", "password_file": "secret"}, "password_file", "take it out"),
        (
            {"database": "postgresql://u:hidden@h/d", "password_file": "secret"},
            "password_file",
            "take it out",
        ),
        ({"query": "select :usr"}, "query", "did you mean"),
        ({"pool": 0}, "pool", ""),
        ({"querry": "x"}, "querry", 'did you mean "query"?'),
    ],
)
def test_a_wrong_option_is_named(file: Path, options: dict[str, object], key: str, words: str) -> None:
    """The operator is told which key is wrong and why, and no password."""
    (file.parent / "secret").write_text("s3cret\n")
    with pytest.raises(BadOption) as caught:
        made(file.parent, **options)
    assert caught.value.key == key
    assert words in caught.value.message
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["postgresql://u:hidden@db.example/mail", "mariadb://u:hidden@db.example/mail"]
)
def test_what_a_person_is_told_holds_no_password(file: Path, address: str) -> None:
    """Where the users are looked up is shown, and nothing secret."""
    said = str(made(file.parent, database=address))
    assert "the database" in said or "database mail at db.example" in said
    assert "hidden" not in said


@pytest.mark.parametrize(
    ("address", "module", "extra"),
    [("postgresql://h/d", "psycopg", "postgresql"), ("mariadb://h/d", "pymysql", "mariadb")],
)
def test_a_library_that_is_missing_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, address: str, module: str, extra: str
) -> None:
    """Who lacks the driver is told what to install."""
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(BadOption, match=rf"mailroute\[{extra}\]"):
        made(file.parent, database=address)
