"""Where routes lead: several backends in order, changed ones, passwords of the route's own."""

import pytest
from attrs import evolve
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from mailroute.dialogs import find
from mailroute.events import (
    NOBODY,
    Attempt,
    Change,
    Credentials,
    Identity,
    LoginOrder,
    LoginRefused,
    Method,
    Reason,
    Refusal,
    Route,
)
from mailroute.places import AVOIDED, PATIENCE, Places, lets_in_anybody, open_for, order_for
from mailroute.testing import CLIENT, FakeBackend, opened

IMAP = find("imap")
BOB = Credentials("PLAIN", b"bob", b"his own")
ORDER = LoginOrder(BOB, "bob", CLIENT)
SILENT = LoginRefused(Refusal(Reason.UNAVAILABLE, "no answer", unreached=True))


class Town:
    """Three backends, and a clock."""

    def __init__(self, **methods):
        self.clock = Clock()
        self.backends = {name: FakeBackend(name, **methods) for name in ("a", "b", "c")}
        self.places = Places(self.backends, self.clock)

    def find(self, *names, **fields):
        return self.places.find(Route(names[0], others=names[1:], **fields))

    def tried(self):
        """Return the names of those that have been asked and not been answered for."""
        return [name for name, backend in self.backends.items() if backend.opening]

    def answers(self, name, outcome):
        """Have the backend end its oldest attempt."""
        opening = self.backends[name].opening.popleft()
        if isinstance(outcome, Exception):
            opening.errback(outcome)
        else:
            opening.callback(outcome)


@pytest.fixture
def town():
    return Town()


def test_one_backend_is_the_backend_itself(town):
    """A route of one backend, with nothing otherwise, costs nothing."""
    assert town.find("b") is town.backends["b"]


def test_an_unknown_backend_is_a_misconfiguration(town):
    """A route to nowhere refuses that login, and names the place."""
    for names in (("x",), ("a", "x")):
        with pytest.raises(LoginRefused, match="'x', which is no backend") as caught:
            town.find(*names)
        assert caught.value.refusal.reason is Reason.MISCONFIGURED


def test_the_next_is_tried_if_one_does_not_answer(town):
    """Each backend gets its turn, in order, and the one that answers has the session."""
    done = town.find("a", "b", "c").open(IMAP, ORDER)
    assert town.tried() == ["a"]
    town.answers("a", SILENT)
    assert town.tried() == ["b"]
    town.answers("b", SILENT)
    town.answers("c", opened(None, backend="c"))
    assert done.result.backend == "c"


def test_all_but_the_last_have_to_say_something_soon(town):
    """A client does not wait half a minute for each dead backend; the last has all the time there is."""
    town.find("a", "b").open(IMAP, ORDER)
    town.answers("a", SILENT)
    assert [town.backends[name].calls[0].patience for name in "ab"] == [PATIENCE, 0]


@pytest.mark.parametrize("reason", [Reason.AUTHENTICATION_FAILED, Reason.UNAVAILABLE, Reason.MISCONFIGURED])
def test_a_backend_that_has_spoken_has_decided(town, reason):
    """A password is not tried at the next backend, nor is a login that the backend began."""
    done = town.find("a", "b").open(IMAP, ORDER)
    town.answers("a", LoginRefused(Refusal(reason, "as it says")))
    assert town.tried() == []
    assert done.result.value.refusal.reason is reason
    done.addErrback(lambda _: None)


def test_if_none_answers_the_last_says_why(town):
    """The refusal is that of the last one tried."""
    done = town.find("a", "b").open(IMAP, ORDER)
    town.answers("a", SILENT)
    town.answers("b", LoginRefused(Refusal(Reason.UNAVAILABLE, "nor here", unreached=True)))
    assert done.result.value.refusal.detail == "nor here"
    done.addErrback(lambda _: None)


def test_a_silent_backend_is_tried_last_for_a_while(town):
    """Logins after the first do not wait for a dead backend, by whatever route; later it is tried."""
    town.find("a", "b").open(IMAP, ORDER)
    town.answers("a", SILENT)
    town.answers("b", opened(None))
    for names in (("a", "b"), ("a", "c")):
        town.find(*names).open(IMAP, ORDER)
        town.answers(names[1], opened(None))
    town.clock.advance(AVOIDED)
    town.find("a", "b").open(IMAP, ORDER)
    assert town.tried() == ["a"]


def test_a_backend_that_answers_again_has_its_place_again(town):
    """Tried last, and found alive, it is the first again."""
    done = town.find("a", "b").open(IMAP, ORDER)
    for name in "ab":
        town.answers(name, SILENT)
    done.addErrback(lambda _: None)
    town.find("a", "b").open(IMAP, ORDER)
    town.answers("a", opened(None))
    town.find("a", "b").open(IMAP, ORDER)
    assert town.tried() == ["a"]


def test_cancelling_gives_up_the_one_that_is_tried(town):
    """Whoever leaves while the second is tried leaves nothing behind."""
    done = town.find("a", "b", "c").open(IMAP, ORDER)
    town.answers("a", SILENT)
    done.cancel()
    assert town.backends["b"].cancelled == 1
    assert not town.backends["c"].calls
    done.addErrback(lambda failure: failure.trap(CancelledError))


