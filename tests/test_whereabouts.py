"""Where an account lives, for a person who asks."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import pytest_twisted
from attrs import evolve
from pydantic import TypeAdapter
from twisted.application.service import Service
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zope.interface import implementer

from mailroute import config, whereabouts
from mailroute.events import Change, Credentials, LoginRefused, Method, Reason, Refusal, Route
from mailroute.interfaces import IAuthenticator
from mailroute.proofs import Proof
from mailroute.routers import BadAnswer
from mailroute.testing import FakeRouter
from mailroute.whereabouts import Asked, CannotAsk, Place, Whereabouts

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "route.schema.json").read_text(encoding="utf-8"))

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


def listener(protocol, **keys):
    return {"protocol": protocol, "endpoint": "tcp:0", "security": "none", **keys}


USUAL = (listener("imap"), listener("pop3"))


async def find(*routers, user=b"Bob@Example.ORG", protocol="imap", authenticate=None, listen=USUAL, **more):
    parts = {} if authenticate is None else {"authenticate": authenticate}
    settings = config.build(reactor, listen=list(listen), backend=BACKENDS, route=list(routers), **parts)
    found = await whereabouts.find(settings, user, protocol, reactor, **more)
    jsonschema.validate(json.loads(json.dumps(found.as_json())), SCHEMA)
    return found


def test_the_schema_is_that_of_the_answer():
    """docs/route.schema.json describes the answer that there is, with every field and what it means."""
    assert TypeAdapter(Whereabouts).json_schema(mode="serialization") == SCHEMA


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


@implementer(IAuthenticator)
class Checks:
    """Would check passwords, and is never asked here."""

    proofs = frozenset({Proof.PASSWORD})

    def authenticate(self, lookup):
        raise AssertionError(lookup.user)


UNCHECKED = [
    Route("east", password=b"s3cret"),
    Route("east", change=Change(login=Method.NONE)),
    Route("west", None, ("east",), b"s3cret"),
]


@pytest.mark.parametrize("route", UNCHECKED)
@pytest_twisted.ensureDeferred
async def test_what_nobody_checks_is_no_way_in(route):
    """Where a session would not let in whoever says that name, no login is promised."""
    router = Router(route)
    router.proves = True  # else the configuration is refused
    found = await find(router)
    assert found.refused.startswith(f"nobody checks passwords for {route.backend}: add an [[authenticate]]")
    assert not found.places
    found = await find(Router(evolve(route, proven=True)))
    assert (found.refused, len(found.places)) == (None, 1 + len(route.others))
    found = await find(router, authenticate=[Checks()])
    assert (found.refused, len(found.places)) == (None, 1 + len(route.others))


@pytest_twisted.ensureDeferred
async def test_a_source_that_checks_passwords_is_asked_with_one():
    """Whoever gives none is told so, beside what the source said without."""
    router = Router(None, "fresh")
    router.proves = True
    found = await find(router)
    assert found.asked[0].notes == ("asked without the password that it checks: see --password-file", "fresh")
    found = await find(router, password=b"s3cret")
    assert found.asked[0].notes == ("fresh",)


@pytest_twisted.ensureDeferred
async def test_a_listener_with_a_backend_of_its_own():
    """Where no session asks the routes, they are not asked here; where some do, the others are told."""
    router = Router(Route("west"))
    east = listener("imap", backend="east")
    told = Asked("listener imap tcp:0", "route", 0.0, ("everybody who comes there goes to east",))
    for routers in ([router], []):
        listen = [east, listener("pop3", backend=None if routers else "west")]
        found = await find(*routers, listen=listen)
        assert found.asked == (told,)
        assert [place.backend for place in found.places] == ["east"]
        assert found.refused is None
    assert not router.asked
    found = await find(router, listen=[east, listener("imap", endpoint="tcp:1")])
    assert [each.source for each in found.asked] == ["listener imap tcp:0", "route[1] (Router)"]
    assert [place.backend for place in found.places] == ["west"]
    with pytest.raises(CannotAsk, match="imap tcp:0 leads to east, imap tcp:1 leads to west"):
        await find(listen=[east, listener("imap", backend="west", endpoint="tcp:1")])


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
    router = Router(Route("east"))
    await find(router, password=b"s3cret", client="2001:db8::7", user=b"bob")
    assert router.asked[0].credentials == Credentials("PLAIN", b"bob", b"s3cret")
    assert router.asked[0].client.source.host == "2001:db8::7"


@pytest_twisted.ensureDeferred
async def test_lines_for_a_person():
    """Text says the same."""
    found = await find(Router(Route("east", others=("west",)), "fresh"))
    found = replace(found, asked=(Asked("route[1] (sql)", "route", 0.0123, ("fresh",)),))
    assert whereabouts.lines(found) == [
        "Bob@example.org (imap)",
        "  route[1] (sql): route in 12.3 ms, fresh",
        "lives at east: tcp:10.0.0.1:143, security none, identity native, login replay, as Bob@example.org",
        "or else at west: tcp:10.0.0.2:143, security none, identity native, login replay, as Bob@example.org",
    ]
