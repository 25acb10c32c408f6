"""Authenticators that ask where routes can be asked too."""

import base64
import json
import sqlite3
import sys
from contextlib import contextmanager

import pytest
import pytest_twisted
from attrs import evolve
from authenticating import ScramClient
from servers.auth_http import AuthServer
from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from mailroute import authenticators
from mailroute.authenticators import hashes
from mailroute.authenticators.chain import AuthenticatorChain, IKeyDecoy, Link
from mailroute.events import Credentials, LoginRefused, Lookup, Reason
from mailroute.interfaces import IKeyholder
from mailroute.proofs import Proof
from mailroute.sources import BadOption, SourceContext
from mailroute.testing import CLIENT
from mailroute.wire.scram import ScramExchange, make_keys

KEYS = make_keys("sha256", b"pencil", b"saltsalt", 10)

ROWS = [
    ("alice", "{PLAIN}wonder land"),
    ("bob", "$6$salt$WmxpW3eGQgIO2lpLpzaOcO7sEvxL0eEWDaMJtNyVuA9JKJn0.lqVDkWMHhFqoDu7xX0lVxh0j7n1ZrO6wW8s31"),
    ("locked", "*"),
    ("odd", "no hash at all"),
    ("endless", f"$6$rounds=999999999$no hash at all${'a' * 86}"),
    ("empty", None),
    ("named", "{PLAIN}x"),
    ("keys", f"{{SCRAM-SHA-256}}10,{','.join(base64.b64encode(each).decode() for each in KEYS[1:])}"),
]

PROGRAM = f"""#!{sys.executable} -u
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    answer = {{"id": asked["id"]}}
    if asked["user"] != "nobody":
        answer["proven"] = asked.get("password") == "wonder land"
    print(json.dumps(answer))
"""


def lookup(user, password):
    return Lookup(user, "imap", CLIENT, Credentials("PLAIN", user.encode(), password.encode()))


@pytest.fixture
def make(tmp_path):
    made = []
    database = sqlite3.connect(tmp_path / "users.db")
    with database:
        database.execute("create table users (name text, hash text)")
        database.executemany("insert into users values (?, ?)", ROWS)
    database.close()
    (tmp_path / "check.py").write_text(PROGRAM)
    (tmp_path / "check.py").chmod(0o755)

    def make(source, **options):
        context = SourceContext(
            tmp_path, frozenset(), str.lower, reactor, deferToThread, label=f"authenticate[1] ({source})"
        )
        made.append(authenticators.source(source).authenticator(options, context))
        verifyObject(IKeyDecoy, made[-1])
        verifyObject(IKeyholder, made[-1])
        IService(made[-1]).startService()
        return made[-1]

    yield make
    for each in made:
        pytest_twisted.blockon(Deferred.fromCoroutine(stopped(each)))


async def stopped(service):
    await service.stopService()


async def outcome(authenticator, user, password):
    """Return the name, None, or why not."""
    try:
        return await authenticator.authenticate(lookup(user, password))
    except LoginRefused as refused:
        return refused.refusal.reason


SQL = {"database": "sqlite:users.db", "query": "select hash as password from users where name = :user"}


@pytest_twisted.ensureDeferred
async def test_hashes_from_a_database(make):
    """A database that keeps hashes lets in who has the password, and nobody else."""
    sql = make("sql", **SQL)
    assert await outcome(sql, "alice", "wonder land") == "alice"
    for wrong in ("wonder", "", "{PLAIN}wonder land", "wonder land' or '1'='1"):
        assert await outcome(sql, "alice", wrong) is Reason.AUTHENTICATION_FAILED
    assert await outcome(sql, "bob", "wrong") is Reason.AUTHENTICATION_FAILED
    assert await outcome(sql, "nobody", "x") is None
    assert await outcome(sql, "alice' --", "wonder land") is None
    assert await outcome(sql, "locked", "*") is Reason.AUTHENTICATION_FAILED


NONSENSE = {
    "word": {"proven": "perhaps"},
    "number": {"proven": 2},
    "newline": {"proven": True, "name": "a\r\nb LOGOUT"},
    "unknown": {"proven": True, "names": "a"},
    "long": {"proven": True, "user": "x" * 513},
    "port": {"proven": True, "port": "143x"},
}
"""What a program or a server may say of an account; nothing of it lets anybody in."""

SAYS_NONSENSE = f"""#!{sys.executable} -u
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps({{"id": asked["id"], **{NONSENSE!r}.get(asked["user"], {{"proven": True}})}}))
"""


def nonsense_as_json(_headers, body):
    """Answer as an auth server that speaks JSON."""
    said = NONSENSE.get(json.loads(body)["user"], {"proven": True})
    return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()


