"""Passwords that are tried at a backend: what becomes of the connection, and of wrong keys."""

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from mailroute import authenticators
from mailroute.authenticators.at_backend import LINGER
from mailroute.events import Credentials, LoginRefused, Lookup, Reason
from mailroute.sources import BadOption, SourceContext
from mailroute.testing import CLIENT, opened

BOB = Lookup("bob", "imap", CLIENT, Credentials("PLAIN", b"bob", b"secret"))


class Transport:
    """Keeps what it is told."""

    connected = True

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda: self.told.append(name)


def made(tmp_path, clock, **options):
    context = SourceContext(tmp_path, frozenset({"old"}), str, clock, lambda call: call())
    return authenticators.source("backend").authenticator(options, context)


@pytest.mark.parametrize("stubborn", [False, True])
def test_the_connection_is_given_up(tmp_path, stubborn):
    """A connection that has shown what it was to show is closed; one that stays is cut."""
    clock, transport = Clock(), Transport()
    authenticator = made(tmp_path, clock, backend="old", protocol="pop3")
    asked = []
    authenticator.open = lambda *question: asked.append(question) or succeed(opened(transport))
    names = []
    Deferred.fromCoroutine(authenticator.authenticate(BOB)).addCallback(names.append)
    assert names == ["bob"]
    ((backend, protocol, order),) = asked
    assert (backend, protocol, order.user, order.credentials) == ("old", "pop3", "bob", BOB.credentials)
    clock.advance(0)
    assert transport.told == ["resumeProducing", "loseConnection"]
    transport.connected = stubborn
    clock.advance(LINGER)
    assert transport.told[2:] == ["abortConnection"] * stubborn


def test_without_backends_nobody_gets_in(tmp_path):
    """An authenticator that nobody has given a way to backends refuses."""
    failed = []
    Deferred.fromCoroutine(made(tmp_path, Clock(), backend="old").authenticate(BOB)).addErrback(failed.append)
    (failure,) = failed
    assert failure.check(LoginRefused)
    assert failure.value.refusal.reason is Reason.MISCONFIGURED


@pytest.mark.parametrize(
    ("options", "key", "why"),
    [
        ({}, "backend", "missing"),
        ({"backend": "odl"}, "backend", 'did you mean "old"'),
        ({"backend": "old", "protocol": ""}, "protocol", "must be a string"),
        ({"backend": "old", "port": 1}, "port", "unknown key"),
    ],
)
def test_wrong_keys_are_named(tmp_path, options, key, why):
    """The operator is told which key, and what is wrong with it."""
    with pytest.raises(BadOption, match=why) as caught:
        made(tmp_path, Clock(), **options)
    assert caught.value.key == key
