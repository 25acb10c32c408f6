"""Around every slow source: caches, one question at a time, a timeout, a breaker."""

import base64
import errno
import json
from random import Random
from urllib.parse import quote

import pytest
from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from mailroute.events import Address, Credentials, LoginRefused, Lookup, Reason, Refusal, Route
from mailroute.proofs import Proof
from mailroute.routers.guard import GuardedRouter
from mailroute.sources import guard as module
from mailroute.sources.context import BadAnswer, BadOption, SourceContext, Unanswered
from mailroute.sources.counts import BUCKETS, Durations
from mailroute.sources.echo import LEFT_OUT, RUN, echoes
from mailroute.sources.guard import JITTER, MAX_FLIGHTS
from mailroute.sources.options import SlowOptions, read_options, secret
from mailroute.testing import CLIENT

EAST = Route("east")


def lookup(user="bob", client=CLIENT, **fields):
    return Lookup(user, "imap", client, **fields)


class Source:
    """A source that answers when the test says so, behind a guard."""

    def __init__(self, tmp_path, *, by_password=False, by_client=False, **options):
        self.clock = Clock()
        self.questions = []
        self.cancelled = 0
        context = SourceContext(
            tmp_path, frozenset({"east"}), str, self.clock, lambda call: call(), label="route[1] (slow)"
        )
        options = read_options(SlowOptions, options, context)
        self.guard = GuardedRouter(self.ask, options, context, by_password=by_password, by_client=by_client)

    async def ask(self, question):
        waiting = Deferred(self._cancel)
        self.questions.append((question, waiting))
        return await waiting

    def _cancel(self, _):
        self.cancelled += 1

    def route(self, user="bob", **fields):
        """Ask, and return what comes of it: a list that fills, unless it is there at once."""
        got = []
        try:
            answer = self.guard.route(lookup(user, **fields))
        except LoginRefused as refused:
            return [refused.refusal]
        if not isinstance(answer, Deferred):
            return [answer]
        answer.addCallbacks(got.append, lambda failure: got.append(failure.value))
        self.last = answer
        return got

    def answers(self, answer=EAST):
        """Answer the oldest question."""
        _, waiting = self.questions.pop(0)
        (waiting.errback if isinstance(answer, Exception) else waiting.callback)(answer)

    def learns(self, user="bob", answer=EAST, **fields):
        """Have a question asked and answered."""
        got = self.route(user, **fields)
        self.answers(answer)
        return got


SECRET = "päss wörd\\"


@pytest.mark.parametrize(
    "echo",
    [
        SECRET,
        ascii(SECRET)[1:-1],
        ascii(SECRET.encode())[2:-1],
        quote(SECRET),
        json.dumps(SECRET)[1:-1],
        base64.b64encode(SECRET.encode()).decode(),
    ],
)
@pytest.mark.parametrize("kind", [BadAnswer, Unanswered, LoginRefused])
def test_a_secret_that_comes_back_is_not_passed_on(make, kind, echo):
    """What a source says against a login is left out where it repeats what the client has shown."""
    source = make(by_password=True)
    said = f"not {echo}, I say"
    shown = Credentials("PLAIN", b"bob", SECRET.encode())
    with capturedLogs() as logs:
        got = source.route(credentials=shown)
        source.answers(
            LoginRefused(Refusal(Reason.CONTACT_ADMIN, said)) if kind is LoginRefused else kind(said)
        )
    (outcome,) = got
    assert echo not in "".join([str(outcome), *map(formatEvent, logs)])
    other = source.route(credentials=evolve(shown, secret=b"another"))
    source.answers(LoginRefused(Refusal(Reason.CONTACT_ADMIN, said)))
    assert refused(other).detail == said


def test_a_token_that_comes_back_is_not_passed_on(make):
    """Of a token's message, the token alone is a secret as well."""
    source = make(by_password=True)
    shown = Credentials("XOAUTH2", b"bob", b"user=bob\1auth=Bearer a.t-k.n\1\1", proof=Proof.TOKEN)
    got = source.route(credentials=shown)
    source.answers(LoginRefused(Refusal(Reason.CONTACT_ADMIN, "bad a.t-k.n")))
    assert refused(got).detail == f"route[1] (slow): {LEFT_OUT}"


TOKEN = "".join(chr(65 + n * 7 % 26) + str(n) for n in range(100))
BEARER = Credentials(
    "OAUTHBEARER",
    b"bob",
    f"n,a=somebody@mail.example.org,\1host=mail.example.org\1port=143\1auth=Bearer {TOKEN}\1\1".encode(),
    proof=Proof.TOKEN,
)


