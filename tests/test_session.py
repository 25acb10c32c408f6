"""The life of a connection, with fakes around it."""

from __future__ import annotations

import base64

import pytest
from attrs import evolve, frozen
from authenticating import ScramClient
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from zope.interface import implementer

from mailroute.authenticators import AuthenticatorChain, Link
from mailroute.dialogs import protocol as protocol_named
from mailroute.dialogs.imap import IMAP
from mailroute.dialogs.imap.seam import Welcome
from mailroute.events import (
    NOBODY,
    Credentials,
    DialogTerms,
    Farewell,
    LoginRefused,
    Method,
    Reason,
    Refusal,
    Route,
)
from mailroute.failures import FailureTiming
from mailroute.house import Door, House
from mailroute.interfaces import IKeyholder
from mailroute.names import UserNames
from mailroute.proofs import Proof
from mailroute.session import _ENTER, Session
from mailroute.states import NEXT, Happening, State
from mailroute.testing import FakeBackend, FakeLeg, FakeRouter, opened
from mailroute.wire.scram import make_keys, proves

HI = Welcome((), b"Hi", b"IMAP4rev1")
NO = b"NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"


@frozen
class Result:
    bytes_a_to_b: int
    bytes_b_to_a: int
    reason: str


class FakeSplice:
    bytes_a_to_b = 30
    bytes_b_to_a = 40
    cancelled = False

    def cancel(self):
        self.cancelled = True


class Checks:
    """An authenticator that is a function of the name and the password."""

    proofs = frozenset({Proof.PASSWORD})

    def __init__(self, check):
        self.check = check

    def authenticate(self, lookup):
        return self.check(lookup.user, lookup.credentials.secret)


class Setting:
    """A session with everything around it faked."""

    def __init__(self, **changes):
        self.clock = Clock()
        self.east = FakeBackend("east", changes.pop("method", Method.REPLAY))
        self.router = changes.pop("router", None) or FakeRouter({"bob": Route("east")})
        self.joined = []
        protocol, route = changes.pop("protocol", IMAP), changes.pop("route", None)
        terms = changes.pop("terms", DialogTerms())
        check = changes.pop("check", None)
        authenticator = check and AuthenticatorChain([Link("test", Checks(check))])
        self.door = Door("test", protocol, terms, authenticator, route)
        self.house = House(
            router=self.router,
            backends={"east": self.east},
            normalise=UserNames().from_wire,
            join=self.join,
            failures=FailureTiming(changes.pop("failure_delay", 0.0), ["east"]),
            clock=self.clock,
        )
        self.house = evolve(self.house, **changes)
        self.leg = FakeLeg(transport="client's")
        self.session = Session(self.house, self.door, self.leg)
        self.session.begin()
        self.leg.written()

    def join(self, client, backend, to_client, to_backend, ended):
        splice = FakeSplice()
        self.joined.append((client, backend, to_client, to_backend, ended, splice))
        return splice

    def hears(self, data):
        self.session.received(data)

    def timers(self):
        """Whoever waits for a deadline, and what the clock has to do besides ringing for those."""
        ringing = self.house.deadlines._timer
        return [
            *self.house.deadlines,
            *(call for call in self.clock.getDelayedCalls() if call is not ringing),
        ]

    def opens(self, **kwargs):
        self.east.opening.popleft().callback(opened("backend's", HI, **kwargs))

    def refuses(self, reason=Reason.AUTHENTICATION_FAILED, detail="x", **more):
        self.east.opening.popleft().errback(LoginRefused(Refusal(reason, detail, **more)))


@pytest.fixture
def events():
    seen = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)


def ended(events):
    return [event for event in events if " ended: " in formatEvent(event)]


def test_every_state_has_an_entry_and_an_end():
    """The table is complete: each state can be entered, and left when the connection ends."""
    assert set(_ENTER) == set(State)
    assert {state for state, happening in NEXT if happening is Happening.ENDED} == set(State) - {State.OVER}


