"""Passwords checked by twisted.cred."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from authenticating import Thread, answer, lookup, refusal
from twisted.cred.checkers import ANONYMOUS, FilePasswordDB, InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.defer import fail, succeed
from twisted.internet.testing import MemoryReactorClock
from zope.interface.verify import verifyObject

from mailroute import config
from mailroute.authenticators import CheckerAuthenticator, source
from mailroute.events import Reason
from mailroute.interfaces import IAuthenticator
from mailroute.proofs import Proof
from mailroute.sources import BadOption, SourceContext


class Checker:
    """Gives whatever it is told to."""

    credentialInterfaces = ()

    def __init__(self, answer):
        self.answer = answer

    def requestAvatarId(self, credentials):
        del credentials
        return self.answer


def ask(checker, user, password, thread=None):
    return answer(CheckerAuthenticator(checker, thread or Thread()).authenticate(lookup(user, password)))


def refused(checker, user, password):
    return refusal(CheckerAuthenticator(checker, Thread()).authenticate(lookup(user, password)))


def test_the_avatar_id_is_the_name():
    """Who passes is routed by the name that the checker gives, bytes or text."""
    checker = InMemoryUsernamePasswordDatabaseDontUse(bob=b"secret")
    checker.users = {b"bob": b"secret"}
    assert ask(checker, "bob", b"secret") == "bob"
    assert ask(Checker(succeed("bób")), "x", b"y") == "bób"


def test_a_wrong_password_is_a_refusal_and_an_unknown_user_is_none():
    """Where it can be seen which of the two it is, only for the unknown user the next one is asked."""
    checker = InMemoryUsernamePasswordDatabaseDontUse()
    checker.users = {b"bob": b"secret"}
    assert refused(checker, "bob", b"wrong").reason is Reason.AUTHENTICATION_FAILED
    assert ask(checker, "eve", b"secret") is None


def test_another_checkers_word_is_final():
    """Whoever only says no has said it of the password, as far as anybody can tell."""
    from twisted.cred.error import UnauthorizedLogin

    assert refused(Checker(fail(UnauthorizedLogin())), "eve", b"x").reason is Reason.AUTHENTICATION_FAILED


def test_a_password_file_is_read_in_a_thread(tmp_path):
    """Twisted's file checker reads its whole file each time, which must not hold everybody up."""
    file = tmp_path / "passwd"
    file.write_text("bob:secret\n")
    thread = Thread()
    checker = FilePasswordDB(str(file))
    assert ask(checker, "bob", b"secret", thread) == "bob"
    assert thread.calls == 1
    assert refused(checker, "bob", b"wrong").reason is Reason.AUTHENTICATION_FAILED
    assert ask(checker, "eve", b"wrong") is None
    assert threading.active_count() >= 1


@pytest.mark.parametrize("avatar", [ANONYMOUS, "", b"", None])
def test_nobody_gets_in_without_a_name(avatar):
    """A checker that names nobody has let nobody in."""
    assert refused(Checker(succeed(avatar)), "bob", b"x").reason is Reason.AUTHENTICATION_FAILED


def test_a_checker_that_breaks_is_a_fault_not_a_refusal():
    """A checker's defect is not blamed on the password."""
    with pytest.raises(OSError, match="disk"):
        ask(Checker(fail(OSError("disk"))), "bob", b"x")


def test_the_memory_checker_of_a_configuration_lets_in(tmp_path):
    """``authenticate = "memory:…"`` takes the passwords that it names, and no others."""
    settings = config.build(
        MemoryReactorClock(),
        folder=tmp_path,
        listen=[
            {"protocol": "imap", "endpoint": "tcp:143", "security": "none", "authenticate": "memory:joe:x"}
        ],
        backend={"east": {"imap": "tcp:127.0.0.1:143", "security": "none"}},
        route=[{"source": "default", "backend": "east"}],
    )
    checker = settings.listeners[0].authenticate
    assert ask(checker, "joe", b"x") == "joe"
    assert refused(checker, "joe", b"y").reason is Reason.AUTHENTICATION_FAILED


def context(folder: Path) -> SourceContext:
    return SourceContext(folder, frozenset(), str, None, Thread())


def test_a_block_makes_one(tmp_path):
    """``source = "checker"`` takes the string that a listener takes, or a checker itself."""
    (tmp_path / "passwd").write_text("bob:secret\n")
    for given in ("file:passwd", FilePasswordDB(str(tmp_path / "passwd"))):
        made = source("checker").authenticator({"checker": given}, context(tmp_path))
        verifyObject(IAuthenticator, made)
        assert made.proofs == {Proof.PASSWORD}
        assert answer(made.authenticate(lookup("bob", b"secret"))) == "bob"
        assert str(made) == f"passwords are checked by {tmp_path}/passwd"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "checker: missing"),
        ({"checker": "file:nowhere"}, "checker: cannot read .*nowhere"),
        ({"checker": "fil:x"}, 'checker: there is no checker "fil"; did you mean "file"'),
        ({"checker": 3}, "checker: a int is no ICredentialsChecker"),
        ({"checker": "anonymous"}, "checker: cannot check passwords"),
        ({"checker": "memory:joe"}, 'checker: the checker "memory" does not take what follows it'),
        ({"checker": "file:x", "file": "x"}, "file: unknown key"),
    ],
)
def test_a_bad_block_says_what_is_wrong(tmp_path, options, message):
    """A block that cannot work is told with the key and the reason."""
    with pytest.raises(BadOption, match=message):
        source("checker").authenticator(options, context(tmp_path))