@pytest.mark.parametrize("shown", [BEARER, evolve(BEARER, mechanism="X", secret=TOKEN.encode())])
@pytest.mark.parametrize("start", [0, 1, 7, 8, 100, len(TOKEN) - RUN])
def test_a_piece_of_a_secret_is_recognised(start, shown):
    """Of a token that a server has cut somewhere, so many characters in a row are enough, and no fewer."""
    piece = TOKEN[start : start + RUN]
    assert echoes(f"no such token: {piece}...", shown)
    assert not echoes(f"no such token: {piece[1:]}...", shown)
    assert not echoes(f"no such token: {piece[:-1]}...", shown)


def test_a_message_that_is_cut_is_recognised():
    """A server may repeat the beginning of the message as it came; of the user it may say what it likes."""
    assert echoes(f"bad response {base64.b64encode(BEARER.secret).decode()[:80]}", BEARER)
    assert not echoes("somebody@mail.example.org may not log in at host=mail.example.org", BEARER)


def test_a_short_secret_is_recognised_whole():
    """Of a password there is no piece that other texts do not have."""
    for password in ("p", "exactly 16 chars", "17 characters now"):
        shown = Credentials("PLAIN", b"bob", password.encode())
        assert echoes(f"[{password}]", shown)
        assert echoes(f"[{password[:16]}]", shown)
        assert not echoes(f"[{password[:-3] + '?'}]", shown)


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(module.random, "random", lambda: 0.0)
    return lambda **options: Source(tmp_path, **options)


def refused(got):
    """Return why a question was refused, at once or later."""
    [outcome] = got
    return outcome.refusal if isinstance(outcome, LoginRefused) else outcome


def test_an_answer_is_known_for_a_while(make):
    """Within its time nobody asks again; after it somebody does."""
    source = make(cache_ttl=60)
    assert source.learns() == [EAST]
    source.clock.advance(59)
    assert source.route() == [EAST]
    source.clock.advance(1)
    assert source.route() == []
    assert source.guard.counts.asked == 2
    assert source.guard.counts.cached == 1


def test_that_there_is_no_route_is_known_for_less(make):
    """A new account is found soon."""
    source = make(negative_ttl=10)
    assert source.learns(answer=None) == [None]
    source.clock.advance(9)
    assert source.route() == [None]
    source.clock.advance(1)
    assert source.route() == []


def test_what_a_user_is_refused_for_is_known_as_well(make):
    """A disabled account does not ask the source for each try."""
    source = make()
    no = Refusal(Reason.CONTACT_ADMIN, "disabled")
    assert refused(source.learns(answer=LoginRefused(no))) == no
    assert source.route() == [no]


def test_later_is_not_remembered(make):
    """Whom the source tells to come later may do so, and is not sent where it lived before."""
    source = make(cache_ttl=60)
    source.learns()
    source.clock.advance(60)
    later = Refusal(Reason.UNAVAILABLE, "moving")
    assert refused(source.learns(answer=LoginRefused(later))) == later
    assert source.route() == []
    source.answers(OSError())
    assert source.guard.counts.stale == 0


def test_nonsense_is_not_remembered(make):
    """What the operator mends counts at once."""
    source = make()
    [error] = source.learns(answer=BadAnswer("no sense"))
    assert isinstance(error, BadAnswer)
    assert source.route() == []
    assert source.guard.counts.failed == 0


def test_ten_thousand_logins_of_a_hundred_users_ask_a_hundred_times(make):
    """The source is asked once for each user."""
    source = make()
    for login in range(10000):
        got = source.route(f"user{login % 100}")
        if source.questions:
            source.answers()
        assert got == [EAST]
    assert source.guard.counts.asked == 100


@pytest.mark.parametrize("order", ["by user", "in turn", "at random"])
def test_ten_thousand_logins_at_once_ask_a_hundred_times(make, order):
    """However they come, before any answer is there: each user is asked about once, and all get answers."""
    source = make()
    users = [f"user{login % 100}" for login in range(10000)]
    if order == "by user":
        users.sort()
    elif order == "at random":
        Random(1).shuffle(users)  # noqa: S311 - nothing depends on its being guessed
    got = [source.route(user) for user in users]
    assert not any(got)
    assert len(source.questions) == 100
    while source.questions:
        source.answers()
    assert got == [[EAST]] * 10000
    assert source.guard.counts.asked == 100
    assert source.guard.counts.joined == 9900