def test_a_login_from_end_to_end(events):
    """The account's backend is opened, both ends joined, pipelined bytes first, one line logged."""
    setting = Setting()
    setting.hears(b"a LOGIN bob secret\r\nb NOOP\r\n")
    assert not setting.leg.paused
    order = setting.east.calls[0]
    credentials, user, client = order.credentials, order.user, order.client
    assert (credentials, user, client) == (
        Credentials("LOGIN", b"bob", b"secret"),
        "bob",
        setting.leg.client(),
    )
    setting.hears(b"late\r\n")
    assert setting.leg.paused
    setting.opens(rest=b"* 1 EXISTS\r\n")
    (joined,) = setting.joined
    assert joined[:4] == (
        "client's",
        "backend's",
        b"a OK [CAPABILITY IMAP4rev1] Hi\r\n* 1 EXISTS\r\n",
        b"b NOOP\r\nlate\r\n",
    )
    joined[4].parted(Result(10, 20, "the client closed"))
    assert setting.session.state is State.OVER
    (event,) = ended(events)
    assert event["user"] == "bob"
    assert event["backend"] == "east"
    assert (event["bytes_in"], event["bytes_out"], event["reason"]) == (10, 20, "the client closed")
    assert (event["connect"], event["login"]) == (0.25, 0.5)
    assert event["session_id"] == "session-1"


def test_the_route_may_give_another_name():
    """The backend is asked for the name that the route gives."""
    setting = Setting(router=FakeRouter({"bob": Route("east", "b2")}))
    setting.hears(b"a LOGIN bob secret\r\n")
    assert setting.east.calls[0].user == "b2"


def test_the_account_is_what_is_routed():
    """Who authorizes as somebody else is routed to the other's backend."""
    setting = Setting()
    setting.hears(b"a AUTHENTICATE PLAIN Ym9iAHJvb3QAc2VjcmV0\r\n")
    assert setting.router.asked[0].user == "bob"
    assert setting.east.calls[0].credentials == Credentials("PLAIN", b"root", b"secret", b"bob")


def test_a_refused_login_may_be_tried_again_with_other_credentials():
    """A wrong password leaves the client connected, and nothing of one try gets into the next."""
    setting = Setting()
    setting.hears(b"a LOGIN bob wrong\r\n")
    setting.refuses()
    setting.clock.advance(0)
    assert setting.leg.written() == b"a " + NO
    assert not setting.leg.paused
    assert setting.session._attempt is None
    setting.hears(b"b LOGIN bob right\r\n")
    assert [order.credentials.secret for order in setting.east.calls] == [b"wrong", b"right"]
    setting.opens()
    assert len(setting.joined) == 1


def test_unknown_user_and_wrong_password_look_the_same():
    """In words and in time, who has no account cannot be told from who has the wrong password."""
    known = Setting(failure_delay=2.0)
    known.hears(b"a LOGIN bob wrong\r\n")
    known.clock.advance(0.5)
    known.refuses()
    known.clock.advance(1.4)
    assert known.leg.written() == b""
    known.clock.advance(0.2)
    unknown = Setting(failure_delay=2.0)
    unknown.hears(b"a LOGIN nobody wrong\r\n")
    unknown.clock.advance(1.9)
    assert unknown.leg.written() == b""
    unknown.clock.advance(0.2)
    assert known.leg.written() == unknown.leg.written() == b"a " + NO


def test_a_slow_look_up_does_not_tell_unknown_users_from_known_ones():
    """The time that a look-up takes comes on top for both."""

    class Router:
        def __init__(self):
            self.answer = Deferred()

        def route(self, lookup):
            del lookup
            return self.answer

    ends = []
    for route in (None, Route("east")):
        router = Router()
        setting = Setting(router=router, failure_delay=2.0)
        setting.hears(b"a LOGIN bob wrong\r\n")
        setting.clock.advance(1.5)
        router.answer.callback(route)
        if route is not None:
            setting.refuses()
        while not setting.leg.written():
            setting.clock.advance(0.25)
        ends.append(setting.clock.seconds())
    assert ends == [3.5, 3.5]


