"""What a ManageSieve client is told, in mailroute's own words, with the codes of RFC 5804 section 1.3.

A reply is noted as it is said, but for the quotes: ``(TRYLATER) Try again later.``
"""

from __future__ import annotations

import re
from functools import lru_cache

from mailroute.events import DialogTerms, Farewell, Reason
from mailroute.wire.sieve_syntax import MAX_QUOTED, quote, say
from mailroute.wire.strings import enclose

REPLIES = {
    Reason.AUTHENTICATION_FAILED: b"Authentication failed.",
    Reason.AUTHORIZATION_FAILED: b"Not allowed to open this account.",
    Reason.UNAVAILABLE: b"(TRYLATER) The mail server cannot be reached. Try again later.",
    Reason.MISCONFIGURED: b"The mail service is not set up correctly. Tell its operator.",
    Reason.LIMIT: b"(TRYLATER) Too many logins. Try again later.",
    Reason.EXPIRED: b"The password has expired.",
    Reason.CONTACT_ADMIN: b"The account is not usable. Ask its operator.",
    Reason.PRIVACY_REQUIRED: b"(ENCRYPT-NEEDED) Logins need TLS. Use STARTTLS first.",
}

FAREWELLS = {
    Farewell.TOO_MANY: b"(TRYLATER) Too many connections. Try again later.",
    Farewell.NO_DESCRIPTORS: b"(TRYLATER) Too many connections. Try again later.",
    Farewell.TOO_MANY_FROM_ADDRESS: b"(TRYLATER) Too many connections from your address.",
    Farewell.TOO_MANY_COMMANDS: b"Too many commands before login.",
    Farewell.TOO_MANY_BAD_COMMANDS: b"Too many bad commands.",
    Farewell.TOO_MANY_FAILURES: b"Too many failed logins.",
    Farewell.TOO_MANY_MESSAGES: b"Too many messages.",
    Farewell.TOO_LONG: b"Line or literal too long.",
    Farewell.LOGIN_TIMEOUT: b"No login in time.",
    Farewell.INJECTION: b"Nothing may follow STARTTLS before TLS is on.",
    Farewell.NOT_THIS_PROTOCOL: b"This is a ManageSieve server.",
    Farewell.PROXY_HEADER: b"No PROXY header is taken from your address.",
    Farewell.BAD_LINE_ENDS: b"Lines end with CR LF.",
    Farewell.SHUTDOWN: b"(TRYLATER) Shutting down. Connect again.",
    Farewell.LOGGED_OUT: b"Logging out.",
    Farewell.FAULT: b"(TRYLATER) Internal error.",
}

USUAL = {
    "IMPLEMENTATION": "mailroute",
    # Clients decide by this list what they let people filter with, and most of them before the login.
    # Pigeonhole has these, and more, unless it is told otherwise.
    "SIEVE": "fileinto reject envelope vacation comparator-i;ascii-numeric relational subaddress"
    " copy imap4flags body",
}
"""Capabilities and their values, unless the listener's configuration has others."""

_OWN = frozenset({"SASL", "STARTTLS", "VERSION", "XCLIENT"})

# RFC 5804 section 4: a name is a string, and would be one whatever it were; this is what names look like.
_CAPABILITY = re.compile(r"([A-Za-z0-9!#-'*-/:-@^_`|~-]+)(?: ([^\x00-\x1f\x7f]+))?")

_CODE = re.compile(rb"\(([A-Z0-9/\-]{1,64})\) ?")


def reply(condition: bytes, words: bytes) -> bytes:
    """Return a reply, less its line end.

    :param words: as in the tables here; whatever they hold, they become one line.
    """
    code = _CODE.match(words)
    if code is None:
        return b"%s %s" % (condition, say(words))
    return b"%s (%s) %s" % (condition, code[1], say(words[code.end() :]))


def check_capability(word: str) -> None:
    """Check a capability that is to be announced: its name, and behind a space its value if it has one.

    :raises ValueError: it cannot be.
    """
    found = _CAPABILITY.fullmatch(word)
    if found is None or quote(word.encode("utf-8", "surrogatepass")) is None:
        raise ValueError(
            f'"{word}" is no capability: it must be a name, and behind a space its value if it has one, '
            f'such as "SIEVE fileinto reject", at most {MAX_QUOTED} bytes long (RFC 5804, section 1.7)'
        )
    name = found[1].upper()
    if name in _OWN:
        raise ValueError(f'"{word}" is for mailroute itself to announce: take it out')
    if name == "OWNER":
        raise ValueError(f'"{word}" would name somebody before there is a login: take it out')


@lru_cache
def capabilities(terms: DialogTerms, tls: bool) -> bytes:
    """Return the capabilities, one a line (RFC 5804 section 1.7).

    :param tls: TLS that the client has asked for is on.
    """
    listed = dict(USUAL)
    for capability in terms.capabilities:
        name, _, value = capability.partition(" ")
        listed[name.upper()] = value
    # An empty list of mechanisms tells that TLS comes first.
    listed["SASL"] = " ".join(terms.mechanisms if tls or terms.login_allowed else ())
    if terms.tls_offered and not tls:
        listed["STARTTLS"] = ""
    listed["VERSION"] = "1.0"
    return b"".join(_line(name, value) for name, value in listed.items())


def _line(name: str, value: str) -> bytes:
    # SASL has a value even where that is empty.
    words = [name, value] if value or name == "SASL" else [name]
    return b" ".join(enclose(word.encode()) for word in words) + b"\r\n"
