"""The server's side of SCRAM (RFC 5802, RFC 7677), with channel binding by tls-exporter (RFC 9266).

Messages go in and come out; who knows the keys is asked in between.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

from mailroute.wire.sasl import SaslError

ALGORITHMS = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-1": "sha1"}
"""The hash of each mechanism; with channel binding its name ends in ``-PLUS``."""

MAX_MESSAGE = 2048
"""Bytes of a client's message: a name of 512 bytes, each of which may take three, and a long nonce."""

_NONCE = re.compile(rb"[!-+\--~]{8,256}\Z")
_FIRST = re.compile(rb"(?:n|y|p=([A-Za-z0-9.-]+)),(?:a=([^,]+))?,(n=([^,]+),r=([^,]+))(?:,.*)?\Z", re.DOTALL)
_FINAL = re.compile(rb"(c=([A-Za-z0-9+/]+={0,2}),r=([^,]+)(?:,.*)?),p=([A-Za-z0-9+/]+={0,2})\Z", re.DOTALL)

_BINDING = b"tls-exporter"


class StoredKeys(NamedTuple):
    """What a server keeps of a password (RFC 5802 section 3); its repr does not show it."""

    iterations: int
    salt: bytes
    stored_key: bytes
    server_key: bytes

    def __repr__(self) -> str:
        return f"StoredKeys(iterations={self.iterations}, ...)"


def nonce() -> bytes:
    """Return our part of a nonce: 144 bits that nobody can guess."""
    return secrets.token_urlsafe(18).encode("ascii")


def base_name(mechanism: str) -> str:
    """Return the mechanism's name without channel binding."""
    return mechanism.removesuffix("-PLUS")


def make_keys(algorithm: str, password: bytes, salt: bytes, iterations: int) -> StoredKeys:
    """Make what a server keeps of a password; takes its time."""
    salted = hashlib.pbkdf2_hmac(algorithm, password, salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", algorithm)
    server_key = hmac.digest(salted, b"Server Key", algorithm)
    return StoredKeys(iterations, salt, hashlib.new(algorithm, client_key).digest(), server_key)


def proves(mechanism: str, keys: StoredKeys, transcript: bytes) -> bool:
    """Tell whether a transcript (`ScramExchange.respond`) could only come from who knows the password."""
    algorithm = ALGORITHMS[base_name(mechanism)]
    encoded, _, message = transcript.partition(b",")
    proof = base64.b64decode(encoded)
    signature = hmac.digest(keys.stored_key, message, algorithm)
    if len(proof) != len(signature):
        return False
    client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
    return hmac.compare_digest(hashlib.new(algorithm, client_key).digest(), keys.stored_key)


class Wanted(NamedTuple):
    """The client has said who it is: its keys are wanted.  There is no secret yet."""

    user: bytes
    authorize_as: bytes
    secret: bytes = b""


class Proven(NamedTuple):
    """What the client has shown: the proof and all that it is for.  Its repr shows nothing of it."""

    user: bytes
    secret: bytes
    authorize_as: bytes

    def __repr__(self) -> str:
        return f"Proven(user={self.user!r}, ...)"


class ScramExchange:
    """One client's run through one of these mechanisms.

    :param name: the mechanism's.
    :param nonce: our part of the nonce: printable, and never the same.
    :param binding: what tls-exporter says of the connection; None where there is none.
    """

    __slots__ = (
        "_binding",
        "_bound",
        "_first",
        "_header",
        "_keys",
        "_nonce",
        "_prompt",
        "_proven",
        "_wanted",
        "name",
    )

    def __init__(self, name: str, nonce: bytes, binding: bytes | None) -> None:
        self.name = name
        self._nonce = nonce
        self._binding = binding
        self._bound = name.endswith("-PLUS")
        self._header = self._first = self._prompt = b""
        self._wanted: Wanted | None = None
        self._keys: StoredKeys | None = None
        self._proven: Proven | None = None

    def prompt(self) -> bytes:
        """The next challenge, in base64."""
        return base64.b64encode(self._prompt)

    def respond(self, line: bytes) -> Wanted | Proven | None:
        """Take a base64 line; return whose keys are wanted, what is shown, or None for another message.

        A proof that is wrong is returned at once, for `proves` to find that out
        again; with a right one the client has our proof before it is done.

        :raises SaslError: the line or the message in it makes no sense.
        """
        message = _decoded(line)
        if self._proven is not None:
            if message:
                raise SaslError("Nothing may follow")
            return self._proven
        if self._keys is None or self._wanted is None:
            self._wanted = self._take_first(message)
            return self._wanted
        return self._take_final(message, self._keys, self._wanted)

    def take(self, keys: StoredKeys) -> None:
        """Go on with the keys that were wanted."""
        self._keys = keys
        self._prompt = b"r=%s,s=%s,i=%d" % (self._nonce, base64.b64encode(keys.salt), keys.iterations)

    def _take_first(self, message: bytes) -> Wanted:
        found = _FIRST.match(message)
        if found is None or _NONCE.match(found[5]) is None:
            raise SaslError("Invalid SCRAM message")
        if (found[1] is not None) != self._bound or found[1] not in (None, _BINDING):
            raise SaslError("Unsupported channel binding")
        if message[:1] == b"y" and self._binding is not None:
            # Somebody between us has taken the mechanisms with channel binding out of our list.
            raise SaslError("Channel binding is supported here")
        self._header = message[: found.start(3)]
        self._first = message[found.start(3) :]
        self._nonce = found[5] + self._nonce
        user, authorize_as = _name(found[4]), _name(found[2] or b"")
        return Wanted(user, b"" if authorize_as == user else authorize_as)

    def _take_final(self, message: bytes, keys: StoredKeys, wanted: Wanted) -> Proven | None:
        found = _FINAL.match(message)
        if found is None or found[3] != self._nonce:
            raise SaslError("Invalid SCRAM message")
        bound = self._header + (self._binding or b"" if self._bound else b"")
        if found[2] != base64.b64encode(bound):
            raise SaslError("Channel bindings do not match")
        said = b",".join((self._first, self._prompt, found[1]))
        proven = Proven(wanted.user, found[4] + b"," + said, wanted.authorize_as)
        _decoded(found[4])  # raises
        if not proves(self.name, keys, proven.secret):
            return proven
        self._proven = proven
        signature = hmac.digest(keys.server_key, said, ALGORITHMS[base_name(self.name)])
        self._prompt = b"v=" + base64.b64encode(signature)
        return None


def _name(written: bytes) -> bytes:
    """Return a name as it is, which a message has with ``=2C`` and ``=3D`` for comma and equals sign.

    :raises SaslError: an equals sign stands for something else.
    """
    if re.search(rb"=(?!2C|3D)", written):
        raise SaslError("Invalid name")
    return written.replace(b"=2C", b",").replace(b"=3D", b"=")


def _decoded(line: bytes) -> bytes:
    if line == b"=":
        return b""
    try:
        message = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raise SaslError("Invalid base64") from None
    if len(message) > MAX_MESSAGE:
        raise SaslError("SCRAM message too long")
    return message