def test_an_unknown_user_takes_as_long_as_backends_do():
    """A backend that is slow to refuse makes unknown users slow too."""
    setting = Setting(failure_delay=0.0)
    setting.hears(b"a LOGIN bob wrong\r\n")
    setting.clock.advance(3.0)
    setting.refuses()
    setting.clock.advance(0)
    setting.leg.written()
    setting.hears(b"b LOGIN nobody wrong\r\n")
    setting.clock.advance(2.9)
    assert setting.leg.written() == b""
    setting.clock.advance(0.2)
    assert setting.leg.written() == b"b " + NO


@pytest.mark.parametrize(
    "login",
    [
        b'a LOGIN "" secret\r\n',
        b"a LOGIN {5+}\r\nb\r\nob secret\r\n",
        b"a LOGIN b\xffb secret\r\n",
        b"a AUTHENTICATE LOGIN Ym8AYg==\r\nc2VjcmV0\r\n",
        b"a AUTHENTICATE LOGIN Ym9i\r\nc2VjAHJldA==\r\n",
        b"a LOGIN " + b"b" * 600 + b" secret\r\n",
    ],
)
def test_names_and_passwords_that_nobody_can_have(login):
    """Control characters, NULs and other nonsense fail like a wrong password, and reach nobody."""
    setting = Setting()
    setting.hears(login)
    setting.clock.advance(0)
    assert setting.leg.written().endswith(b"a " + NO)
    assert not setting.router.asked
    assert not setting.east.calls


@pytest.mark.parametrize("reason", [Reason.UNAVAILABLE, Reason.MISCONFIGURED, Reason.LIMIT])
def test_other_refusals_are_answered_at_once(reason):
    """Only guessing is slowed down."""
    setting = Setting(failure_delay=2.0)
    setting.hears(b"a LOGIN bob secret\r\n")
    setting.refuses(reason)
    setting.clock.advance(0)
    assert setting.leg.written().startswith(b"a NO [")


@pytest.mark.parametrize("reason", [Reason.AUTHENTICATION_FAILED, Reason.UNAVAILABLE])
def test_whoever_refuses_may_have_the_client_wait(reason):
    """The answer comes after as many seconds, and no other login is begun before it."""
    setting = Setting(failure_delay=2.0)
    setting.hears(b"a LOGIN bob secret\r\nb LOGIN bob secret\r\n")
    setting.refuses(reason, wait=9)
    setting.clock.advance(8.9)
    assert not setting.leg.written()
    assert not setting.east.opening
    setting.clock.advance(0.1)
    assert setting.leg.written().startswith(b"a NO [")
    assert setting.east.opening


def test_whoever_has_to_wait_may_leave():
    """A client that goes meanwhile leaves nothing behind; nor does one whose time to log in is over."""
    for end in ("lost", "late"):
        setting = Setting(login_timeout=60)
        setting.hears(b"a LOGIN bob secret\r\n")
        setting.refuses(wait=100)
        if end == "lost":
            setting.session.lost("gone")
        setting.clock.advance(60)
        assert setting.session.state is State.OVER
        assert not setting.timers()


def test_whoever_refuses_may_send_the_client_away():
    """A refusal that is final ends the connection, as the last of too many failed logins does."""
    setting = Setting(failed_logins=0)
    setting.hears(b"a LOGIN bob x\r\nb LOGIN bob y\r\n")
    setting.refuses(final=True)
    setting.clock.advance(0)
    assert setting.leg.written() == b"a " + NO + b"* BYE Too many failed logins.\r\n"
    assert setting.leg.closed == 1
    assert len(setting.east.calls) == 1


