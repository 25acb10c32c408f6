"""The registry of route sources, the pattern and the default, and the chain that asks them in order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from asking import BROKEN_NAMES, HOSTILE_NAMES
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, execute, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer, verify

from mailroute import routers
from mailroute.events import Client, LoginRefused, Lookup, Reason, Refusal, Route
from mailroute.interfaces import IRouter, IRouteSource
from mailroute.routers import BadAnswer, BadOption, Chain, Forgiving, SourceContext

CLIENT = Client("session", None, None)
EAST, WEST = Route("east"), Route("west")


def context(folder: Path = Path()) -> SourceContext:
    return SourceContext(folder, frozenset({"east", "west"}), str.lower, Clock(), execute)


def made(source: str, **options: object) -> IRouter:
    # "as" is a word of Python's own.
    return routers.source(source).router({key.rstrip("_"): options[key] for key in options}, context())


def ask(router: IRouter, user: str = "alice") -> Any:
    return router.route(Lookup(user, "imap", CLIENT))


def outcome(answer: Any) -> Any:
    """Return what an answer came to, sync or not; a refusal is returned, not raised."""
    results: list[Any] = []
    if not isinstance(answer, Deferred):
        return answer
    answer.addErrback(lambda failure: failure.value).addCallback(results.append)
    return results[0]


@implementer(IRouter)
class Says:
    """Answers with what it is told: returned, or raised if it is an exception."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked = 0

    def route(self, lookup: Lookup) -> Any:
        assert lookup.user == "alice"
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


# --- the registry -----------------------------------------------------------------


def test_the_built_in_sources_are_known() -> None:
    """The sources that the documentation names are there, and provide what they promise."""
    assert routers.known()[:4] == ("table", "pattern", "default", "hash")
    for name in routers.known():
        verify.verifyObject(IRouteSource, routers.source(name))


def test_an_unknown_source_is_told_with_the_known_ones() -> None:
    """Whoever names a source that is not there reads which there are, or which was probably meant."""
    with pytest.raises(routers.UnknownSource, match=r'"phone book"; known: .*, pattern, .*table'):
        routers.source("phone book")
    with pytest.raises(routers.UnknownSource, match='did you mean "pattern"'):
        routers.source("patern")


def test_a_plugin_is_a_source_and_hides_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party adds a source as a Twisted plugin, and cannot replace a built-in one."""

    @implementer(IRouteSource)
    class Plugin:
        def __init__(self, name: str) -> None:
            self.name = name

        def router(self, options: Mapping[str, object], context: object) -> IRouter:
            raise NotImplementedError

    ours = routers.known()
    own, table = Plugin("phone book"), Plugin("table")
    monkeypatch.setattr("mailroute.sources.registry.getPlugins", lambda _: [table, own])
    assert routers.source("phone book") is own
    assert routers.source("table") is not table
    assert routers.known() == (*ours, "phone book")


# --- default and pattern ------------------------------------------------------------


def test_the_default_knows_everybody() -> None:
    """Whoever comes lives at the default's backend."""
    router = made("default", backend="east")
    verify.verifyObject(IRouter, router)
    assert ask(router) == EAST


def test_a_pattern_must_match_the_whole_name() -> None:
    """A pattern that matches only a part of a name does not claim the user."""
    router = made("pattern", match="a.*e", backend="east")
    verify.verifyObject(IRouter, router)
    assert ask(router, "alice") == EAST
    assert ask(router, "alice@example.org") is None
    assert ask(router, "malice") is None


def test_a_pattern_renames() -> None:
    """The name at the backend is made from the groups; one that took no part in the match is empty."""
    router = made("pattern", match=r"(?P<user>\w+)(\+\w+)?@(.+)", backend="west", as_=r"\3!\g<user>\2")
    assert ask(router, "bob@example.org") == Route("west", "example.org!bob")
    assert ask(router, "bob+x@example.org") == Route("west", "example.org!bob+x")


@pytest.mark.parametrize(
    ("template", "user"), [(r"\2", "alice"), (r"\1\n", "alice"), (r"\1", "a\x85b"), (r"\1", "a\u2028")]
)
def test_a_pattern_makes_no_name_that_is_none(template: str, user: str) -> None:
    """A name that is empty or holds control characters never gets to a backend."""
    router = made("pattern", match=r"([^!]+)(!.*)?", backend="west", as_=template)
    with pytest.raises(LoginRefused) as refused:
        ask(router, user)
    assert refused.value.refusal.reason is Reason.MISCONFIGURED


