"""What the tests of authenticators share."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed

from mailroute.events import Credentials, LoginRefused, Lookup, Refusal
from mailroute.proofs import Proof
from mailroute.testing import CLIENT


class Thread:
    """Stands for the reactor's threads, which take no Deferred either; counts what it is given."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, function: Any) -> Deferred[Any]:
        self.calls += 1
        return succeed(function())


def lookup(user: str, secret: bytes, proof: Proof = Proof.PASSWORD, mechanism: str = "PLAIN") -> Lookup:
    """Ask for a user who shows a secret."""
    return Lookup(user, "imap", CLIENT, Credentials(mechanism, user.encode(), secret, b"", proof))


def answer(asked: Any) -> Any:
    """Return what an authenticator answers without waiting for anything, or raise it."""
    if isinstance(asked, Coroutine):
        asked = Deferred.fromCoroutine(asked)
    if not isinstance(asked, Deferred):
        return asked
    seen: list[Any] = []
    failed: list[Any] = []
    asked.addCallbacks(seen.append, failed.append)
    if failed:
        failed[0].raiseException()
    (value,) = seen
    return value


def refusal(asked: Any) -> Refusal:
    """Return how an authenticator refuses."""
    with pytest.raises(LoginRefused) as error:
        answer(asked)
    return error.value.refusal
