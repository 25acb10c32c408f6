"""Passwords checked by twisted.cred."""

from __future__ import annotations

import threading

import pytest
from twisted.cred.checkers import ANONYMOUS, FilePasswordDB, InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import fail, succeed
from twisted.internet.testing import MemoryReactorClock

from mailroute import config
from mailroute.checkers import check_with
from mailroute.events import LoginRefused, Reason


class Thread:
    """Stands for the reactor's threads, which take no Deferred either; counts what it is given."""

    def __init__(self):
        self.calls = 0

    def __call__(self, function):
        self.calls += 1
        return succeed(function())


class Checker:
    """Gives whatever it is told to."""

    credentialInterfaces = ()

    def __init__(self, answer):
        self.answer = answer

    def requestAvatarId(self, credentials):
        del credentials
        return self.answer


def outcome(deferred):
    seen = []
    deferred.addBoth(seen.append)
    (value,) = seen
    return value


def refusal(deferred):
    failure = outcome(deferred)
    assert failure.check(LoginRefused)
    return failure.value.refusal


def test_the_avatar_id_is_the_name():
    """Who passes is routed by the name that the checker gives, bytes or text."""
    checker = InMemoryUsernamePasswordDatabaseDontUse(bob=b"secret")
    assert outcome(check_with(checker, Thread())("bob", b"secret")) == "bob"
    assert outcome(check_with(Checker(succeed("bób")), Thread())("x", b"y")) == "bób"


def test_a_wrong_password_is_a_refusal():
    """What the checker refuses is an authentication failure, unknown or wrong alike."""
    check = check_with(InMemoryUsernamePasswordDatabaseDontUse(bob=b"secret"), Thread())
    assert refusal(check("bob", b"wrong")).reason is Reason.AUTHENTICATION_FAILED
    assert refusal(check("bob", b"wrong")) == refusal(check("eve", b"secret"))


def test_a_password_file_is_read_in_a_thread(tmp_path):
    """Twisted's file checker reads its whole file each time, which must not hold everybody up."""
    file = tmp_path / "passwd"
    file.write_text("bob:secret\n")
    thread = Thread()
    check = check_with(FilePasswordDB(str(file)), thread)
    assert outcome(check("bob", b"secret")) == "bob"
    assert refusal(check("bob", b"wrong")).reason is Reason.AUTHENTICATION_FAILED
    assert refusal(check("eve", b"wrong")).reason is Reason.AUTHENTICATION_FAILED
    assert thread.calls == 3
    assert threading.active_count() >= 1


@pytest.mark.parametrize("avatar", [ANONYMOUS, "", b"", None])
def test_nobody_gets_in_without_a_name(avatar):
    """A checker that names nobody has let nobody in."""
    assert refusal(check_with(Checker(succeed(avatar)), Thread())("bob", b"x")).reason is (
        Reason.AUTHENTICATION_FAILED
    )


def test_a_checker_that_breaks_is_a_fault_not_a_refusal():
    """A checker's defect is not blamed on the password."""
    assert outcome(check_with(Checker(fail(OSError("disk"))), Thread())("bob", b"x")).check(OSError)
    assert not outcome(check_with(Checker(fail(OSError("disk"))), Thread())("bob", b"x")).check(
        LoginRefused, UnauthorizedLogin
    )


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
    check = check_with(settings.listeners[0].authenticate, Thread())
    assert outcome(check("joe", b"x")) == "joe"
    assert refusal(check("joe", b"y")).reason is Reason.AUTHENTICATION_FAILED