@pytest.mark.parametrize(
    ("source", "options", "key", "message"),
    [
        ("default", {}, "backend", "missing"),
        ("default", {"backend": 1}, "backend", "must be a string"),
        ("default", {"backend": ""}, "backend", "must be a string with something in it"),
        ("default", {"backend": "wset"}, "backend", 'did you mean "west"'),
        ("default", {"backend": "east", "bakend": "x"}, "bakend", 'did you mean "backend"'),
        ("pattern", {"backend": "east"}, "match", "missing"),
        ("pattern", {"backend": "east", "match": "("}, "match", "no regular expression"),
        ("pattern", {"match": "x"}, "backend", "missing"),
        ("pattern", {"match": "x", "backend": "north"}, "backend", r"there is no \[backend.north\]"),
        ("pattern", {"match": "(x)", "backend": "east", "as_": r"\2"}, "as", "invalid group reference"),
        ("pattern", {"match": "(x)", "backend": "east", "as_": r"\g<user>"}, "as", "unknown group name"),
        ("pattern", {"match": "(x)", "backend": "east", "as_": "\\"}, "as", "bad escape"),
        ("pattern", {"match": "(x)", "backend": "east", "as_": ""}, "as", "must be a string with something"),
        ("table", {}, "file", "missing"),
        ("table", {"file": "nowhere.txt"}, "file", "cannot read .*nowhere.txt: No such file"),
        ("table", {"file": "nowhere.txt", "path": "x"}, "path", "unknown key"),
    ],
)
def test_a_wrong_option_is_named(source: str, options: dict[str, object], key: str, message: str) -> None:
    """What is wrong with a block is found when it is read, with the key that is to blame."""
    with pytest.raises(BadOption, match=message) as bad:
        made(source, **options)
    assert bad.value.key == key


# --- the chain ------------------------------------------------------------------


def chain(*answers: object) -> tuple[Chain, list[Says]]:
    says = [Says(answer) for answer in answers]
    labelled = [(f"route[{number}]", router) for number, router in enumerate(says, 1)]
    return Chain(labelled, frozenset({"east", "west"})), says


def test_the_first_that_knows_wins() -> None:
    """Routers are asked in order, and none behind the one that knows."""
    router, says = chain(None, EAST, WEST)
    verify.verifyObject(IRouter, router)
    assert ask(router) is EAST
    assert [each.asked for each in says] == [1, 1, 0]


def test_nobody_knows() -> None:
    """A user whom no router knows is nobody's, whether they answer at once or later."""
    assert ask(chain()[0]) is None
    assert ask(chain(None, None)[0]) is None
    assert outcome(ask(chain(None, succeed(None), None)[0])) is None


def test_no_deferred_is_made_for_answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hot path costs no Deferred: a Route or None comes back as such."""
    router, _ = chain(None, EAST)
    monkeypatch.setattr(Deferred, "__init__", lambda *_: pytest.fail("a Deferred was made"))
    assert ask(router) is EAST


def test_an_answer_may_come_later() -> None:
    """While a router thinks the next is not asked; it is when the first does not know."""
    waiting: Deferred[Any] = Deferred()
    router, says = chain(waiting, succeed(None), WEST, EAST)
    answer = ask(router)
    assert [each.asked for each in says] == [1, 0, 0, 0]
    waiting.callback(None)
    assert outcome(answer) is WEST
    assert [each.asked for each in says] == [1, 1, 1, 0]


def test_a_router_may_be_a_coroutine() -> None:
    """A router of a user's own may be written with async def."""

    async def later() -> Route:
        return WEST

    assert outcome(ask(chain(None, later())[0])) is WEST


REFUSED = LoginRefused(Refusal(Reason.CONTACT_ADMIN, "closed"))


@pytest.mark.parametrize("answer", [REFUSED, fail(REFUSED)], ids=["raised", "failed"])
def test_a_refusal_ends_the_search(answer: object) -> None:
    """A refusal is passed on as it is: no later router is asked, nothing is logged."""
    router, says = chain(answer, EAST)
    with capturedLogs() as logs:
        try:
            found = outcome(ask(router))
        except LoginRefused as error:
            found = error
    assert found is REFUSED
    assert says[1].asked == 0
    assert not logs


@pytest.mark.parametrize("late", [False, True], ids=["raised", "failed"])
def test_a_fault_ends_the_search_and_is_logged_with_its_source(late: bool) -> None:
    """A router that breaks means "not now", never "not here"; the log names it."""
    error = OSError("no route to the directory")
    router, says = chain(None, fail(error) if late else error, EAST)
    with capturedLogs() as logs:
        try:
            found = outcome(ask(router))
        except LoginRefused as refused:
            found = refused
    assert isinstance(found, LoginRefused)
    assert found.refusal == Refusal(Reason.UNAVAILABLE, "route[2] failed: OSError")
    assert says[2].asked == 0
    [said] = [formatEvent(event) for event in logs]
    assert said.startswith("route[2] failed: OSError")


