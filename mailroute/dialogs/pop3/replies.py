"""What a POP3 client is told, in mailroute's own words, with the codes of RFC 2449 and 3206."""

from __future__ import annotations

import re
from functools import lru_cache

from mailroute.events import DialogTerms, Farewell, Reason

# PRIVACY_REQUIRED has no code: [AUTH] would tell the client that its password is wrong.
REPLIES = {
    Reason.AUTHENTICATION_FAILED: b"[AUTH] Authentication failed.",
    Reason.AUTHORIZATION_FAILED: b"[AUTH] Not allowed to open this account.",
    Reason.UNAVAILABLE: b"[SYS/TEMP] The mail server cannot be reached. Try again later.",
    Reason.MISCONFIGURED: b"[SYS/PERM] The mail service is not set up correctly. Tell its operator.",
    Reason.LIMIT: b"[IN-USE] Too many logins. Try again later.",
    Reason.EXPIRED: b"[AUTH] The password has expired.",
    Reason.CONTACT_ADMIN: b"[SYS/PERM] The account is not usable. Ask its operator.",
    Reason.PRIVACY_REQUIRED: b"Logins need TLS. Use STLS first.",
}

FAREWELLS = {
    Farewell.TOO_MANY: b"-ERR [SYS/TEMP] Too many connections. Try again later.",
    Farewell.NO_DESCRIPTORS: b"-ERR [SYS/TEMP] Too many connections. Try again later.",
    Farewell.TOO_MANY_FROM_ADDRESS: b"-ERR [SYS/TEMP] Too many connections from your address.",
    Farewell.TOO_MANY_COMMANDS: b"-ERR Too many commands before login.",
    Farewell.TOO_MANY_BAD_COMMANDS: b"-ERR Too many bad commands.",
    Farewell.TOO_MANY_FAILURES: b"-ERR [AUTH] Too many failed logins.",
    Farewell.TOO_MANY_MESSAGES: b"-ERR Too many messages.",
    Farewell.TOO_LONG: b"-ERR Line too long.",
    Farewell.LOGIN_TIMEOUT: b"-ERR No login in time.",
    Farewell.INJECTION: b"-ERR Nothing may follow STLS before TLS is on.",
    Farewell.NOT_THIS_PROTOCOL: b"-ERR This is a POP3 server.",
    Farewell.PROXY_HEADER: b"-ERR No PROXY header is taken from your address.",
    Farewell.BAD_LINE_ENDS: b"-ERR Lines end with CR LF.",
    Farewell.SHUTDOWN: b"-ERR [SYS/TEMP] Shutting down. Connect again.",
    Farewell.LOGGED_OUT: b"+OK Logging out.",
    Farewell.FAULT: b"-ERR [SYS/TEMP] Internal error.",
}


_ALWAYS = ("TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING")
_OWN = frozenset({"CAPA", "STLS", "USER", "SASL", "XCLIENT", *_ALWAYS})

MAX_CAPABILITY = 510
"""Bytes in a line of the answer to CAPA: RFC 2449 section 3 has 512, its end included."""

# RFC 2449 section 3: a name of all that is visible but dots, and its arguments.
_CAPABILITY = re.compile(r"([!-,\-/-~]+)(?: [!-~]+)*")


def check_capability(line: str) -> None:
    """Check a line that is to be announced.

    :raises ValueError: it cannot be.
    """
    found = _CAPABILITY.fullmatch(line)
    if found is None or len(line) > MAX_CAPABILITY:
        raise ValueError(
            f'"{line}" is no capability: it must be a name without a dot, and what belongs to it '
            "with single spaces between (RFC 2449, section 3)"
        )
    if found[1].upper() in _OWN:
        raise ValueError(f'"{line}" is for mailroute itself to announce: take it out')


@lru_cache
def capabilities(terms: DialogTerms, tls: bool) -> bytes:
    """Return the answer to CAPA (RFC 2449), less the last line end.

    TOP and UIDL, which come after the login, are there because clients decide
    by them before it; whatever else the backends have is configured.

    :param tls: TLS that the client has asked for is on.
    """
    lines = ["+OK", "CAPA", *_ALWAYS, *terms.capabilities]
    if terms.tls_offered and not tls:
        lines.append("STLS")
    if tls or terms.login_allowed:
        if terms.passwords:
            lines.append("USER")
        if terms.mechanisms:
            lines.append(" ".join(["SASL", *terms.mechanisms]))
    return "\r\n".join([*lines, "."]).encode("ascii")
