"""What an IMAP client is told, in mailroute's own words (RFC 5530)."""

from __future__ import annotations

import re
from functools import lru_cache

from mailroute.events import DialogTerms, Farewell, Reason

REPLIES = {
    Reason.AUTHENTICATION_FAILED: b"[AUTHENTICATIONFAILED] Authentication failed.",
    Reason.AUTHORIZATION_FAILED: b"[AUTHORIZATIONFAILED] Not allowed to open this account.",
    Reason.UNAVAILABLE: b"[UNAVAILABLE] The mail server cannot be reached. Try again later.",
    Reason.MISCONFIGURED: b"[SERVERBUG] The mail service is not set up correctly. Tell its operator.",
    Reason.LIMIT: b"[LIMIT] Too many logins. Try again later.",
    Reason.EXPIRED: b"[EXPIRED] The password has expired.",
    Reason.CONTACT_ADMIN: b"[CONTACTADMIN] The account is not usable. Ask its operator.",
    Reason.PRIVACY_REQUIRED: b"[PRIVACYREQUIRED] Logins need TLS. Use STARTTLS first.",
}

FAREWELLS = {
    Farewell.TOO_MANY: b"[UNAVAILABLE] Too many connections. Try again later.",
    Farewell.NO_DESCRIPTORS: b"[UNAVAILABLE] Too many connections. Try again later.",
    Farewell.TOO_MANY_FROM_ADDRESS: b"[LIMIT] Too many connections from your address.",
    Farewell.TOO_MANY_COMMANDS: b"Too many commands before login.",
    Farewell.TOO_MANY_BAD_COMMANDS: b"Too many bad commands.",
    Farewell.TOO_MANY_FAILURES: b"Too many failed logins.",
    Farewell.TOO_MANY_MESSAGES: b"Too many messages.",
    Farewell.TOO_LONG: b"Line or literal too long.",
    Farewell.LOGIN_TIMEOUT: b"No login in time.",
    Farewell.INJECTION: b"Nothing may follow STARTTLS before TLS is on.",
    Farewell.NOT_THIS_PROTOCOL: b"This is an IMAP server.",
    Farewell.PROXY_HEADER: b"No PROXY header is taken from your address.",
    Farewell.BAD_LINE_ENDS: b"Lines end with CR LF.",
    Farewell.SHUTDOWN: b"[UNAVAILABLE] Shutting down. Connect again.",
    Farewell.LOGGED_OUT: b"Logging out.",
    Farewell.FAULT: b"[SERVERBUG] Internal error.",
}


# RFC 3501 section 9: ATOM-CHAR, and the bracket that it leaves to responses.
_ATOM = re.compile(r"[A-Za-z0-9!#$&'+,\-./:;<=>?@^_`|~\[]+")
_OWN = ("STARTTLS", "LOGINDISABLED", "AUTH=")


def check_capability(word: str) -> None:
    """Check a word that is to be announced.

    :raises ValueError: it cannot be.
    """
    if not _ATOM.fullmatch(word):
        raise ValueError(f'"{word}" is no capability: it must be an atom (RFC 3501, section 9)')
    if word.upper().startswith(_OWN):
        raise ValueError(f'"{word}" is announced by mailroute itself when it is true: take it out')


@lru_cache
def capabilities(terms: DialogTerms, tls: bool) -> bytes:
    """Return what a client is told that it may use before it has logged in.

    :param tls: TLS that it has asked for is on.
    """
    words = ["IMAP4rev1", "LITERAL+", "SASL-IR", "ID", *terms.capabilities]
    if terms.tls_offered and not tls:
        words.append("STARTTLS")
    if tls or terms.login_allowed:
        words += (f"AUTH={name}" for name in terms.mechanisms)
    if not (tls or terms.login_allowed) or not terms.passwords:
        words.append("LOGINDISABLED")
    return " ".join(words).encode("ascii")
