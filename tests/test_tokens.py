"""Tokens that mailroute obtains itself: from a server that Twisted plays, in files, and at backends."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import pytest_twisted
from attrs import evolve
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import defer, endpoints
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from mailroute.dialogs import find
from mailroute.dialogs.common.plan import NoWay, choose
from mailroute.events import (
    Attempt,
    Change,
    Credentials,
    LoginOrder,
    LoginRefused,
    LoginTerms,
    Method,
    Reason,
    Refusal,
    Route,
)
from mailroute.places import Places, lets_in_anybody
from mailroute.proofs import Proof
from mailroute.sources.trust import trusting
from mailroute.testing import CLIENT, FakeBackend, opened
from mailroute.tokens import cache
from mailroute.tokens.backend import TokenBackend
from mailroute.tokens.cache import DEAD_FOR, Tokens
from mailroute.tokens.files import BadFile, Record, TokenFiles, read_key
from mailroute.tokens.grant import MARGIN, MAX_LIFETIME, MAX_TOKEN, Grant
from mailroute.web import FAILURES, PAUSE, Answer, SparedWeb, Web, basic
from mailroute.wire import sasl

IMAP = find("imap")
KEY = Fernet(base64.urlsafe_b64encode(b"k" * 32))
BOB = Credentials("LOGIN", b"bob", b"his own")
ORDER = LoginOrder(BOB, "bob", CLIENT)


class TokenServer(Resource):
    """Gives out tokens by their numbers, or answers as it is told."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, str]] = []
        self.authorized: list[str | None] = []
        self.held: list[Any] | None = None
        self.status = 200
        self.says: dict[str, object] = {}
        self.body: bytes | None = None

    def render(self, request: Any) -> Any:
        form = parse_qs(request.content.read().decode())
        self.asked.append({name: value for name, (value,) in form.items()})
        self.authorized.append(request.getHeader("Authorization"))
        request.setResponseCode(self.status)
        if self.held is not None:
            self.held.append(request)
            return NOT_DONE_YET
        return self.answer()

    def answer(self) -> bytes:
        if self.body is not None:
            return self.body
        number = len(self.asked)
        usual = {"access_token": f"access-{number}", "token_type": "Bearer", "expires_in": 3600}
        return json.dumps(self.says or usual).encode()

    def release(self) -> None:
        held, self.held = self.held or [], None
        for request in held:
            request.write(self.answer())
            request.finish()


class Rig:
    """A server, a folder, and tokens with a time of day of their own."""

    def __init__(self, folder: Path, port: Any) -> None:
        self.folder = folder
        self.port = port
        self.url = f"http://127.0.0.1:{port.getHost().port}/token"
        self.server: TokenServer = port.factory.resource
        self.now = 1_000_000.0

    def tokens(self, *, personal: bool = True, kept: bool = True, timeout: float = 5) -> Tokens:
        from twisted.internet import reactor
        from twisted.internet.threads import deferToThread

        rig = self

        class RigClock:
            def seconds(self) -> float:
                return rig.now

            def callLater(self, *args: Any) -> Any:  # noqa: N802 - Twisted's name
                return reactor.callLater(*args)

        web = SparedWeb(Web(reactor, trusting(None), timeout), "the server", lambda: self.now)
        headers = basic(b"mail route", b"s:ecret")
        grant = Grant(web, self.url, headers, {"scope": "mail"}, personal, lambda: self.now)
        return Tokens(grant, self.files() if kept else None, deferToThread, RigClock())  # type: ignore[arg-type]

    def files(self) -> TokenFiles:
        return TokenFiles(self.folder, KEY)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    from twisted.internet import reactor

    site = Site(TokenServer())
    site.noisy = False
    listen = endpoints.TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen
    port = pytest_twisted.blockon(listen(site))
    yield Rig(tmp_path, port)
    pytest_twisted.blockon(defer.maybeDeferred(port.stopListening))


async def refusal(getting: Deferred[Any]) -> Refusal:
    with pytest.raises(LoginRefused) as error:
        await getting
    return error.value.refusal