@pytest.mark.parametrize("source", ["command", "http"])
@pytest_twisted.ensureDeferred
async def test_an_answer_without_sense_lets_nobody_in(make, tmp_path, source):
    """It is told by the source's label, without the password; the next login is checked as ever."""
    (tmp_path / "nonsense.py").write_text(SAYS_NONSENSE)
    (tmp_path / "nonsense.py").chmod(0o755)
    with AuthServer(nonsense_as_json) as server, capturedLogs() as logs:
        keys = {
            "command": {"command": ["./nonsense.py"]},
            "http": {"url": server.url, "dialect": "json"},
        }
        authenticator = make(source, send_password=True, breaker_failures=3, **keys[source])
        for user in NONSENSE:
            assert await outcome(authenticator, user, "s3same") is Reason.MISCONFIGURED, user
        assert await outcome(authenticator, "alice", "s3same") == "alice"
    told = [event for event in logs if "makes no sense" in event["log_format"]]
    assert [event["source"] for event in told] == [f"authenticate[1] ({source})"] * len(NONSENSE)
    assert "s3same" not in repr(logs)


@pytest.mark.parametrize("user", ["odd", "endless", "empty"])
@pytest_twisted.ensureDeferred
async def test_what_is_no_hash_refuses_that_login(make, user):
    """A row without a hash, or with one that takes hours, is the operator's to mend: told, not shown."""
    sql = make("sql", **SQL)
    with capturedLogs() as logs:
        assert await outcome(sql, user, "no hash at all") is Reason.MISCONFIGURED
    assert "no hash at all" not in repr(logs)
    assert any(event.get("source") == "authenticate[1] (sql)" for event in logs)
    assert await outcome(sql, "named", "x") == "named"


@pytest.mark.parametrize("column", ["backend", "port", "host", "login", "later", "name"])
@pytest_twisted.ensureDeferred
async def test_a_hash_in_the_wrong_place_is_not_shown(make, column):
    """A query that gives the hash as something else is told by the source's label, without the hash."""
    query = SQL["query"].replace("select ", f"select hash || ',' || x'0a' as {column}, ")
    sql = make("sql", **SQL | {"query": query})
    with capturedLogs() as logs:
        assert await outcome(sql, "alice", "a guess") is Reason.MISCONFIGURED
    (told,) = [event for event in logs if "makes no sense" in event["log_format"]]
    assert told["source"] == "authenticate[1] (sql)"
    assert column in told["what"]
    assert "wonder land" not in repr(logs)


def change(tmp_path, stored):
    """Give a user another password."""
    database = sqlite3.connect(tmp_path / "users.db")
    with database:
        database.execute("update users set hash = ? where name = 'named'", [stored])
    database.close()


@pytest_twisted.ensureDeferred
async def test_a_new_password_counts_at_once(make, tmp_path):
    """Where a hash that is kept does not fit, it is asked for again; from then on the old one is wrong."""
    sql = make("sql", **SQL)
    assert await outcome(sql, "named", "x") == "named"
    change(tmp_path, "{PLAIN}y")
    assert await outcome(sql, "named", "x") == "named"
    assert await outcome(sql, "named", "y") == "named"
    assert await outcome(sql, "named", "x") is Reason.AUTHENTICATION_FAILED


@pytest_twisted.ensureDeferred
async def test_without_a_cache_the_old_password_is_wrong_at_once(make, tmp_path):
    """Who wants that says so, and each login asks."""
    sql = make("sql", **SQL, cache_ttl=0)
    assert await outcome(sql, "named", "x") == "named"
    change(tmp_path, "{PLAIN}y")
    assert await outcome(sql, "named", "x") is Reason.AUTHENTICATION_FAILED
    assert await outcome(sql, "named", "y") == "named"


@pytest_twisted.ensureDeferred
async def test_an_account_that_is_gone_is_found_out_with_the_next_wrong_password(make, tmp_path):
    """Whoever asks again may hear that there is no such user any more."""
    sql = make("sql", **SQL)
    assert await outcome(sql, "named", "x") == "named"
    database = sqlite3.connect(tmp_path / "users.db")
    with database:
        database.execute("delete from users where name = 'named'")
    database.close()
    assert await outcome(sql, "named", "y") is None
    assert await outcome(sql, "named", "x") is None


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_compared_once(make):
    """The hash that it is asked for again is the same: a stranger does not see by the time what is kept."""
    sql = make("sql", **SQL)
    await outcome(sql, "bob", "x")
    asked = sql._router.counts.asked
    with hashes_checked() as checked:
        assert await outcome(sql, "bob", "guess") is Reason.AUTHENTICATION_FAILED
    assert checked == [(ROWS[1][1], b"guess")]
    assert sql._router.counts.asked == asked + 1


@contextmanager
def hashes_checked():
    """Yield the hashes that passwords are checked against, and the passwords; none of them is right."""
    checked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashes, "verify", lambda stored, secret: checked.append((stored, secret)))
        yield checked


