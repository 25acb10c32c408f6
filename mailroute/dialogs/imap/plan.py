"""The best way to log in that an IMAP backend offers."""

from __future__ import annotations

from functools import lru_cache, partial

from mailroute.dialogs.common.plan import NoWay, Plan, choose, forms, lines
from mailroute.events import LoginOrder, LoginTerms
from mailroute.wire.imap_syntax import quote

MAX_INITIAL_RESPONSE = 4096
"""Bytes of base64 to put on a command's own line; a longer message waits for the ``+``,
because servers bound a command line tighter than a SASL response."""

MAX_LITERAL_MINUS = 4096
"""Bytes that a LITERAL- server takes in a non-synchronising literal (RFC 7888 section 5)."""


def make_plan(terms: LoginTerms, order: LoginOrder, capabilities: frozenset[bytes]) -> Plan:
    """Choose the way to log in.

    :param capabilities: the backend's, in upper case, as it lists them now.
    :raises NoWay: there is none.
    """
    choice = choose(terms, order, _mechanisms(capabilities))
    if choice is not None:
        return lines(choice, b"AUTHENTICATE", MAX_INITIAL_RESPONSE if b"SASL-IR" in capabilities else 0)
    if b"LOGINDISABLED" in capabilities:
        raise NoWay("the backend offers no mechanism for a password, and LOGIN is disabled")
    return _login(order.user.encode("utf-8"), order.credentials.secret, capabilities)


@lru_cache(16)
def _mechanisms(capabilities: frozenset[bytes]) -> frozenset[bytes]:
    return frozenset(word[5:] for word in capabilities if word.startswith(b"AUTH="))


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
    return Plan(tuple(chunks), partial(forms, password))