# --- asking for them --------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_client_credentials_are_one_token_for_all(rig: Rig) -> None:
    """The server learns who asks (RFC 6749 sections 2.3.1 and 4.4); every user gets the same token."""
    tokens = rig.tokens(personal=False, kept=False)
    first, second = await tokens.get("alice"), await tokens.get("bob")
    assert (first.value, first.known, second.value, second.known) == ("access-1", False, "access-1", True)
    assert rig.server.asked == [{"grant_type": "client_credentials", "scope": "mail"}]
    assert rig.server.authorized == ["Basic " + base64.b64encode(b"mail+route:s%3Aecret").decode()]


@pytest_twisted.ensureDeferred
async def test_each_user_has_a_token_of_its_own(rig: Rig) -> None:
    """A refresh token gets its user a token (RFC 6749 section 6), and nobody else."""
    for user in ("alice", "bob"):
        rig.files().write(user, Record(f"refresh-{user}"))
    tokens = rig.tokens()
    assert [(await tokens.get(user)).value for user in ("alice", "bob", "alice")] == [
        *("access-1", "access-2", "access-1")
    ]
    assert rig.server.asked[0] == {
        "grant_type": "refresh_token",
        "refresh_token": "refresh-alice",
        "scope": "mail",
    }
    assert rig.server.asked[1]["refresh_token"] == "refresh-bob"


@pytest.mark.parametrize(
    ("lifetime", "good"), [(3600, 3600 - MARGIN), ("3600", 3600 - MARGIN), (60, 30), (0, 0), (1e9, 86340)]
)
@pytest_twisted.ensureDeferred
async def test_a_token_is_renewed_before_it_expires(rig: Rig, lifetime: Any, good: float) -> None:
    """It is used until a margin before its end, or for half of a short life, and a day at most."""
    rig.server.says = {"access_token": "a", "token_type": "bearer", "expires_in": lifetime}
    tokens = rig.tokens(personal=False)
    await tokens.get("alice")
    if good:
        rig.now += good - 1
        assert (await tokens.get("alice")).known
        rig.now += 1
    assert not (await tokens.get("alice")).known
    assert len(rig.server.asked) == 2


@pytest_twisted.ensureDeferred
async def test_a_hundred_logins_are_one_request(rig: Rig) -> None:
    """Whoever comes while a token is asked for gets that one; who leaves takes it from nobody."""
    rig.files().write("alice", Record("refresh"))
    rig.server.held = []
    tokens = rig.tokens()
    getting = [tokens.get("alice") for _ in range(100)]
    while not rig.server.held:
        await wait()
    getting[0].cancel()
    with pytest.raises(defer.CancelledError):
        await getting[0]
    rig.server.release()
    assert {(await each).value for each in getting[1:]} == {"access-1"}
    assert len(rig.server.asked) == 1


def wait() -> Deferred[None]:
    from twisted.internet import reactor, task

    return task.deferLater(reactor, 0.01)


@pytest_twisted.ensureDeferred
async def test_processes_take_turns(rig: Rig) -> None:
    """Of two processes one asks for a user's token, so that no refresh token is used twice; both get it."""
    rig.files().write("alice", Record("refresh"))
    rig.server.held = []
    getting = [rig.tokens().get("alice") for _ in range(2)]
    while not rig.server.held:
        await wait()
    rig.server.release()
    assert {(await each).value for each in getting} == {"access-1"}
    assert len(rig.server.asked) == 1


