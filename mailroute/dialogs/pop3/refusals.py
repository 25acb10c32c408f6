"""What a backend's -ERR means, and what of it the client may see (RFC 2449 section 8, RFC 3206)."""

from __future__ import annotations

import re

from mailroute.events import Reason

_CODE = re.compile(rb"\[([^\]\s]*)[^\]]*\]")

_REASONS = {
    b"SYS/TEMP": Reason.UNAVAILABLE,
    b"SYS/PERM": Reason.CONTACT_ADMIN,
    b"IN-USE": Reason.LIMIT,
    b"LOGIN-DELAY": Reason.LIMIT,
}

# The texts of these would tell whether the account exists.
_OWN_WORDS = frozenset({b"", b"AUTH"})


def read_refusal(text: bytes, *, tells_wrong_passwords: bool) -> tuple[Reason, bytes | None]:
    """Return what the text of a -ERR, which answers a login, means, and what the client may see of it.

    An unknown response code is passed on with its text.

    :param tells_wrong_passwords: the backend has the capability AUTH-RESP-CODE (RFC 3206), with
        which what bears no ``[AUTH]`` is about something else, such as a limit of Dovecot 2.4's.
    """
    match = _CODE.match(text)
    code = match[1].upper() if match is not None else b""
    if not code and tells_wrong_passwords:
        return Reason.UNAVAILABLE, text or None
    return _REASONS.get(code, Reason.AUTHENTICATION_FAILED), None if code in _OWN_WORDS else text
