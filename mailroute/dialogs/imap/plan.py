"""The best way to log in that an IMAP backend offers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from attrs import define, field

from mailroute.events import Credentials, LoginOrder, LoginTerms, Method, Proof
from mailroute.wire import sasl
from mailroute.wire.imap_syntax import quote

MAX_INITIAL_RESPONSE = 4096
"""Bytes of base64 to put on a command's own line; a longer message waits for the ``+``,
because servers bound a command line tighter than a SASL response."""

MAX_LITERAL_MINUS = 4096
"""Bytes that a LITERAL- server takes in a non-synchronising literal (RFC 7888 section 5)."""


class NoWay(Exception):
    """The backend offers nothing that this login can use; the text is for the log."""


@define
class Plan:
    """What to send: the first chunk at once, each other when the backend says ``+``.

    ``secrets`` returns the forms in which the secret goes over the wire, so that
    they can be taken out of what the backend says; few logins need them.
    ``error_reply`` answers a challenge that comes after everything has been sent,
    with which an OAuth server explains its refusal; None: there is none.
    """

    chunks: tuple[bytes, ...] = field(repr=False)
    secrets: Callable[[], tuple[bytes, ...]] = field(repr=False)
    error_reply: bytes | None = None


def make_plan(terms: LoginTerms, order: LoginOrder, capabilities: frozenset[bytes]) -> Plan:
    """Choose the way to log in.

    :param capabilities: the backend's, in upper case, as it lists them now.
    :raises NoWay: there is none.
    """
    credentials = order.credentials
    user = order.user.encode("utf-8")
    if terms.method is Method.MASTER:
        if terms.master is None:
            raise NoWay("no master user is configured")
        if b"AUTH=PLAIN" not in capabilities:
            raise NoWay("a master login needs AUTH=PLAIN, which the backend does not offer")
        return _plain(terms.master.user, terms.master.secret, user, capabilities)
    if credentials.proof is Proof.TOKEN:
        return _token(credentials, capabilities)
    if credentials.authorize_as:
        if b"AUTH=PLAIN" not in capabilities:
            raise NoWay("the client authorizes as another user, which needs AUTH=PLAIN")
        return _plain(credentials.user, credentials.secret, user, capabilities)
    if b"AUTH=PLAIN" in capabilities:
        return _plain(user, credentials.secret, b"", capabilities)
    if b"AUTH=LOGIN" in capabilities:
        chunks = (b"AUTHENTICATE LOGIN\r\n", _line(user), _line(credentials.secret))
        return Plan(chunks, partial(_forms, credentials.secret))
    if b"LOGINDISABLED" in capabilities:
        raise NoWay("the backend offers no mechanism for a password, and LOGIN is disabled")
    return _login(user, credentials.secret, capabilities)


def _line(message: bytes) -> bytes:
    return (sasl.encode(message) if message else b"") + b"\r\n"


def _forms(password: bytes, message: bytes = b"") -> tuple[bytes, ...]:
    """The forms that a password takes on the wire; ``message`` is PLAIN's, if that is used."""
    quoted = quote(password) or b""
    return (password, sasl.encode(password), quoted[1:-1], *([sasl.encode(message)] if message else ()))


def _token_forms(message: bytes) -> tuple[bytes, ...]:
    return (message, sasl.encode(message), *message.split(b"\1"))


def _authenticate(mechanism: bytes, message: bytes, capabilities: frozenset[bytes]) -> tuple[bytes, ...]:
    encoded = sasl.encode(message)
    if b"SASL-IR" in capabilities and len(encoded) <= MAX_INITIAL_RESPONSE:
        return (b"AUTHENTICATE %s %s\r\n" % (mechanism, encoded),)
    return (b"AUTHENTICATE %s\r\n" % mechanism, _line(message))


def _plain(user: bytes, password: bytes, account: bytes, capabilities: frozenset[bytes]) -> Plan:
    message = sasl.plain(user, password, account)
    return Plan(_authenticate(b"PLAIN", message, capabilities), partial(_forms, password, message))


def _token(credentials: Credentials, capabilities: frozenset[bytes]) -> Plan:
    name = credentials.mechanism
    if f"AUTH={name}".encode("ascii") not in capabilities:
        raise NoWay(f"the client logs in with {name}, which the backend does not offer")
    message = credentials.secret
    chunks = _authenticate(name.encode("ascii"), message, capabilities)
    error_reply = _line(sasl.MECHANISMS[name].failure_reply)
    return Plan(chunks, partial(_token_forms, message), error_reply)


def _login(user: bytes, password: bytes, capabilities: frozenset[bytes]) -> Plan:
    """LOGIN with a quoted string where every byte may stand in one, else with a literal."""
    chunks = [b"LOGIN"]
    for value in (user, password):
        quoted = quote(value)
        if quoted is not None:
            chunks[-1] += b" " + quoted
        elif b"LITERAL+" in capabilities or (b"LITERAL-" in capabilities and len(value) <= MAX_LITERAL_MINUS):
            chunks[-1] += b" {%d+}\r\n%s" % (len(value), value)
        else:
            chunks[-1] += b" {%d}\r\n" % len(value)
            chunks.append(value)
    chunks[-1] += b"\r\n"
    return Plan(tuple(chunks), partial(_forms, password))