def test_failed_logins_are_bounded():
    """After the last failed login that is allowed comes BYE."""
    setting = Setting(failed_logins=2)
    setting.hears(b"a LOGIN bob x\r\nb LOGIN bob y\r\nc LOGIN bob z\r\n")
    for _ in range(2):
        setting.refuses()
        setting.clock.advance(0)
    assert setting.leg.written() == b"a " + NO + b"b " + NO + b"* BYE Too many failed logins.\r\n"
    assert setting.leg.closed == 1
    assert len(setting.east.calls) == 2


def test_many_pipelined_failures_do_not_recurse():
    """A hundred logins in one segment, all of unknown users, are refused one after the other."""
    setting = Setting(failed_logins=0)
    setting.hears(b"a LOGIN nobody x\r\n" * 100)
    for _ in range(100):
        setting.clock.advance(0)
    assert setting.leg.written() == b"a " + NO * 1 + (b"a " + NO) * 99


def test_time_to_log_in_is_bounded():
    """Who has not logged in in time gets BYE, whatever it has sent meanwhile."""
    setting = Setting(login_timeout=60)
    for _ in range(59):
        setting.clock.advance(1)
        setting.hears(b"a")
    assert not setting.leg.closed
    setting.clock.advance(1)
    assert setting.leg.written() == b"* BYE No login in time.\r\n"
    assert setting.leg.closed == 1


def test_the_login_timer_does_not_touch_a_joined_session():
    """Once joined, the time to log in is over."""
    setting = Setting(login_timeout=60)
    setting.hears(b"a LOGIN bob secret\r\n")
    setting.opens()
    setting.clock.advance(61)
    assert setting.session.state is State.JOINED
    assert not setting.clock.getDelayedCalls()


def test_a_client_that_leaves_during_the_login_cancels_it(events):
    """The backend's connection does not outlive the client's."""
    setting = Setting()
    setting.hears(b"a LOGIN bob secret\r\n")
    setting.session.lost("the client closed the connection")
    assert setting.east.cancelled == 1
    assert setting.session.state is State.OVER
    assert setting.timers() == []
    assert ended(events)[0]["reason"] == "the client closed the connection while logging in at the backend"


def test_a_client_that_shuts_its_side_during_the_login_still_gets_its_answer():
    """A half-close while a login is under way does not end it; with nothing under way it does."""
    setting = Setting()
    setting.hears(b"a LOGIN bob secret\r\nb LOGOUT\r\n")
    setting.session.half_closed()
    assert setting.session.state is State.OPENING
    setting.opens()
    assert len(setting.joined) == 1
    setting = Setting()
    setting.session.half_closed()
    assert setting.session.state is State.OVER


def test_a_client_that_leaves_while_it_waits_for_a_refusal():
    """Nothing is left of a session whose client does not wait for its refusal."""
    setting = Setting(failure_delay=2.0)
    setting.hears(b"a LOGIN nobody secret\r\n")
    setting.session.lost("gone")
    assert setting.timers() == []


def test_leaving_a_joined_session_ends_the_splice():
    """A session that mailroute ends takes both connections with it."""
    setting = Setting()
    setting.hears(b"a LOGIN bob secret\r\n")
    setting.opens()
    setting.session.leave(Farewell.SHUTDOWN)
    assert setting.joined[0][5].cancelled
    assert setting.leg.written() == b""
    assert setting.session.state is State.OVER


def test_leaving_twice_changes_nothing(events):
    """A session ends once, and leaves one line."""
    setting = Setting()
    setting.session.leave(Farewell.SHUTDOWN)
    setting.session.leave(Farewell.SHUTDOWN)
    setting.session.lost("again")
    assert setting.leg.written() == b"* BYE [UNAVAILABLE] Shutting down. Connect again.\r\n"
    assert len(ended(events)) == 1


def test_without_a_check_only_the_backend_lets_in():
    """A backend that does not check passwords is not opened for who has not been checked here."""
    for method in (Method.MASTER, Method.NONE):
        setting = Setting(method=method)
        setting.hears(b"a LOGIN bob secret\r\n")
        setting.clock.advance(0)
        assert setting.leg.written().startswith(b"a NO [SERVERBUG]")
        assert not setting.east.calls