@pytest_twisted.ensureDeferred
async def test_another_process_is_not_waited_for_for_ever(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the user's file stays locked, the login is one for later."""
    monkeypatch.setattr(cache, "LOCK_PATIENCE", 0.2)
    lock = rig.files().lock("alice")
    assert lock is not None
    assert (await refusal(rig.tokens().get("alice"))).reason is Reason.UNAVAILABLE
    os.close(lock)


@pytest_twisted.ensureDeferred
async def test_known_tokens_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one used longest ago is forgotten; its file is not."""
    monkeypatch.setattr(cache, "MAX_KNOWN", 2)
    tokens = rig.tokens()
    for user in ("a", "b", "c"):
        rig.files().write(user, Record("refresh"))
        await tokens.get(user)
    assert len(tokens) == 2
    assert (await tokens.get("a")).value == "access-1"
    assert len(rig.server.asked) == 3


# --- what can go wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "reason", "word"),
    [
        (500, b"oh", Reason.UNAVAILABLE, "status 500"),
        (503, b"{}", Reason.UNAVAILABLE, "status 503"),
        (429, b'{"error": "slow_down"}', Reason.UNAVAILABLE, "slow_down"),
        (302, b"", Reason.UNAVAILABLE, "status 302"),
        (
            400,
            b'{"error": "invalid_grant", "error_description": "hush"}',
            Reason.MISCONFIGURED,
            "(invalid_grant): the user has to get a new refresh token",
        ),
        (401, b'{"error": "invalid_client"}', Reason.MISCONFIGURED, "(invalid_client): correct client_id"),
        (400, b'{"error": "invalid_scope"}', Reason.MISCONFIGURED, "(invalid_scope): correct scope"),
        (400, b'{"error": "refresh\\ntoken"}', Reason.MISCONFIGURED, "(no reason): correct [backend"),
        (404, b"[" * 100000, Reason.MISCONFIGURED, "status 404"),
        (200, b"nonsense", Reason.UNAVAILABLE, "no token"),
        (200, b"[]", Reason.UNAVAILABLE, "no token"),
        (200, b'{"access_token": "a b"}', Reason.UNAVAILABLE, "no token"),
        (200, b'{"access_token": "a\\u0001auth=Bearer"}', Reason.UNAVAILABLE, "no token"),
        (200, b'{"access_token": "a\\r\\n"}', Reason.UNAVAILABLE, "no token"),
        (200, b'{"access_token": "%s"}' % (b"x" * (MAX_TOKEN + 1)), Reason.UNAVAILABLE, "no token"),
        (200, b'{"access_token": "a", "token_type": "mac"}', Reason.UNAVAILABLE, "no bearer token"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_token_is_told(
    rig: Rig, status: int, body: bytes, reason: Reason, word: str
) -> None:
    """A server in trouble is for later, what an operator has to mend is called so, and no secret is told."""
    rig.files().write("alice", Record("the-refresh-token"))
    rig.server.status, rig.server.body = status, body
    found = await refusal(rig.tokens().get("alice"))
    assert found.reason is reason
    assert word in found.detail
    assert rig.url in found.detail
    assert not [
        secret
        for secret in ("the-refresh-token", "hush", "s:ecret", "s%3Aecret", "\n")
        if secret in found.detail
    ]
    assert rig.files().read("alice") == Record("the-refresh-token")


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_away_is_told(rig: Rig) -> None:
    """Nobody there, or no answer in time: the login is one for later."""
    rig.server.held = []
    late = await refusal(rig.tokens(personal=False, timeout=0.2).get("alice"))
    await rig.port.stopListening()
    away = await refusal(rig.tokens(personal=False).get("alice"))
    assert (late.reason, away.reason) == (Reason.UNAVAILABLE, Reason.UNAVAILABLE)
    # So that another backend of the route is tried, as when the server says that it cannot.
    assert late.unreached
    assert away.unreached


@pytest_twisted.ensureDeferred
async def test_a_server_that_fails_is_left_alone(rig: Rig) -> None:
    """After some failures it is not asked for a while, then by one request.  A dead token is no failure."""
    tokens = rig.tokens(personal=False)
    rig.server.status = 400
    for _ in range(FAILURES):
        assert (await refusal(tokens.get("alice"))).reason is Reason.MISCONFIGURED
    rig.server.status = 503
    for _ in range(FAILURES + 3):
        no = await refusal(tokens.get("alice"))
        assert (no.reason, no.unreached) == (Reason.UNAVAILABLE, True)
    assert "left alone" in no.detail
    assert len(rig.server.asked) == 2 * FAILURES
    rig.server.status = 200
    rig.now += PAUSE
    assert (await tokens.get("alice")).value == f"access-{2 * FAILURES + 1}"


@pytest_twisted.ensureDeferred
async def test_after_a_failure_it_is_asked_again(rig: Rig) -> None:
    """A failure is nobody's but those who waited for it."""
    tokens = rig.tokens(personal=False)
    rig.server.status = 500
    await refusal(tokens.get("alice"))
    rig.server.status = 200
    assert (await tokens.get("alice")).value == "access-2"


@pytest_twisted.ensureDeferred
async def test_a_refresh_token_that_is_no_good_is_not_shown_again(rig: Rig) -> None:
    """A client that tries and tries does not reach the server, until there is another token."""
    rig.files().write("alice", Record("refresh-0"))
    rig.files().write("bob", Record("refresh-b"))
    tokens = rig.tokens()
    rig.server.status, rig.server.says = 400, {"error": "invalid_grant"}
    first = await refusal(tokens.get("alice"))
    rig.server.status, rig.server.says = 200, {}
    rig.now += DEAD_FOR - 1
    assert await refusal(tokens.get("alice")) == first
    assert len(rig.server.asked) == 1
    assert (await tokens.get("bob")).value == "access-2"
    rig.files().write("alice", Record("refresh-1"))
    assert (await tokens.get("alice")).value == "access-3"
    assert rig.server.asked[2]["refresh_token"] == "refresh-1"
    assert "refresh-0" not in repr(tokens._dead)


@pytest_twisted.ensureDeferred
async def test_a_refresh_token_may_be_good_again(rig: Rig) -> None:
    """After a minute the server is asked once more; what it says of other things is never remembered."""
    rig.files().write("alice", Record("refresh-0"))
    tokens = rig.tokens()
    for error in ("invalid_grant", "invalid_client", "unauthorized_client"):
        rig.server.status, rig.server.says = 400, {"error": error}
        assert error in (await refusal(tokens.get("alice"))).detail
        rig.now += DEAD_FOR if error == "invalid_grant" else 0
    rig.server.status, rig.server.says = 200, {}
    assert (await tokens.get("alice")).value == "access-4"


@pytest_twisted.ensureDeferred
async def test_dead_refresh_tokens_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many users have one, so many are remembered; the oldest is forgotten."""
    monkeypatch.setattr(cache, "MAX_KNOWN", 2)
    rig.server.status, rig.server.says = 400, {"error": "invalid_grant"}
    tokens = rig.tokens()
    for user in "abca":
        rig.files().write(user, Record(f"refresh-{user}"))
        await refusal(tokens.get(user))
    assert len(rig.server.asked) == 4
    await refusal(tokens.get("c"))
    assert len(rig.server.asked) == 4


@pytest_twisted.ensureDeferred
async def test_a_user_without_a_refresh_token_is_told(rig: Rig) -> None:
    """The log names the command that mends it; the server is not asked."""
    found = await refusal(rig.tokens().get("alice"))
    assert found.reason is Reason.MISCONFIGURED
    assert "mailroute token" in found.detail
    assert rig.server.asked == []


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda each: st.lists(each)
)
_KEYS = st.sampled_from(["access_token", "token_type", "expires_in", "refresh_token", "error"])
_ANSWERS = st.binary() | st.builds(
    lambda tree: json.dumps(tree).encode(), _JSON | st.dictionaries(_KEYS, _JSON)
)


@given(st.integers(100, 599), _ANSWERS)
def test_any_answer_is_a_token_or_told(status: int, content: bytes) -> None:
    """Whatever the server says, there is a token that can be sent, with its end, or a refusal on one line."""

    class Web:
        async def submit(self, *_: object) -> Answer:
            return Answer(status, content)

    grant = Grant(Web(), "https://x", {}, {}, True, lambda: 1000.0)
    asked = Deferred.fromCoroutine(grant.ask(Record("refresh")))
    found: list[Any] = []
    asked.addCallbacks(found.append, lambda failure: found.append(failure.value))
    (outcome,) = found
    if isinstance(outcome, Record):
        assert outcome.access.isascii()
        assert not set(outcome.access) & set("\r\n\0\1 ")
        assert 1000 <= outcome.until <= 1000 + MAX_LIFETIME
        assert 0 < len(outcome.refresh) <= MAX_TOKEN
    else:
        assert isinstance(outcome, LoginRefused)
        assert outcome.refusal.detail.isprintable()


# --- on disk -----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_restart_knows_what_was_known(rig: Rig) -> None:
    """Rotated refresh tokens and good tokens are read back; nothing on disk is in the clear."""
    rig.files().write("alice", Record("refresh-0"))
    rig.server.says = {"access_token": "the-access", "expires_in": 3600, "refresh_token": "refresh-1"}
    await rig.tokens().get("alice")
    again = await rig.tokens().get("alice")
    assert (again.value, again.known, len(rig.server.asked)) == ("the-access", True, 1)
    rig.now += 3600
    await rig.tokens().get("alice")
    assert rig.server.asked[1]["refresh_token"] == "refresh-1"
    names = sorted(path.name for path in rig.folder.iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["lock", "token"]
    for path in rig.folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0
        for secret in (b"refresh-", b"the-access", b"alice"):
            assert secret not in path.read_bytes()
            assert secret not in base64.urlsafe_b64decode(path.read_bytes())
            assert secret.decode() not in path.name


def no_space(*_: object) -> None:
    """Fail as a full disk does."""
    raise BadFile("no space")


@pytest_twisted.ensureDeferred
async def test_a_token_that_cannot_be_written_is_not_lost(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The login goes on, the next request has the rotated token, and the file gets it later."""
    rig.files().write("alice", Record("refresh-0"))
    rig.server.says = {"access_token": "a", "expires_in": 0, "refresh_token": "refresh-1"}
    tokens = rig.tokens()
    with monkeypatch.context() as full:
        full.setattr(TokenFiles, "write", no_space)
        await tokens.get("alice")
    await tokens.get("alice")
    assert [form["refresh_token"] for form in rig.server.asked] == ["refresh-0", "refresh-1"]
    found = rig.files().read("alice")
    assert found is not None
    assert found.refresh == "refresh-1"


@pytest_twisted.ensureDeferred
async def test_a_token_that_could_not_be_written_gives_way_to_the_file(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the server calls it invalid, what an operator has put into the file since is tried."""
    rig.files().write("alice", Record("refresh-0"))
    rig.server.says = {"access_token": "a", "expires_in": 0, "refresh_token": "refresh-1"}
    tokens = rig.tokens()
    with monkeypatch.context() as full:
        full.setattr(TokenFiles, "write", no_space)
        await tokens.get("alice")
    rig.files().write("alice", Record("from the operator"))
    rig.server.status, rig.server.says = 400, {"error": "invalid_grant"}
    assert (await refusal(tokens.get("alice"))).reason is Reason.MISCONFIGURED
    rig.server.status, rig.server.says = 200, {}
    await tokens.get("alice")
    assert [form["refresh_token"] for form in rig.server.asked] == [
        "refresh-0",
        "refresh-1",
        "from the operator",
    ]


@pytest_twisted.ensureDeferred
async def test_who_stops_waits_for_a_token_that_is_asked_for(rig: Rig) -> None:
    """The answer may replace a refresh token that is used up by now: it is in the file before all ends."""
    rig.files().write("alice", Record("refresh-0"))
    rig.server.says = {"access_token": "a", "refresh_token": "refresh-1"}
    rig.server.held = []
    tokens = rig.tokens()
    tokens.startService()
    getting = tokens.get("alice")
    while not rig.server.held:
        await wait()
    getting.cancel()
    with pytest.raises(defer.CancelledError):
        await getting
    stopped: Any = tokens.stopService()
    rig.server.release()
    await stopped
    found = rig.files().read("alice")
    assert found is not None
    assert found.refresh == "refresh-1"
    rig.files().write("bob", Record("refresh-of-bob"))
    assert (await refusal(tokens.get("bob"))).reason is Reason.UNAVAILABLE
    assert len(rig.server.asked) == 1


@pytest_twisted.ensureDeferred
async def test_who_stops_waits_for_nothing_else(rig: Rig) -> None:
    """Neither for another process' lock, nor for a token in memory alone; and nobody begins to ask."""
    tokens = rig.tokens()
    tokens.startService()
    assert tokens.stopService() is None
    lock = rig.files().lock("alice")
    assert lock is not None
    rig.files().write("alice", Record("refresh-0"))
    tokens = rig.tokens()
    tokens.startService()
    getting = tokens.get("alice")
    await wait()
    assert tokens.stopService() is None
    os.close(lock)
    assert (await refusal(getting)).reason is Reason.UNAVAILABLE
    assert rig.server.asked == []
    rig.server.held = []
    tokens = rig.tokens(personal=False, kept=False)
    tokens.startService()
    getting = tokens.get("alice")
    while not rig.server.held:
        await wait()
    assert tokens.stopService() is None
    rig.server.release()
    await getting


@pytest_twisted.ensureDeferred
async def test_who_stops_does_not_wait_for_ever(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer is given up, and the log says what may be lost."""
    monkeypatch.setattr(cache, "STOP_PATIENCE", 0.05)
    rig.files().write("alice", Record("refresh-0"))
    rig.server.held = []
    tokens = rig.tokens()
    tokens.startService()
    getting = tokens.get("alice")
    while not rig.server.held:
        await wait()
    with capturedLogs() as logs:
        await tokens.stopService()  # type: ignore[misc]
    (event,) = [each for each in logs if each["log_namespace"] == "mailroute.tokens"]
    assert "may be lost" in formatEvent(event)
    assert "refresh-0" not in formatEvent(event)
    rig.server.release()
    await getting


def test_a_file_is_good_for_its_key_and_user_alone(tmp_path: Path) -> None:
    """Another key, another user's file under this name, and damage are told, with the file's name."""
    files = TokenFiles(tmp_path, KEY)
    files.write("alice", Record("refresh"))
    other = TokenFiles(tmp_path, Fernet(Fernet.generate_key()))
    with pytest.raises(BadFile, match="not encrypted with this key"):
        other.read("alice")
    files.path("bob").write_bytes(files.path("alice").read_bytes())
    with pytest.raises(BadFile, match="another user"):
        files.read("bob")
    files.path("alice").write_bytes(b"x" * 100)
    with pytest.raises(BadFile, match="damaged"):
        files.read("alice")
    with pytest.raises(BadFile, match="cannot write"):
        TokenFiles(tmp_path / "none", KEY).write("alice", Record("refresh"))


def test_a_crash_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is replaced as a whole, and nothing half-written is left."""
    files = TokenFiles(tmp_path, KEY)
    files.write("alice", Record("old"))

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(BadFile):
        files.write("alice", Record("new"))
    assert files.read("alice") == Record("old")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_key_is_base64_of_either_alphabet() -> None:
    """What openssl and Python make are keys; a password is none."""
    for key in (base64.b64encode(b"\xff" * 32), base64.urlsafe_b64encode(b"\xff" * 32)):
        assert read_key(key).decrypt(read_key(key).encrypt(b"x")) == b"x"
    with pytest.raises(ValueError, match="32"):
        read_key(b"hunter2")


def test_no_secret_is_in_a_repr() -> None:
    """What goes through a traceback or a log shows no token and no password."""
    record = Record("refresh-0", "access-0", 1.0)
    grant = Grant(None, "u", {"A": "secret"}, {"b": "secret"}, True, float)  # type: ignore[arg-type]
    assert not [word for word in ("refresh-0", "access-0", "secret") if word in f"{record!r}{grant!r}"]


# --- at a backend --------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_login_shows_the_token_and_not_the_password(rig: Rig) -> None:
    """The backend gets an order with a token for the route's name, and nothing that the client has sent."""
    inner = FakeBackend("east")
    opening = TokenBackend(inner, rig.tokens(personal=False)).open(IMAP, evolve(ORDER, user="b"))
    shown = (await called(inner, 1)).credentials
    assert (shown.mechanism, shown.user, shown.secret) == ("", b"b", b"access-1")
    assert shown.proof is Proof.TOKEN
    inner.opening.popleft().callback(opened(None))
    await opening


async def called(inner: FakeBackend, number: int) -> LoginOrder:
    """Return the latest order, when there are so many."""
    while len(inner.calls) < number:
        await wait()
    return inner.calls[-1]


REFUSED = Refusal(Reason.AUTHENTICATION_FAILED, "NO", b"[AUTHENTICATIONFAILED] go", b"{}")


@pytest_twisted.ensureDeferred
async def test_a_token_that_was_revoked_is_replaced_once(rig: Rig) -> None:
    """A known token that is refused is thrown away and one new one tried; the client is not blamed."""
    tokens = rig.tokens(personal=False, kept=False)
    await tokens.get("bob")
    inner = FakeBackend("east")
    opening = TokenBackend(inner, tokens).open(IMAP, ORDER)
    for number in (1, 2):
        await called(inner, number)
        inner.opening.popleft().errback(LoginRefused(REFUSED))
    found = await refusal(opening)
    assert [order.credentials.secret for order in inner.calls] == [b"access-1", b"access-2"]
    assert (found.reason, found.reply, found.challenge) == (Reason.MISCONFIGURED, None, None)


@pytest_twisted.ensureDeferred
async def test_a_new_token_that_is_refused_is_not_replaced(rig: Rig) -> None:
    """One more would be as bad: a user without a mailbox costs one request."""
    inner = FakeBackend("east")
    opening = TokenBackend(inner, rig.tokens(personal=False)).open(IMAP, ORDER)
    await called(inner, 1)
    inner.opening.popleft().errback(LoginRefused(REFUSED))
    assert (await refusal(opening)).reason is Reason.MISCONFIGURED
    assert len(rig.server.asked) == 1


def test_somebody_must_have_checked_the_client(rig: Rig) -> None:
    """A route whose source has proven nothing lets in nobody whom no authenticator has."""
    backend = TokenBackend(FakeBackend("east"), rig.tokens())
    place = Places({"east": backend}, Clock()).find(Route("east"))
    assert lets_in_anybody(Route("east"), place, Attempt(BOB))
    assert not lets_in_anybody(Route("east", proven=True), place, Attempt(BOB))


def test_a_route_changes_what_is_behind(rig: Rig) -> None:
    """A route's own host or way to log in is the inner backend's to follow."""
    inner = FakeBackend("east")
    TokenBackend(inner, rig.tokens()).changed(Change(host="10.0.0.9"))
    assert inner.changes == [Change(host="10.0.0.9")]


# --- on the wire ----------------------------------------------------------------------------

TOKEN = Credentials("", b"alice", b"the-token", proof=Proof.TOKEN)


@pytest.mark.parametrize(
    ("offered", "mechanism", "message"),
    [
        ([b"PLAIN", b"XOAUTH2"], b"XOAUTH2", b"user=a,b=c\1auth=Bearer the-token\1\1"),
        (
            [b"XOAUTH2", b"OAUTHBEARER"],
            b"OAUTHBEARER",
            b"n,a=a=2Cb=3Dc,\1auth=Bearer the-token\1\1",
        ),
    ],
)
def test_a_token_goes_by_what_is_offered(offered: list[bytes], mechanism: bytes, message: bytes) -> None:
    """The standard's mechanism before Google's; the message reads back as the user's, and is a secret."""
    order = LoginOrder(TOKEN, "a,b=c", CLIENT)
    choice = choose(LoginTerms(Method.REPLAY), order, frozenset(offered))
    assert choice is not None
    assert (choice.mechanism, choice.messages) == (mechanism, (message,))
    read = sasl.Exchange(mechanism.decode()).respond(sasl.encode(message))
    assert read is not None
    assert read.user == b"a,b=c"
    assert b"the-token" in choice.secrets()


def test_a_token_needs_a_mechanism_for_it() -> None:
    """No other mechanism gets a token; nor does a name get a field of its own into the message."""
    with pytest.raises(NoWay, match="OAUTHBEARER, XOAUTH2"):
        choose(LoginTerms(), LoginOrder(TOKEN, "alice", CLIENT), frozenset([b"PLAIN"]))
    for mechanism in (b"XOAUTH2", b"OAUTHBEARER"):
        with pytest.raises(NoWay):
            choose(LoginTerms(), LoginOrder(TOKEN, "a\1auth=Bearer x", CLIENT), frozenset([mechanism]))