def test_ten_thousand_logins_in_less_than_a_ttl_ask_a_hundred_times(tmp_path):
    """The jitter takes a tenth of the time at most: within what is left of it nobody is asked about again."""
    source = Source(tmp_path, cache_ttl=60)
    for login in range(10000):
        got = source.route(f"user{login % 100}")
        if source.questions:
            source.answers()
        assert got == [EAST]
        source.clock.advance(60 * (1 - JITTER) / 10000)
    assert source.guard.counts.asked == 100


def test_ten_thousand_logins_over_ten_ttls_ask_as_often_as_answers_get_old(tmp_path):
    """Each user is asked about again when its answer is old, and not before."""
    source = Source(tmp_path, cache_ttl=60)
    for login in range(10000):
        source.route(f"user{login % 100}")
        if source.questions:
            source.answers()
        source.clock.advance(0.06)  # the same user comes again after 6 s
    assert 1000 <= source.guard.counts.asked <= 1200


def test_one_question_at_a_time_for_one_user(make):
    """A thousand at once wait for the same answer; another user has a question of its own."""
    source = make()
    got = [source.route() for _ in range(1000)]
    other = source.route("eve")
    assert len(source.questions) == 2
    source.answers()
    assert got == [[EAST]] * 1000
    assert other == []
    assert source.guard.counts.joined == 999


def test_protocols_are_asked_about_apart(make):
    """A source may send a user's IMAP elsewhere than its POP3."""
    source = make()
    source.learns()
    assert isinstance(source.guard.route(evolve(lookup(), protocol="pop3")), Deferred)


def test_who_leaves_takes_the_answer_from_nobody(make):
    """The first to ask may go: the others, and the cache, get the answer all the same."""
    source = make()
    source.route()
    first = source.last
    second = source.route()
    first.cancel()
    source.last.addBoth(lambda _: None)
    assert source.cancelled == 0
    source.answers()
    assert second == [EAST]
    assert source.route() == [EAST]


def test_one_who_is_answered_may_have_another_one_leave(make):
    """Who leaves while the answer is given out has left, and all others get it."""
    source = make()
    got = [source.route()]
    first = source.last
    got += [source.route(), source.route()]
    leaving = source.last
    first.addCallback(lambda _: leaving.cancel())
    source.answers()
    assert got[:2] == [[EAST], [EAST]]
    assert isinstance(got[2][0], CancelledError)


def test_all_may_leave(make):
    """A question that nobody waits for any more ends in the cache."""
    source = make()
    source.route()
    source.last.cancel()
    source.answers()
    assert source.route() == [EAST]


def test_a_source_that_hangs_is_given_up(make):
    """After its time the question is cancelled, and the user told to come later."""
    source = make(timeout=5)
    got = source.route()
    source.clock.advance(4.9)
    assert got == []
    source.clock.advance(0.1)
    assert refused(got).reason is Reason.UNAVAILABLE
    assert "route[1] (slow) cannot be asked: no answer within 5 s" in refused(got).detail
    assert source.cancelled == 1
    assert (source.guard.counts.failed, source.guard.counts.slow) == (1, 1)


def test_a_failure_shows_nothing_of_what_it_says(make):
    """A driver's message may hold an address with a password in it."""
    source = make()
    got = source.learns(answer=OSError("postgresql://u:s3cret@db"))
    assert refused(got).detail == "route[1] (slow) cannot be asked: OSError"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            Refused(errno.ECONNREFUSED, "s3cret"),
            "ConnectionRefusedError: Connection refused;"
            " start the server, or correct its address in this block",
        ),
        (
            ConnectError(errno.ENOENT, "s3cret"),
            "ConnectError: No such file or directory; start the server, or correct its path in this block",
        ),
        (
            ConnectError(errno.EACCES, "s3cret"),
            "ConnectError: Permission denied; let mailroute's user open the socket",
        ),
        (
            DNSLookupError("s3cret"),
            "DNSLookupError: the host's name is not known; correct it in this block, or mend the resolver",
        ),
        (ConnectError(string="s3cret"), "ConnectError"),
    ],
    ids=["refused", "no-socket", "forbidden", "no-such-host", "no-number"],
)
def test_a_server_that_cannot_be_reached_is_told_with_its_remedy(make, error, why):
    """The log says why, in words that cannot hold a secret, and what the operator can do."""
    source = make()
    with capturedLogs() as logged:
        got = source.learns(answer=error)
    assert refused(got).detail == f"route[1] (slow) cannot be asked: {why}"
    assert f"route[1] (slow) failed: {why}" in [formatEvent(event) for event in logged]