def test_a_check_comes_first():
    """With a checker, only who passes is routed, by the name that the checker gives."""
    asked = []

    def check(user, password):
        asked.append((user, password))
        if password == b"right":
            return succeed("bob")
        return fail(LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "no")))

    setting = Setting(check=check, method=Method.MASTER)
    setting.hears(b"a LOGIN BOB wrong\r\n")
    setting.clock.advance(0)
    assert setting.leg.written() == b"a " + NO
    assert not setting.router.asked
    setting.hears(b"b LOGIN BOB right\r\n")
    assert asked == [("BOB", b"wrong"), ("BOB", b"right")]
    assert setting.east.calls[0].user == "bob"


@pytest.mark.parametrize(
    ("login", "code"),
    [
        (b"a AUTHENTICATE PLAIN Ym9iAHJvb3QAc2VjcmV0\r\n", b"a NO [AUTHORIZATIONFAILED]"),
        (b"a AUTHENTICATE XOAUTH2 dXNlcj1iAWF1dGg9QmVhcmVyIHQBAQ==\r\n", b"a NO [SERVERBUG]"),
    ],
)
def test_a_check_is_for_ones_own_password(login, code):
    """A checker proves passwords: neither the right to another's account, nor a token."""
    setting = Setting(
        check=lambda user, _: succeed(user),
        terms=DialogTerms(mechanisms=("PLAIN", "XOAUTH2")),
    )
    setting.hears(login)
    setting.clock.advance(0)
    assert setting.leg.written().startswith(code)
    assert not setting.router.asked


def test_checked_but_unknown():
    """Who has proved its password and has no route is told to ask, not to type again."""
    setting = Setting(check=lambda *_: succeed("nobody"))
    setting.hears(b"a LOGIN bob secret\r\n")
    setting.clock.advance(0)
    assert setting.leg.written().startswith(b"a NO [CONTACTADMIN]")


@pytest.mark.parametrize("later", [True, False])
def test_a_router_may_refuse_or_answer_later(later):
    """A router's Deferred and its refusals both count."""

    class Router:
        def route(self, lookup):
            if lookup.user == "bob":
                return succeed(Route("east")) if later else Route("east")
            error = LoginRefused(Refusal(Reason.EXPIRED, "x"))
            if later:
                return fail(error)
            raise error

    setting = Setting(router=Router())
    setting.hears(b"a LOGIN eve secret\r\n")
    setting.clock.advance(0)
    assert setting.leg.written().startswith(b"a NO [EXPIRED]")
    setting.hears(b"b LOGIN bob secret\r\n")
    assert setting.east.calls


def test_an_unknown_backend_is_a_misconfiguration():
    """A route to nowhere refuses that login and names the backend in the log."""
    setting = Setting(router=FakeRouter({"bob": Route("mars")}))
    setting.hears(b"a LOGIN bob secret\r\n")
    setting.clock.advance(0)
    assert setting.leg.written().startswith(b"a NO [SERVERBUG]")


def test_a_fault_of_ours_ends_the_session_and_shows_nothing(events):
    """An exception of ours ends the session with a plain BYE; log and client see no secret."""

    class Broken:
        def route(self, lookup):
            del lookup
            return broken

    broken = Deferred()
    setting = Setting(router=Broken())
    setting.hears(b"a LOGIN bob s3cret\r\n")
    broken.errback(RuntimeError("a defect"))
    assert setting.leg.written() == b"* BYE [SERVERBUG] Internal error.\r\n"
    assert setting.leg.closed == 1
    failures = [event for event in events if "log_failure" in event]
    assert len(failures) == 1
    assert "s3cret" not in failures[0]["log_failure"].getTraceback()
    assert "s3cret" not in repr(events)