@implementer(IRouter)
class Careless:
    """Fails with a password in its hands, and says it; as one does who writes against a database."""

    async def route(self, lookup: Lookup) -> Route:
        password = f"s3cret of {lookup.user}"
        raise ValueError(f"postgresql://mailroute:{password}@db refused {password}")


@pytest.mark.parametrize("forgiven", [False, True])
def test_a_fault_is_told_by_its_place_and_not_by_its_words(forgiven: bool) -> None:
    """The log says what was raised and where, and holds nothing of what was said or at hand."""
    router = Forgiving("route[1]", Careless()) if forgiven else Careless()
    with capturedLogs() as logs:
        outcome(Chain([("route[1]", router)], frozenset()).route(Lookup("alice", "imap", CLIENT)))
    [said] = [formatEvent(event) for event in logs]
    assert re.search(r"ValueError in \S*test_routers\.py:\d+ \(route\) in ", said)
    assert "s3cret" not in repr(logs)
    assert not any(isinstance(value, Failure | Exception) for event in logs for value in event.values())


def test_a_cancelled_question_is_nobodys_fault() -> None:
    """A client that goes away during the lookup cancels it, and the log stays quiet."""
    cancelled: list[object] = []
    router, says = chain(Deferred(cancelled.append), EAST)
    with capturedLogs() as logs:
        answer = ask(router)
        answer.cancel()
        assert isinstance(outcome(answer), CancelledError)
    assert len(cancelled) == 1
    assert says[1].asked == 0
    assert not logs


@pytest.mark.parametrize("late", [False, True], ids=["now", "later"])
@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (Route("north"), 'route[1] gave nonsense: the backend "north" does not exist'),
        ("east", "route[1] gave nonsense: str instead of a Route"),
    ],
)
def test_an_answer_that_leads_nowhere_is_a_misconfiguration(late: bool, answer: object, detail: str) -> None:
    """A route to a backend that does not exist is refused, with the source's and the backend's names."""
    router, says = chain(succeed(answer) if late else answer, EAST)
    try:
        found = outcome(ask(router))
    except LoginRefused as error:
        found = error
    assert isinstance(found, LoginRefused)
    assert found.refusal == Refusal(Reason.MISCONFIGURED, detail)
    assert says[1].asked == 0


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (OSError("down"), True),
        (LoginRefused(Refusal(Reason.UNAVAILABLE, "come later")), True),
        (LoginRefused(Refusal(Reason.CONTACT_ADMIN, "disabled")), False),
        (LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "wrong")), False),
        (BadAnswer("nonsense"), False),
    ],
)
def test_a_source_that_cannot_tell_may_be_passed_over(answer: Exception, passes: bool, later: bool) -> None:
    """With on_error = "next" a failure, or "later", asks the next; a refusal or nonsense never does."""
    first = Forgiving("route[1]", Says(fail(answer) if later else answer))
    chain = Chain([("route[1]", first), ("route[2]", Says(EAST))], frozenset({"east"}))
    try:
        found = outcome(chain.route(Lookup("alice", "imap", CLIENT)))
    except LoginRefused as refused:
        found = refused
    assert (found == EAST) is passes
    assert passes or isinstance(found, LoginRefused)


FILES = {
    "mailroute": ("table", "alice east"),
    "perdition": ("table", "alice:east"),
    "perdition-regex": ("table", "alice: east"),
    "nginx": ("table", "alice east;"),
    "passwd-file": ("passwd-file", "alice:{PLAIN}x:::::: host=east"),
}


@pytest.mark.parametrize("user", [*HOSTILE_NAMES, *BROKEN_NAMES])
@pytest.mark.parametrize("kind", FILES)
def test_no_name_is_more_than_a_name_to_a_file(tmp_path: Path, kind: str, user: str) -> None:
    """Whatever a name holds, it is nobody's in a file that does not have it."""
    source, line = FILES[kind]
    (tmp_path / "file").write_text(line + "\n")
    options = {"file": "file"} | ({"format": kind} if source == "table" else {})
    router = routers.source(source).router(options, context(tmp_path))
    assert ask(router, user) is None
    assert ask(router, "alice").backend == "east"


@pytest.mark.parametrize("user", HOSTILE_NAMES)
def test_no_name_is_more_than_a_name_to_a_pattern(user: str) -> None:
    """What a name holds is put into another name as it is, and a name has one home whatever it holds."""
    renamed = ask(made("pattern", match="(?P<user>.*)", backend="east", as_=r"\g<user>"), user)
    assert renamed in (Route("east"), Route("east", user))
    spread = made("hash", backends=["east", "west"])
    assert ask(spread, user) == ask(spread, user)


def test_a_router_that_is_passed_over_runs() -> None:
    """A source that has to run does so inside what forgives it."""

    class Running(Service, Says):
        pass

    inner = Running(EAST)
    Forgiving("route[1]", inner).startService()
    assert inner.running