@pytest_twisted.ensureDeferred
async def test_an_unknown_user_is_worth_a_hash(make):
    """Whoever is not there has the password checked against somebody's hash."""
    sql = make("sql", **SQL)
    await outcome(sql, "bob", "x")
    with hashes_checked() as checked:
        await sql.pretend(lookup("nobody", "guess"))
    assert checked == [(ROWS[1][1], b"guess")]


@pytest_twisted.ensureDeferred
async def test_a_locked_account_looks_like_a_wrong_password(make):
    """Nobody gets in, and a stranger cannot tell it from another account by the words or by the time."""
    sql = make("sql", **SQL)
    await outcome(sql, "bob", "x")
    with hashes_checked() as checked:
        assert await outcome(sql, "bob", "guess") is Reason.AUTHENTICATION_FAILED
        assert await outcome(sql, "locked", "guess") is Reason.AUTHENTICATION_FAILED
    assert checked == [(ROWS[1][1], b"guess")] * 2


async def exchange(authenticator, user, password):
    """Log in by SCRAM, as a session does, and return the name, None, or why not."""
    chain = AuthenticatorChain([Link("a", authenticator)])
    first = Credentials("SCRAM-SHA-256", user.encode(), b"", proof=Proof.SCRAM_SHA_256)
    client, talk = ScramClient("SCRAM-SHA-256", password.encode()), ScramExchange("SCRAM-SHA-256", b"x", None)
    talk.respond(base64.b64encode(client.first(user.encode())))
    talk.take(await chain.keys(Lookup(user, "imap", CLIENT, first)))
    final = client.final(base64.b64decode(talk.prompt()))
    shown = talk.respond(base64.b64encode(final)) or talk.respond(b"")
    asked = Lookup(user, "imap", CLIENT, evolve(first, secret=shown.secret))
    try:
        return await authenticator.authenticate(asked)
    except LoginRefused as refused:
        return refused.refusal


@pytest_twisted.ensureDeferred
async def test_stored_keys_do_for_scram(make):
    """Who has stored keys in a database may prove to know the password; no promise is made that all have."""
    sql = make("sql", **SQL)
    assert Proof.SCRAM_SHA_256 in sql.proofs
    assert sql.offers == {Proof.PASSWORD}
    assert await exchange(sql, "keys", "pencil") == "keys"
    assert await outcome(sql, "keys", "pencil") == "keys"
    assert (await exchange(sql, "keys", "pen")).detail == "wrong password (authenticate[1] (sql))"
    assert (await exchange(sql, "alice", "wonder land")).detail.startswith(
        "the user has no keys for SCRAM-SHA"
    )
    assert (await exchange(sql, "locked", "*")).detail.startswith("the account is locked")
    assert await exchange(sql, "nobody", "x") is None


@pytest_twisted.ensureDeferred
async def test_who_has_no_keys_looks_like_one_who_has(make):
    """Iterations and salts of unknown users, and of those with other hashes, are like a known one's."""
    sql = make("sql", **SQL)
    chain = AuthenticatorChain([Link("a", sql)])

    async def keys(user):
        shown = Credentials("SCRAM-SHA-256", user.encode(), b"", proof=Proof.SCRAM_SHA_256)
        found = await chain.keys(Lookup(user, "imap", CLIENT, shown))
        return found.iterations, len(found.salt), found.salt

    known = await keys("keys")
    for user in ("nobody", "alice", "locked"):
        assert (await keys(user))[:2] == known[:2] == (10, 8)
        assert await keys(user) == await keys(user)
    assert len({(await keys(user))[2] for user in ("nobody", "alice", "locked", "keys")}) == 4


def test_what_a_program_checks_cannot_be_proven(make):
    """Without hashes there are no keys."""
    assert make("command", command=["./check.py"], send_password=True).proofs == {Proof.PASSWORD}


@pytest_twisted.ensureDeferred
async def test_a_program_that_checks(make):
    """A program is believed if it says that the password is right, and only then."""
    program = make("command", command=["./check.py"], send_password=True)
    assert await outcome(program, "alice", "wonder land") == "alice"
    assert await outcome(program, "alice", "wrong") is Reason.AUTHENTICATION_FAILED


@pytest.mark.parametrize(
    ("source", "options", "key", "why"),
    [
        ("sql", SQL | {"backend": "east"}, "backend", "means nothing here"),
        ("command", {"command": ["./check.py"]}, "send_password", "is needed here"),
        ("dovecot-auth", {"master_socket": "x"}, "socket", "is needed here"),
        ("sql", {"database": "sqlite:users.db"}, "query", "missing"),
    ],
)
def test_wrong_keys_are_named(make, source, options, key, why):
    """A source that would check nothing is refused before anybody comes."""
    with pytest.raises(BadOption, match=why) as caught:
        make(source, **options)
    assert caught.value.key == key