def test_no_event_holds_a_secret(events):
    """Neither a refused nor a successful login leaves its password in any event."""
    setting = Setting()
    setting.hears(b"a LOGIN bob s3cret\r\n")
    setting.refuses()
    setting.clock.advance(0)
    setting.hears(b"b LOGIN nobody s3cret\r\n")
    setting.clock.advance(0)
    setting.hears(b"c LOGIN bob s3cret\r\n")
    setting.opens()
    setting.joined[0][4].parted(Result(1, 2, "done"))
    assert len(events) == 3
    assert "s3cret" not in repr(events)
    assert "s3cret" not in repr(setting.east.calls)


def test_a_name_cannot_forge_a_log_line(events):
    """A user name with spaces, line ends or fields of its own stays one word in the log."""
    setting = Setting()
    setting.hears(b'a LOGIN "bob ended: user=eve" x\r\n')
    setting.clock.advance(0)
    assert events[0]["user"] == "bob\\u0020ended:\\u0020user=eve"


def test_a_dialog_without_its_backend_seam_gets_a_plain_ok():
    """A login that says nothing in the protocol's own words still gets an answer."""
    setting = Setting()
    setting.hears(b"a LOGIN bob secret\r\n")
    setting.east.opening.popleft().callback(opened("backend's"))
    assert setting.joined[0][2] == b"a OK Logged in.\r\n"


def test_unknown_user_and_wrong_token_look_the_same():
    """With OAuth, too, an unknown user is told what a known one with a bad token is told."""
    said = []
    for user in (b"bob", b"nobody"):
        setting = Setting(terms=DialogTerms(mechanisms=("XOAUTH2",)))
        token = base64.b64encode(b"user=" + user + b"\1auth=Bearer t\1\1")
        setting.hears(b"a AUTHENTICATE XOAUTH2 " + token + b"\r\n")
        if user == b"bob":
            setting.refuses()
        setting.clock.advance(0)
        said.append(setting.leg.written())
        setting.hears(b"\r\n")
        said.append(setting.leg.written())
    assert said[:2] == said[2:]
    assert said[0].startswith(b"+ ")
    assert said[1] == b"a " + NO


class Tokens:
    """Takes one token, which says by itself whose it is."""

    proofs = frozenset({Proof.TOKEN})

    def authenticate(self, lookup):
        assert lookup.user in ("", "bob")
        if b"Bearer right" in lookup.credentials.secret:
            return "bob"
        raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "no", challenge=b'{"status":"x"}'))


def test_a_token_that_is_checked_here():
    """A client need not name itself beside its token; one whose token is wrong is told why, and may go on."""
    setting = Setting(terms=DialogTerms(mechanisms=("OAUTHBEARER",)), method=Method.MASTER)
    setting.session._door = evolve(setting.door, authenticator=AuthenticatorChain([Link("t", Tokens())]))
    setting.hears(b"a AUTHENTICATE OAUTHBEARER " + base64.b64encode(b"n,,\1auth=Bearer wrong\1\1") + b"\r\n")
    setting.clock.advance(0)
    assert setting.leg.written() == b"+ " + base64.b64encode(b'{"status":"x"}') + b"\r\n"
    setting.hears(b"AQ==\r\n")
    assert setting.leg.written() == b"a " + NO
    setting.hears(b"b AUTHENTICATE OAUTHBEARER " + base64.b64encode(b"n,,\1auth=Bearer right\1\1") + b"\r\n")
    assert setting.router.asked[-1].user == "bob"
    assert len(setting.east.calls) == 1


def test_a_client_without_a_name_needs_a_proof_that_has_one():
    """Only what says by itself whose it is may come without a name, and only where it is checked here."""
    setting = Setting(terms=DialogTerms(mechanisms=("OAUTHBEARER",)))
    setting.hears(b"a AUTHENTICATE OAUTHBEARER " + base64.b64encode(b"n,,\1auth=Bearer right\1\1") + b"\r\n")
    setting.clock.advance(0)
    assert setting.leg.written().startswith(b"+ ")
    assert not setting.router.asked


KEYS = make_keys("sha256", b"pencil", b"saltsalt", 10)


