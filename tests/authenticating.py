"""What the tests of authenticators share."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Coroutine
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed

from mailroute.events import Credentials, LoginRefused, Lookup, Refusal
from mailroute.proofs import Proof
from mailroute.testing import CLIENT
from mailroute.wire.scram import ALGORITHMS


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


class ScramClient:
    """A client of any of SCRAM's mechanisms."""

    def __init__(
        self, name: str, password: bytes = b"pencil", header: bytes = b"n,,", binding: bytes = b""
    ) -> None:
        self.algorithm = ALGORITHMS[name.removesuffix("-PLUS")]
        self.password, self.header, self.binding = password, header, binding

    def first(self, user: bytes = b"bob") -> bytes:
        self.bare = b"n=" + user + b",r=0123456789abcdef"
        return self.header + self.bare

    def final(self, challenge: bytes) -> bytes:
        said = dict(part.split(b"=", 1) for part in challenge.split(b","))
        channel = b"c=" + base64.b64encode(self.header + self.binding) + b",r=" + said[b"r"]
        salt, iterations = base64.b64decode(said[b"s"]), int(said[b"i"])
        salted = hashlib.pbkdf2_hmac(self.algorithm, self.password, salt, iterations)
        key = hmac.digest(salted, b"Client Key", self.algorithm)
        stored = hashlib.new(self.algorithm, key).digest()
        self.said = b",".join((self.bare, challenge, channel))
        signature = hmac.digest(stored, self.said, self.algorithm)
        return channel + b",p=" + base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True)))
