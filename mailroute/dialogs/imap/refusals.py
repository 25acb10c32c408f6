"""What a backend's NO means, and how much of what it says the client and the log may see (RFC 5530)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mailroute.events import Method, Reason, Refusal
from mailroute.wire.imap_syntax import read_status

MAX_SHOWN = 400
"""Bytes of a backend's text to pass on or to log."""

MIN_ECHO = 6
"""Bytes that a word must have to be taken for a piece of a secret: shorter ones occur by chance."""

_REASONS = {
    b"": Reason.AUTHENTICATION_FAILED,
    b"AUTHENTICATIONFAILED": Reason.AUTHENTICATION_FAILED,
    b"AUTHORIZATIONFAILED": Reason.AUTHORIZATION_FAILED,
    b"EXPIRED": Reason.EXPIRED,
    b"CONTACTADMIN": Reason.CONTACT_ADMIN,
    b"LIMIT": Reason.LIMIT,
    b"UNAVAILABLE": Reason.UNAVAILABLE,
    b"INUSE": Reason.UNAVAILABLE,
    b"REFERRAL": Reason.UNAVAILABLE,
    b"SERVERBUG": Reason.UNAVAILABLE,
    # The backend wants TLS from us: the client has no part in that.
    b"PRIVACYREQUIRED": Reason.MISCONFIGURED,
}

# These say something that our own words for the reason would not.
_OWN_WORDS = frozenset({b"", b"AUTHENTICATIONFAILED", b"REFERRAL", b"PRIVACYREQUIRED", b"SERVERBUG"})

_UNSHOWABLE = re.compile(rb"[\x00-\x1f\x7f]")
_WORD = re.compile(rb"[^\s\"]{%d,}" % MIN_ECHO)


def read_refusal(text: bytes, method: Method, secrets: Sequence[bytes], challenge: bytes | None) -> Refusal:
    """Turn the text of a tagged NO or BAD, which answers a login, into a refusal.

    An unknown response code is passed on to the client with its text.  The
    text of a BAD is shown to nobody: servers repeat there the command that
    they did not understand.

    :param secrets: the forms in which a secret was sent; they are taken out.
    """
    status = read_status(text)
    if status is None or status.condition != b"NO":
        return Refusal(Reason.UNAVAILABLE, "the backend did not understand the login (BAD)")
    detail = f"the backend said: {said(text, secrets)}"
    reason = _REASONS.get(status.code, Reason.AUTHENTICATION_FAILED)
    if reason is Reason.AUTHENTICATION_FAILED and method is Method.MASTER:
        # The client has been checked already: it must not be asked for its password again.
        reason = Reason.MISCONFIGURED
    passed_on = status.code not in _OWN_WORDS and method is not Method.MASTER
    reply = showable(status.text, secrets) if passed_on else None
    return Refusal(reason, detail, reply, challenge)


def said(text: bytes, secrets: Sequence[bytes] = ()) -> str:
    """Return what the backend said, for the log."""
    return showable(text, secrets).decode("utf-8", "backslashreplace")


def showable(text: bytes, secrets: Sequence[bytes] = ()) -> bytes:
    """Return the text without control characters, and without any secret or a longer piece of one."""
    if secrets:
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            text = text.replace(secret, b"(secret)")

        def hide(word: re.Match[bytes]) -> bytes:
            return b"(secret)" if any(word[0] in secret for secret in secrets) else word[0]

        text = _WORD.sub(hide, text)
    return _UNSHOWABLE.sub(b"?", text)[:MAX_SHOWN]