@implementer(IKeyholder)
class Keyholder:
    """Knows the keys of bob."""

    proofs = offers = frozenset({Proof.SCRAM_SHA_256})

    def __init__(self):
        self.error = None

    async def keys(self, lookup):
        if self.error:
            raise self.error
        return KEYS if lookup.user == "bob" else None

    def authenticate(self, lookup):
        if lookup.user != "bob":
            return None
        if proves("SCRAM-SHA-256", KEYS, lookup.credentials.secret):
            return "bob"
        raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "no"))


class ScramSetting(Setting):
    """A session of a listener that offers SCRAM."""

    def __init__(self, **changes):
        self.keyholder = Keyholder()
        terms = DialogTerms(mechanisms=("SCRAM-SHA-256",), bound=("SCRAM-SHA-256-PLUS",))
        super().__init__(terms=terms, method=Method.MASTER, **changes)
        authenticator = AuthenticatorChain([Link("k", self.keyholder)], b"salt")
        self.session._door = evolve(self.door, authenticator=authenticator)

    def challenged(self):
        self.clock.advance(0)
        written = self.leg.written()
        assert written.startswith(b"+ ")
        return base64.b64decode(written[2:])

    def begins(self, client, user=b"bob"):
        self.hears(b"a AUTHENTICATE SCRAM-SHA-256 " + base64.b64encode(client.first(user)) + b"\r\n")
        return self.challenged()


def test_a_client_that_knows_its_password_gets_in():
    """The password never crosses the wire, and its user is routed like any other."""
    setting, client = ScramSetting(), ScramClient("SCRAM-SHA-256")
    challenge = setting.begins(client)
    assert b",i=10" in challenge
    setting.hears(base64.b64encode(client.final(challenge)) + b"\r\n")
    assert setting.challenged().startswith(b"v=")
    setting.hears(b"\r\n")
    assert setting.router.asked[-1].user == "bob"
    setting.opens()
    assert len(setting.joined) == 1


def test_an_unknown_user_and_a_wrong_proof_look_the_same():
    """An unknown user is given keys, the same ones each time, and fails where a wrong password does."""
    said = []
    for user, password in ((b"bob", b"pen"), (b"eve", b"pencil"), (b"eve", b"pencil")):
        setting, client = ScramSetting(failure_delay=2.0), ScramClient("SCRAM-SHA-256", password)
        challenge = setting.begins(client, user)
        setting.hears(base64.b64encode(client.final(challenge)) + b"\r\n")
        setting.clock.advance(1.9)
        assert setting.leg.written() == b""
        setting.clock.advance(0.2)
        said.append((challenge.partition(b",s=")[2], setting.leg.written()))
        assert not setting.router.asked
    assert said[0][1] == said[1][1] == b"a " + NO
    assert said[1] == said[2]


def test_keys_that_cannot_be_had_are_no_wrong_password():
    """Where nobody can tell the keys now, the client is told to come again."""
    setting = ScramSetting()
    setting.keyholder.error = LoginRefused(Refusal(Reason.UNAVAILABLE, "away"))
    first = base64.b64encode(ScramClient("SCRAM-SHA-256").first())
    setting.hears(b"a AUTHENTICATE SCRAM-SHA-256 " + first + b"\r\n")
    setting.clock.advance(0)
    assert setting.leg.written().startswith(b"a NO [UNAVAILABLE]")


@pytest.mark.parametrize("name", [b"b\xffb", b"bob\0"])
def test_no_keys_for_what_is_no_name(name):
    """A name that nobody can have fails like a wrong password, and nobody is asked about it."""
    setting = ScramSetting()
    first = base64.b64encode(b"n,,n=" + name + b",r=0123456789")
    setting.hears(b"a AUTHENTICATE SCRAM-SHA-256 " + first + b"\r\n")
    setting.clock.advance(0)
    assert setting.leg.written() == b"a " + NO