def test_an_old_answer_is_better_than_none(make):
    """While the source fails users go where they went before, for as long as the operator allows."""
    source = make(cache_ttl=60, stale_if_error=600, breaker_failures=0)
    source.learns()
    source.clock.advance(659)
    assert source.learns(answer=OSError()) == [EAST]
    assert source.guard.counts.stale == 1
    source.clock.advance(1)
    assert refused(source.learns(answer=OSError())).reason is Reason.UNAVAILABLE


def test_a_user_that_is_gone_is_not_stale(make):
    """Who was removed does not come back when the source fails."""
    source = make(cache_ttl=60, negative_ttl=0)
    source.learns()
    source.clock.advance(60)
    source.learns(answer=None)
    assert refused(source.learns(answer=OSError())).reason is Reason.UNAVAILABLE


def test_the_breaker_leaves_a_source_alone(make):
    """After so many failures in a row nobody waits for it; after a pause one question tries it."""
    source = make(breaker_failures=3, breaker_pause=10)
    for _ in range(3):
        source.learns(answer=OSError())
    assert "left alone" in refused(source.route()).detail
    assert source.guard.counts.spared == 1
    source.clock.advance(10)
    trying = source.route("first")
    assert "left alone" in refused(source.route("second")).detail
    source.answers()
    assert trying == [EAST]
    assert source.route("third") == []


def test_a_try_that_fails_begins_another_pause(make):
    """A source that is still down is asked once in a pause."""
    source = make(breaker_failures=3, breaker_pause=10)
    for _ in range(3):
        source.learns(answer=OSError())
    source.clock.advance(10)
    source.learns(answer=OSError())
    source.clock.advance(9)
    assert "left alone" in refused(source.route()).detail
    source.clock.advance(1)
    assert source.route() == []


def test_failures_apart_from_each_other_break_nothing(make):
    """Any answer, even that there is no such user, shows that the source is there."""
    source = make(breaker_failures=2)
    for _ in range(5):
        source.learns("eve", OSError())
        source.learns("nobody", None)
        source.clock.advance(100)
    assert source.route() == []


def test_what_is_known_is_told_while_the_breaker_is_open(make):
    """Routes that are fresh, and old ones, do not need the source."""
    source = make(cache_ttl=60, breaker_failures=1)
    source.learns()
    source.learns("eve", OSError())
    assert source.route() == [EAST]
    source.clock.advance(60)
    source.learns("eve", OSError())
    assert source.route() == [EAST]
    assert source.guard.counts.stale == 1


def test_the_cache_is_bounded(make):
    """The user that came longest ago is forgotten first."""
    source = make(cache_size=2)
    for user in "abac":
        got = source.route(user)
        if source.questions:
            source.answers()
        assert got == [EAST]
    assert source.route("a") == [EAST]
    assert source.route("b") == []


def test_guesses_do_not_drive_routes_out(make):
    """Names that nobody has are kept apart from those of accounts."""
    source = make(cache_size=2)
    source.learns()
    for name in range(10):
        source.learns(f"guess{name}", None)
    assert source.route() == [EAST]


def test_questions_at_a_time_are_bounded(make):
    """A flood of names does not pile up questions without end."""
    source = make()
    for number in range(MAX_FLIGHTS):
        source.route(f"user{number}")
    assert "asked 1000 questions already" in refused(source.route("one more")).detail


def test_passwords_are_kept_apart(make):
    """With a source that checks passwords, nobody gets in by the answer for another password."""
    source = make(by_password=True, cache_ttl=60)
    right, wrong = (Credentials("PLAIN", b"bob", secret) for secret in (b"right", b"wrong"))
    got = source.route(credentials=right)
    source.answers()
    assert got == [EAST]
    assert source.route(credentials=right) == [EAST]
    assert source.route(credentials=wrong) == []
    assert b"right" not in repr(vars(source.guard)).encode()


RIGHT, WRONG = (Credentials("PLAIN", b"bob", secret) for secret in (b"right", b"wrong"))


