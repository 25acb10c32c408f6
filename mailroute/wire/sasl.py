"""The SASL mechanisms that carry a password, a bearer token or nothing but a name (RFC 4422).

A mechanism is a record: what the server prompts for, and how the client's
answers read.  The same records serve every protocol.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

MAX_RESPONSE = 16384
"""Bytes in one base64 line; Dovecot takes 8192, and some providers' tokens are longer."""

_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}\Z")
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]+=*\Z")


class SaslError(Exception):
    """A client's SASL message makes no sense; the text may be shown to the client."""


class Answer(NamedTuple):
    """What the client's messages said; its repr does not show the secret."""

    user: bytes
    secret: bytes
    authorize_as: bytes = b""

    def __repr__(self) -> str:
        return f"Answer(user={self.user!r}, secret=..., authorize_as={self.authorize_as!r})"


class Mechanism(NamedTuple):
    """One mechanism: a prompt for each message it wants, and how to read the messages."""

    prompts: tuple[bytes, ...]
    read: Callable[[Sequence[bytes]], Answer]
    failure_reply: bytes = b""
    """What a client sends when it is shown an error challenge (RFC 7628 section 3.2.3)."""


def encode(message: bytes) -> bytes:
    """Return the message in base64, an empty one as ``=`` (RFC 4959 section 3)."""
    return binascii.b2a_base64(message, newline=False) or b"="


def decode(line: bytes) -> bytes:
    """Return the message behind a base64 line.

    :raises SaslError: it is not base64.
    """
    if line == b"=":
        return b""
    # Python's own check lets padding pass where none belongs.
    if _BASE64.match(line) is None or len(line) % 4:
        raise SaslError("Invalid base64")
    try:
        return base64.b64decode(line, validate=True)
    except binascii.Error:
        raise SaslError("Invalid base64") from None


def plain(user: bytes, password: bytes, authorize_as: bytes = b"") -> bytes:
    """Return the message of PLAIN (RFC 4616).

    :raises ValueError: NUL, which separates the fields, is in one of them.
    """
    message = b"\0".join((authorize_as, user, password))
    if message.count(b"\0") != 2:
        raise ValueError("NUL in a field of a PLAIN message")
    return message


def xoauth2(user: bytes, token: bytes) -> bytes:
    """Return the message of XOAUTH2.

    :raises ValueError: the octet that separates the fields is in one of them.
    """
    return _bearer(b"user=" + user, token)


def oauthbearer(user: bytes, token: bytes) -> bytes:
    """Return the message of OAUTHBEARER (RFC 7628 section 3.1).

    :raises ValueError: the octet that separates the fields is in one of them.
    """
    return _bearer(b"n,a=" + user.replace(b"=", b"=3D").replace(b",", b"=2C") + b",", token)


def _bearer(header: bytes, token: bytes) -> bytes:
    message = b"\1".join((header, b"auth=Bearer " + token, b"", b""))
    if message.count(b"\1") != 3 or b"\0" in message:
        raise ValueError("a separator in a field of a token's message")
    return message


def _read_plain(messages: Sequence[bytes]) -> Answer:
    fields = messages[0].split(b"\0")
    if len(fields) != 3 or not fields[1]:
        raise SaslError("Invalid PLAIN message")
    authorize_as, user, password = fields
    return Answer(user, password, b"" if authorize_as == user else authorize_as)


def _read_login(messages: Sequence[bytes]) -> Answer:
    return Answer(messages[0], messages[1])


def _read_xoauth2(messages: Sequence[bytes]) -> Answer:
    fields = messages[0].split(b"\1")
    if not fields[0].startswith(b"user=") or not any(f.lower().startswith(b"auth=bearer ") for f in fields):
        raise SaslError("Invalid XOAUTH2 message")
    return Answer(fields[0].removeprefix(b"user="), messages[0])


def _read_oauthbearer(messages: Sequence[bytes]) -> Answer:
    header, _, pairs = messages[0].partition(b"\1")
    gs2 = header.split(b",")
    if len(gs2) != 3 or gs2[0] not in (b"n", b"y") or gs2[2]:
        raise SaslError("Invalid OAUTHBEARER message")
    if not any(pair.lower().startswith(b"auth=bearer ") for pair in pairs.split(b"\1")):
        raise SaslError("Invalid OAUTHBEARER message")
    # RFC 5801 section 4: a saslname writes "," and "=" as =2C and =3D.
    user = gs2[1].removeprefix(b"a=").replace(b"=2C", b",").replace(b"=3D", b"=")
    return Answer(user, messages[0])


def _read_external(messages: Sequence[bytes]) -> Answer:
    # The message is the authorization identity alone: who it is, the connection says.
    return Answer(messages[0], b"")


def bearer_token(message: bytes) -> str:
    """Return the token in a message of XOAUTH2 or OAUTHBEARER (RFC 6750 section 2.1 has its characters).

    :raises SaslError: there is none that could be one.
    """
    for pair in message.split(b"\1")[1:]:
        if pair.lower().startswith(b"auth=bearer "):
            token = pair[len(b"auth=bearer ") :].strip(b" ")
            if _TOKEN.match(token):
                return token.decode("ascii")
    raise SaslError("Invalid bearer token")


MECHANISMS: dict[str, Mechanism] = {
    "PLAIN": Mechanism((b"",), _read_plain),
    "LOGIN": Mechanism((b"Username:", b"Password:"), _read_login),
    "XOAUTH2": Mechanism((b"",), _read_xoauth2),
    "OAUTHBEARER": Mechanism((b"",), _read_oauthbearer, failure_reply=b"\1"),
    "EXTERNAL": Mechanism((b"",), _read_external),
}
"""By the names that go over the wire.  PLAIN is RFC 4616, OAUTHBEARER RFC 7628, EXTERNAL RFC 4422's
appendix A; LOGIN (draft-murchison-sasl-login) and XOAUTH2 (Google's) have no RFC."""

SCRAM = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-1")
"""The mechanisms of `mailroute.wire.scram`."""

NAMES = (*MECHANISMS, *SCRAM)
"""All mechanisms that there are."""


class Exchange:
    """One client's run through one mechanism."""

    __slots__ = ("_mechanism", "_messages", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._mechanism = MECHANISMS[name]
        self._messages: list[bytes] = []

    def prompt(self) -> bytes:
        """The challenge that asks for the next message, in base64; empty where there is nothing to say."""
        return base64.b64encode(self._mechanism.prompts[len(self._messages)])

    def respond(self, line: bytes) -> Answer | None:
        """Take a base64 line; return the answer, or None if another message is wanted.

        :raises SaslError: the line or the message in it makes no sense.
        """
        self._messages.append(decode(line))
        if len(self._messages) < len(self._mechanism.prompts):
            return None
        return self._mechanism.read(self._messages)
