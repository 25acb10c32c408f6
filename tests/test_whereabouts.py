"""Where an account lives, for a person who asks."""

import json

import pytest
import pytest_twisted
from twisted.application.service import Service
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from mailroute import config, whereabouts
from mailroute.events import Change, Credentials, LoginRefused, Reason, Refusal, Route
from mailroute.routers import BadAnswer
from mailroute.testing import FakeRouter
from mailroute.whereabouts import Asked, CannotAsk, Place

BACKENDS = {
    "east": {"imap": "tcp:10.0.0.1:143", "security": "none"},
    "west": {"imap": "tcp:10.0.0.2:143", "pop3": "tcp:10.0.0.2:110", "security": "none"},
}


class Router(FakeRouter, Service):
    """Runs, and answers with what it is told: at once or later, or raises it."""

    def __init__(self, answer, note=""):
        super().__init__({})
        self.answer = answer
        self.note = note
        self.ran = False

    async def _later(self):
        waiting = Deferred()
        reactor.callLater(0, waiting.callback, None)
        await waiting
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def route(self, lookup):
        self.ran = self.running
        super().route(lookup)
        if self.note:
            lookup.note(self.note)
        return self._later()


async def find(*routers, user=b"Bob@Example.ORG", protocol="imap", **more):
    settings = config.build(
        reactor,
        listen=[{"protocol": name, "endpoint": "tcp:0", "security": "none"} for name in ("imap", "pop3")],
        backend=BACKENDS,
        route=list(routers),
    )
    return await whereabouts.find(settings, user, protocol, reactor, **more)


@pytest_twisted.ensureDeferred
async def test_who_was_asked_and_what_they_said():
    """Each source that was asked is named in order, its answer, notes and time; the others are not."""
    first, second, third = Router(None, "fresh"), Router(Route("east", "b2"), "from the cache"), Router(None)
    found = await find(first, second, third)
    assert [(asked.source, asked.outcome, asked.notes) for asked in found.asked] == [
        ("route[1] (Router)", "unknown", ("fresh",)),
        ("route[2] (Router)", "route", ("from the cache",)),
    ]
    assert all(0 <= asked.seconds < 60 for asked in found.asked)
    assert found.places == (Place("east", "tcp:10.0.0.1:143", "none", "native", "replay", "b2"),)
    assert found.name == "Bob@example.org"
    assert not third.asked


@pytest_twisted.ensureDeferred
async def test_sources_run_while_they_are_asked():
    """A source that has to run is started, and stopped after."""
    router = Router(None)
    await find(router)
    assert router.ran
    assert not router.running


@pytest_twisted.ensureDeferred
async def test_all_places_of_a_route():
    """Backends in order, what is otherwise than their blocks say, and with what one would log in."""
    change = Change("10.9.9.9", 1143)
    route = Route(
        "east", None, ("west",), b"s3cret", "root", proven=True, change=change, forward=(("shard", "7"),)
    )
    found = await find(Router(route))
    assert [place.endpoint for place in found.places] == ["tcp:host=10.9.9.9:port=1143"] * 2
    assert {place.login for place in found.places} == {"password of root from the route"}
    assert found.as_json()["forward"] == {"shard": "7"}
    assert "s3cret" not in json.dumps(found.as_json()) + "\n".join(whereabouts.lines(found))


@pytest.mark.parametrize(
    ("answer", "outcome", "refused", "note"),
    [
        (None, "unknown", "no route knows the user", ()),
        (LoginRefused(Refusal(Reason.CONTACT_ADMIN, "gone")), "refused", "account disabled: gone", ()),
        (
            BadAnswer("port 0"),
            "refused",
            "misconfigured: route[1] (Router) gave nonsense: port 0",
            ("port 0",),
        ),
        (
            OSError("with a s3cret"),
            "failed",
            "backend unavailable: route[1] (Router) failed: OSError",
            ("OSError",),
        ),
        (Route("east", change=Change("h", 0)), "route", None, ()),
    ],
)
@pytest_twisted.ensureDeferred
async def test_why_somebody_would_be_turned_away(answer, outcome, refused, note):
    """A refusal, nonsense and a failure are told apart; a driver's words are not shown."""
    found = await find(Router(answer))
    assert [(asked.outcome, asked.notes) for asked in found.asked] == [(outcome, note)]
    assert found.refused == refused


@pytest_twisted.ensureDeferred
async def test_a_route_that_leads_nowhere():
    """A protocol that the backend does not serve, and a change that cannot be, are said."""
    found = await find(Router(Route("east")), protocol="pop3")
    assert found.refused == "the route leads nowhere: backend east does not serve pop3"
    found = await find(Router(Route("east", others=("north",))))
    assert found.refused == 'the route leads nowhere: there is no backend "north"'


@pytest_twisted.ensureDeferred
async def test_questions_that_make_no_sense():
    """A name that is none, and a protocol that no listener speaks, are told from an unknown user."""
    with pytest.raises(CannotAsk, match="not a user name"):
        await find(Router(None), user=b"bob\n")
    with pytest.raises(CannotAsk, match='no listener speaks "smtp"; there are listeners for imap, pop3'):
        await find(Router(None), protocol="smtp")


@pytest_twisted.ensureDeferred
async def test_a_source_that_checks_passwords_gets_one():
    """The credentials that are given are in the question."""
    credentials = Credentials("PLAIN", b"bob", b"s3cret")
    router = Router(Route("east"))
    await find(router, credentials=credentials)
    assert router.asked[0].credentials is credentials


@pytest_twisted.ensureDeferred
async def test_lines_for_a_person():
    """Text says the same."""
    found = await find(Router(Route("east", others=("west",)), "fresh"))
    found = whereabouts.evolve(found, asked=(Asked("route[1] (sql)", "route", 0.0123, ("fresh",)),))
    assert whereabouts.lines(found) == [
        "Bob@example.org (imap)",
        "  route[1] (sql): route in 12.3 ms, fresh",
        "lives at east: tcp:10.0.0.1:143, security none, identity native, login replay, as Bob@example.org",
        "or else at west: tcp:10.0.0.2:143, security none, identity native, login replay, as Bob@example.org",
    ]