def test_many_pipelined_exchanges_do_not_recurse():
    """A hundred exchanges in one segment, each given up, are run one after the other."""
    setting = ScramSetting()
    setting.session._dialog._terms = evolve(setting.session._dialog._terms, bad_commands=0)
    first = base64.b64encode(ScramClient("SCRAM-SHA-256").first())
    setting.hears((b"a AUTHENTICATE SCRAM-SHA-256 " + first + b"\r\n*\r\n") * 100)
    for _ in range(100):
        setting.clock.advance(0)
    assert setting.leg.written().count(b"a BAD Authentication aborted.") == 100


def test_a_client_that_leaves_while_its_keys_are_looked_up():
    """Nothing is left of a session whose client does not wait for its challenge."""
    setting = ScramSetting()
    first = base64.b64encode(ScramClient("SCRAM-SHA-256").first())
    setting.hears(b"a AUTHENTICATE SCRAM-SHA-256 " + first + b"\r\n")
    assert setting.session.state is State.FETCHING
    setting.session.lost("gone")
    assert setting.timers() == []


def test_what_is_bound_to_the_channel_is_offered_there():
    """A connection with channel binding has the mechanisms for it, and others do not."""
    for binding in (None, b"b" * 32):
        setting = ScramSetting()
        setting.leg.binding = binding
        setting.session.secured()
        setting.hears(b"a CAPABILITY\r\n")
        assert (b"AUTH=SCRAM-SHA-256-PLUS" in setting.leg.written()) is (binding is not None)


# --- listeners that name their backend ---------------------------------------

TCP = protocol_named("tcp")


def test_a_listener_may_send_everybody_to_one_backend(events):
    """With a backend of its own, a listener asks no router; who is calling is still checked and logged."""
    setting = Setting(route=Route("east"), router=FakeRouter({}), check=lambda user, _: succeed(user.upper()))
    setting.hears(b"a LOGIN nobody@EXAMPLE.org secret\r\n")
    assert not setting.router.asked
    assert setting.east.calls[0].user == "NOBODY@EXAMPLE.ORG"
    setting.opens()
    setting.session.leave(Farewell.SHUTDOWN)
    assert "user=NOBODY@EXAMPLE.ORG " in formatEvent(ended(events)[0])


@pytest.mark.parametrize("method", list(Method))
def test_a_protocol_without_logins_is_joined_as_nobody(events, method):
    """Its session has no user, asks no router, and dials at once, however the backend's users log in."""
    setting = Setting(protocol=TCP, route=Route("east"), router=FakeRouter({}), method=method)
    assert not setting.router.asked
    order = setting.east.calls[0]
    credentials, user, client, seam = order.credentials, order.user, order.client, order.seam
    assert credentials is NOBODY
    assert (user, client, seam) == ("", setting.leg.client(), None)
    setting.hears(b"first")
    assert setting.leg.paused
    setting.east.opening.popleft().callback(opened("backend's", rest=b"hello"))
    assert setting.joined[0][:4] == ("client's", "backend's", b"hello", b"first")
    setting.session.leave(Farewell.SHUTDOWN)
    assert "user=- " in formatEvent(ended(events)[0])
    assert not setting.timers()


@pytest.mark.parametrize("reason", list(Reason))
def test_a_protocol_without_logins_ends_with_its_first_failure(events, reason):
    """Neither a delay nor a count of failures holds it: the session ends, with the refusal's reason."""
    setting = Setting(protocol=TCP, route=Route("east"), failed_logins=1)
    setting.refuses(reason)
    setting.clock.advance(0)
    assert setting.session.state is State.OVER
    assert setting.leg.written() == b""
    assert setting.leg.closed == 1
    (event,) = ended(events)
    assert formatEvent(event).endswith(f"reason={reason.value}")
    assert not setting.timers()


def test_a_checker_lets_nobody_in_unseen():
    """Where passwords are to be checked, a client that shows none is not let through."""
    setting = Setting(protocol=TCP, route=Route("east"), check=lambda user, _: succeed(user))
    setting.clock.advance(0)
    assert not setting.east.calls
    assert setting.session.state is State.OVER