def test_a_checked_password_is_kept_for_half_a_minute(make):
    """Unless the operator says otherwise, it is not longer that one works which was changed."""
    source = make(by_password=True)
    assert source.learns(credentials=RIGHT) == [EAST]
    source.clock.advance(29)
    assert source.route(credentials=RIGHT) == [EAST]
    source.clock.advance(1)
    assert source.route(credentials=RIGHT) == []


@pytest.mark.parametrize("no", [None, LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "wrong"))])
def test_a_wrong_password_is_not_kept_unless_wanted(make, no):
    """One that has become right counts at once, and the source may count who tries how often."""
    source = make(by_password=True)
    for _ in range(2):
        source.learns(answer=no, credentials=WRONG)
    assert source.guard.counts.asked == 2
    source = make(by_password=True, negative_ttl=10)
    source.learns(answer=no, credentials=WRONG)
    source.route(credentials=WRONG)
    assert source.guard.counts.asked == 1


def test_a_new_password_is_asked_about_at_once(make):
    """What is known of another one does not matter."""
    source = make(by_password=True)
    source.learns(credentials=RIGHT)
    assert source.learns(credentials=evolve(RIGHT, secret=b"new")) == [EAST]
    assert source.guard.counts.asked == 2


def test_a_checked_password_is_not_stale_unless_wanted(make):
    """While the source fails nobody knows whether it has been changed."""
    source = make(by_password=True)
    source.learns(credentials=RIGHT)
    source.clock.advance(30)
    got = source.learns(answer=OSError(), credentials=RIGHT)
    assert refused(got).reason is Reason.UNAVAILABLE
    source = make(by_password=True, stale_if_error=600)
    source.learns(credentials=RIGHT)
    source.clock.advance(30)
    assert source.learns(answer=OSError(), credentials=RIGHT) == [EAST]


def test_a_password_is_the_same_however_it_is_sent(make):
    """A client's choice of mechanism is no reason to ask again; a token's message is another for each."""
    source = make(by_password=True)
    source.learns(credentials=RIGHT)
    assert source.route(credentials=evolve(RIGHT, mechanism="LOGIN")) == [EAST]
    token = evolve(RIGHT, proof=Proof.TOKEN)
    source.learns(credentials=token)
    assert source.route(credentials=evolve(token, mechanism="XOAUTH2")) == []


@pytest.mark.parametrize(
    ("made", "apart"),
    [
        ({}, False),
        ({"by_client": True}, True),
        ({"by_client": True, "per_client": False}, False),
        ({"per_client": True}, True),
    ],
)
def test_clients_are_asked_about_apart_where_it_matters(make, made, apart):
    """A source that refuses one address is not got around by an answer for another one."""
    source = make(by_password=True, **made)
    source.learns(credentials=RIGHT)
    again = evolve(CLIENT, session_id="other", source=evolve(CLIENT.source, port=1))
    assert source.route(client=again, credentials=RIGHT) == [EAST]
    elsewhere = evolve(CLIENT, source=Address("192.0.2.99", 1))
    assert (source.route(client=elsewhere, credentials=RIGHT) == []) is apart


@pytest.mark.parametrize("by_client", [False, True])
def test_ten_thousand_logins_with_passwords_ask_a_hundred_times(make, by_client):
    """A source that checks passwords is spared as the others are, without any setting."""
    source = make(by_password=True, by_client=by_client)
    for login in range(10000):
        user = login % 100
        got = source.route(f"user{user}", credentials=evolve(RIGHT, secret=b"secret %d" % user))
        if source.questions:
            source.answers()
        assert got == [EAST]
    assert source.guard.counts.asked == 100


def test_what_is_known_can_be_forgotten(make):
    """Who finds that an answer does not fit has the source asked."""
    source = make()
    source.learns()
    source.guard.forget(lookup())
    assert source.route() == []


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("over\r\nsession x ended", "over\\r\\nsession x ended"),
        ("\x1b[2J\u202eno", "\\x1b[2J\\u202eno"),
        ("long " * 100, f"{('long ' * 100)[:397]}..."),
        ("Größe", "Größe"),
    ],
)
def test_what_a_source_says_is_one_line_and_not_long(make, said, logged):
    """Whatever it says against a login, it cannot begin a line of the log, or fill it."""
    source = make()
    got = source.learns(answer=LoginRefused(Refusal(Reason.CONTACT_ADMIN, said)))
    assert refused(got).detail == logged


def test_stopping_gives_up_what_is_asked(make):
    """The program does not wait for a source when it stops."""
    source = make()
    source.guard.startService()
    got = source.route()
    source.guard.stopService()
    assert source.cancelled == 1
    assert refused(got).reason is Reason.UNAVAILABLE