def test_a_backend_named_twice_is_tried_once(town):
    """A source that repeats itself does no harm."""
    done = town.find("a", "a").open(IMAP, ORDER)
    town.answers("a", SILENT)
    assert town.tried() == []
    done.addErrback(lambda _: None)


def test_a_change_is_asked_of_every_backend(town):
    """What a route has otherwise holds wherever it leads, and equal routes have it made once."""
    change = Change(identity=Identity.NONE)
    assert town.find("a", "b", change=change) is town.find("a", "b", change=change)
    assert [town.backends[name].changes for name in "abc"] == [[change], [change], []]


def test_a_change_that_cannot_be_is_a_misconfiguration(town):
    """What the backend says about it goes to the log."""

    def refuse(_):
        raise ValueError("it floats")

    town.backends["a"].changed = refuse
    with pytest.raises(LoginRefused, match="backend a as it cannot be: it floats") as caught:
        town.find("a", change=Change(port=1))
    assert caught.value.refusal.reason is Reason.MISCONFIGURED


def test_a_password_of_the_route_is_used_as_if_the_client_had_sent_it():
    """A backend that has a master login is changed for it; one that replays needs no change."""
    town = Town(method=Method.MASTER)
    town.find("a", password=b"theirs")
    assert town.backends["a"].changes == [Change(login=Method.REPLAY)]
    town = Town()
    assert town.find("a", password=b"theirs") is town.backends["a"]
    assert not town.backends["a"].changes


ATTEMPT = Attempt(BOB, "seam")


def test_without_more_the_client_logs_in_itself():
    """The order has what the client sent, the name that was looked up, and what the dialog says."""
    order = order_for(Route("a", forward=(("k", "v"),)), ATTEMPT, "bob", CLIENT)
    assert order == LoginOrder(BOB, "bob", CLIENT, "seam", (("k", "v"),))


def test_a_route_has_names_and_passwords():
    """The password goes with the name at the backend, or with a master's name for that account."""
    order = order_for(Route("a", "b2", password=b"theirs"), ATTEMPT, "bob", CLIENT)
    assert order.user == "b2"
    assert order.credentials == Credentials("PLAIN", b"b2", b"theirs")
    order = order_for(Route("a", password=b"theirs", master="root"), ATTEMPT, "bob", CLIENT)
    assert order.credentials == Credentials("PLAIN", b"root", b"theirs", b"bob")


NO = Refusal(Reason.AUTHENTICATION_FAILED, "the backend said: NO", b"No.", b"{}")


@pytest.mark.parametrize(
    ("route", "refusal", "told"),
    [
        (Route("a", password=b"theirs"), NO, Reason.MISCONFIGURED),
        (Route("a", password=b"theirs", master="root"), NO, Reason.MISCONFIGURED),
        (Route("a", password=b"theirs"), evolve(NO, reason=Reason.LIMIT), Reason.LIMIT),
    ],
)
def test_a_password_of_the_route_is_not_the_clients(town, route, refusal, told):
    """The client's own was right: it is not asked for another one because the route's is wrong."""
    opening = open_for(town.places.find(route), IMAP, route, ATTEMPT, "bob", CLIENT)
    town.answers("a", LoginRefused(refusal))
    (found,) = refusals(opening)
    assert (found.reason, found.reply, found.challenge) == (told, None, None)
    assert "the backend said: NO" in found.detail


@pytest.mark.parametrize("route", [Route("a"), Route("a", password=b"his own")])
def test_a_password_of_the_clients_is_its_own(town, route):
    """What the client has sent is wrong if the backend says so, also where the route has the same."""
    opening = open_for(town.places.find(route), IMAP, route, ATTEMPT, "bob", CLIENT)
    town.answers("a", LoginRefused(NO))
    assert refusals(opening) == [NO]


def refusals(opening):
    found = []
    opening.addErrback(lambda failure: found.append(failure.value.refusal))
    return found


def test_a_route_does_not_show_its_password():
    """It may get into a log or a traceback."""
    assert "theirs" not in repr(Route("a", password=b"theirs"))


def test_somebody_has_to_check_who_is_calling():
    """The client's own password may go on unchecked; whatever else gets in needs a proof."""
    replaying, master = FakeBackend("a"), FakeBackend("b", Method.MASTER)
    route = Route("a")
    assert not lets_in_anybody(route, replaying, ATTEMPT)
    assert lets_in_anybody(route, master, ATTEMPT)
    assert lets_in_anybody(evolve(route, password=b"theirs"), replaying, ATTEMPT)
    assert not lets_in_anybody(evolve(route, password=b"theirs", proven=True), replaying, ATTEMPT)
    assert not lets_in_anybody(evolve(route, proven=True), master, ATTEMPT)
    assert not lets_in_anybody(route, master, Attempt(NOBODY))


def test_an_order_of_backends_replays_only_if_all_do(town):
    """What one of them lets in unchecked is let in by the order of them."""
    place = town.find("a", "b")
    assert place.method is Method.REPLAY
    town.backends["b"].method = Method.NONE
    assert place.method is Method.NONE
