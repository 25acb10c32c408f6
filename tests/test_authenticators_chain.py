"""The authenticators in order: who is asked, and whose word counts."""

from __future__ import annotations

import re

import pytest
from attrs import evolve
from authenticating import answer, lookup, refusal
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mailroute.authenticators import AuthenticatorChain, Link
from mailroute.authenticators.chain import IDecoy
from mailroute.events import LoginRefused, Reason, Refusal
from mailroute.interfaces import IAuthenticator
from mailroute.proofs import Proof
from mailroute.sources import BadAnswer

NO = LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "wrong"))
AWAY = LoginRefused(Refusal(Reason.UNAVAILABLE, "away"))


@implementer(IAuthenticator)
class Says:
    """Answers what it is told to, and counts who asks."""

    def __init__(self, what, *proofs):
        self.what = what
        self.proofs = frozenset(proofs or {Proof.PASSWORD})
        self.asked = 0

    def authenticate(self, lookup):
        del lookup
        self.asked += 1
        if isinstance(self.what, Exception):
            raise self.what
        return self.what() if callable(self.what) else self.what


@implementer(IDecoy)
class Decoy(Says):
    """Counts for whom it pretends."""

    def __init__(self):
        super().__init__(None)
        self.pretended = []

    def pretend(self, lookup):
        self.pretended.append(lookup.user)


def chain(*authenticators, lenient=(), salt=b"salt"):
    links = [Link(f"[{n}]", each, lenient=n in lenient) for n, each in enumerate(authenticators)]
    return AuthenticatorChain(links, salt)


async def later(value):
    return value


ASK = lookup("bob", b"secret")


@pytest.mark.parametrize("how", [lambda name: name, succeed, lambda name: later(name)])
def test_the_first_that_knows_decides(how):
    """Who does not know the user is passed over, whether it says so at once, later or in a coroutine."""
    third = Says("carol")
    asked = chain(Says(lambda: how(None)), Says(lambda: how("Bob")), third)
    verifyObject(IAuthenticator, asked)
    assert answer(asked.authenticate(ASK)) == "Bob"
    assert third.asked == 0


@pytest.mark.parametrize("how", [NO, lambda: fail(NO)])
@pytest.mark.parametrize("lenient", [(), (0,)])
def test_a_wrong_password_is_wrong(how, lenient):
    """A definite no ends the search, also where errors do not: the next might know that password."""
    second = Says("bob")
    assert refusal(chain(Says(how), second, lenient=lenient).authenticate(ASK)) is NO.refusal
    assert second.asked == 0


@pytest.mark.parametrize("error", [AWAY, OSError("disk")])
def test_who_cannot_answer_ends_the_search(error):
    """Whether the one that is away knows the user is not known: nobody else may decide."""
    second = Says("bob")
    with capturedLogs() as logs:
        assert refusal(chain(Says(error), second).authenticate(ASK)).reason is Reason.UNAVAILABLE
    assert second.asked == 0
    assert len(logs) == (error is not AWAY)
    assert "secret" not in repr(logs)


def test_a_fault_is_told_by_its_place_and_not_by_its_words():
    """The log says what was raised and where, and holds nothing of what was said or at hand."""

    def careless():
        password = "s3cret"
        raise ValueError(f"{password} is wrong")

    with capturedLogs() as logs:
        refused = refusal(chain(Says(careless)).authenticate(ASK))
    assert refused == Refusal(Reason.UNAVAILABLE, "[0] failed: ValueError")
    [said] = [formatEvent(event) for event in logs]
    assert re.search(r"ValueError in \S*test_authenticators_chain\.py:\d+ \(careless\) in ", said)
    assert "s3cret" not in repr(logs)
    assert not any(isinstance(value, Failure | Exception) for event in logs for value in event.values())


@pytest.mark.parametrize("lenient", [(), (0,)])
def test_an_answer_without_sense_is_the_operators_to_mend(lenient):
    """It is no failure that passes: nobody else is asked, and the client is not told to come again."""
    second = Says("bob")
    refused = refusal(chain(Says(BadAnswer("two of them")), second, lenient=lenient).authenticate(ASK))
    assert refused == Refusal(Reason.MISCONFIGURED, "[0] gave nonsense: two of them")
    assert second.asked == 0


@pytest.mark.parametrize("error", [AWAY, OSError("disk")])
def test_with_on_error_next_the_next_one_is_asked(error):
    """Where the operator wants it so, the next one may decide, and the log says what has happened."""
    with capturedLogs() as logs:
        assert answer(chain(Says(error), Says("bob"), lenient=(0,)).authenticate(ASK)) == "bob"
    assert formatEvent(logs[-1]).endswith("the next is asked")


def test_nobody_knows_as_long_as_somebody_is_away():
    """A user whom nobody else knows may be one of those that could not be asked about: come again."""
    assert refusal(chain(Says(AWAY), Says(None), lenient=(0,)).authenticate(ASK)) is AWAY.refusal


def test_an_unknown_user_is_refused_like_a_wrong_password():
    """In what the client sees there is no difference between the two."""
    assert refusal(chain(Says(None)).authenticate(ASK)).reason is Reason.AUTHENTICATION_FAILED


def test_only_those_are_asked_that_can_check_it():
    """A token is no business of who checks passwords, and with nobody to check it the login is refused."""
    passwords, tokens = Says("p"), Says("t", Proof.TOKEN)
    both = chain(passwords, tokens)
    assert both.proofs == {Proof.PASSWORD, Proof.TOKEN}
    assert answer(both.authenticate(lookup("bob", b"x", Proof.TOKEN))) == "t"
    assert passwords.asked == 0
    assert refusal(chain(passwords).authenticate(lookup("bob", b"x", Proof.TOKEN))).reason is (
        Reason.MISCONFIGURED
    )


@pytest.mark.parametrize("name", ["", b"bob", 3, "bob\r\nx", True, "b\ud800b", "b" * 513])
def test_a_name_that_can_be_nobodys_lets_nobody_in(name):
    """An authenticator that answers with something else than a name is broken, and opens no door."""
    assert refusal(chain(Says(name)).authenticate(ASK)).reason is Reason.MISCONFIGURED


def test_an_unknown_user_takes_as_long_as_one_authenticators_wrong_password():
    """One decoy is asked to pretend, always the same one for a name, and not always the same one."""
    decoys = [Decoy(), Decoy(), Decoy()]
    for _ in range(3):
        for user in map("user{}".format, range(30)):
            refusal(chain(*decoys).authenticate(evolve(ASK, user=user)))
    for decoy in decoys:
        assert decoy.pretended
        assert all(decoy.pretended.count(user) == 3 for user in decoy.pretended)


def test_a_known_user_costs_no_decoy():
    """As soon as somebody knows the user, nobody pretends."""
    decoy = Decoy()
    refusal(chain(decoy, Says(NO)).authenticate(ASK))
    assert not decoy.pretended


def test_a_client_that_leaves_is_not_asked_for_any_more():
    """Who cancels cancels what is under way, which is no failure of the authenticator's."""
    cancelled = []
    second = Says("bob")
    with capturedLogs() as logs:
        asked = chain(Says(lambda: Deferred(cancelled.append)), second).authenticate(ASK)
        asked.cancel()
        with pytest.raises(CancelledError):
            answer(asked)
    assert len(cancelled) == 1
    assert second.asked == 0
    assert not logs