def test_whoever_comes_after_the_end_is_told_to_come_again(make):
    """Nothing is begun that nobody would end; what is known is told."""
    source = make(cache_ttl=60)
    source.learns("carol")
    source.guard.startService()
    source.guard.stopService()
    [no] = source.route()
    assert no == Refusal(Reason.UNAVAILABLE, "route[1] (slow) cannot be asked: mailroute is about to end")
    assert source.route("carol") == [EAST]
    assert not source.questions
    source.guard.startService()
    assert source.learns() == [EAST]


def test_a_note_says_where_an_answer_is_from(make):
    """Whoever asks for an account by hand is told whether the answer was fresh."""
    source = make()
    notes = []
    source.route(note=notes.append)
    source.route(note=notes.append)
    source.answers()
    source.clock.advance(12)
    source.route(note=notes.append)
    assert notes == ["fresh", "shared with a question under way", "from the cache, 12 s old"]


def test_durations_are_shortened_at_random(tmp_path, monkeypatch):
    """What was learnt together is not forgotten together."""
    source = Source(tmp_path, cache_ttl=100)
    monkeypatch.setattr(module.random, "random", lambda: 1.0)
    source.learns()
    source.clock.advance(91)
    assert source.route() == []


@pytest.mark.parametrize(
    ("options", "key", "why"),
    [
        ({"timeout": 0}, "timeout", "greater than 0"),
        ({"timeout": "5"}, "timeout", "a number of seconds"),
        ({"cache_size": 0}, "cache_size", "must be 1 or more, not 0"),
        ({"cache_tll": 1}, "cache_tll", 'did you mean "cache_ttl"'),
        ({"backend": "east2"}, "backend", 'did you mean "east"'),
    ],
)
def test_wrong_keys_are_named(make, options, key, why):
    """The operator is told which key, and what is wrong with it."""
    with pytest.raises(BadOption, match=why) as caught:
        make(**options)
    assert caught.value.key == key


def test_secrets_are_in_files(tmp_path):
    """A secret is the first line of a file; a missing or empty one is named."""
    context = SourceContext(tmp_path, frozenset(), str, Clock(), lambda call: call())
    (tmp_path / "secret").write_bytes(b"s3cret\r\nmore\n")
    (tmp_path / "empty").write_bytes(b"\n")
    assert secret(context, "password_file", "secret") == b"s3cret"
    with pytest.raises(BadOption, match="is empty"):
        secret(context, "password_file", "empty")
    with pytest.raises(BadOption, match=r"cannot read .*missing: No such file"):
        secret(context, "password_file", "missing")


# --- what is told of it ---------------------------------------------------------


def test_what_is_under_way_and_known_can_be_seen(make):
    """Questions count until they are answered, routes and other answers as long as they are kept."""
    source = make(cache_ttl=60, negative_ttl=10, cache_size=2)
    source.route("bob")
    source.route("bob")
    source.route("carol")
    assert source.guard.under_way == 2
    source.answers()
    source.answers(None)
    assert source.guard.under_way == 0
    assert source.guard.known == (1, 1)
    for user in "dave", "eve":
        source.learns(user)
    assert source.guard.known == (2, 1)


def test_it_can_be_seen_that_the_source_is_left_alone(make):
    """From the last failure in a row to the first answer, the trial's time included."""
    source = make(breaker_failures=2, breaker_pause=10)
    seen = []
    for answer in ValueError(), ValueError(), EAST:
        source.clock.advance(10)
        source.learns(answer=answer)
        seen.append(source.guard.left_alone)
    assert seen == [False, True, False]


def test_durations_are_measured_for_whoever_wants_them(make):
    """Each question that the source was asked counts, the late and the failed as well."""
    source = make(timeout=5)
    source.learns("alice")
    assert source.guard.durations is None
    source.guard.durations = Durations()
    source.route("bob")
    source.clock.advance(0.25)
    source.answers()
    source.route("bob")
    source.route("carol")
    source.clock.advance(2)
    source.answers(ValueError())
    source.route("dave")
    source.clock.advance(5)
    assert source.guard.durations.total == 7.25
    counted = dict(source.guard.durations.up_to())
    assert list(counted) == [*BUCKETS, float("inf")]
    assert [counted[bound] for bound in (0.1, 0.25, 1, 2.5, 5, 10, float("inf"))] == [0, 1, 1, 2, 3, 3, 3]
