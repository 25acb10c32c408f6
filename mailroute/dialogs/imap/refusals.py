"""What a backend's NO means, and how much of it the client may see (RFC 5530)."""

from __future__ import annotations

import re

from mailroute.events import LoginOrder, Method, Reason, Refusal
from mailroute.wire import sasl
from mailroute.wire.imap_syntax import read_status

MAX_SHOWN = 400
"""Bytes of a backend's text to pass on or to log."""

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


def read_refusal(text: bytes, order: LoginOrder, challenge: bytes | None) -> Refusal:
    """Turn the text of a tagged NO or BAD into a refusal.

    Secrets that the backend repeats are taken out of it; an unknown response
    code is passed on to the client with its text.
    """
    shown = _without_secrets(_UNSHOWABLE.sub(b"?", text), order)[:MAX_SHOWN]
    detail = "the backend said: " + shown.decode("utf-8", "backslashreplace")
    status = read_status(shown)
    if status is None or status.condition != b"NO":
        return Refusal(Reason.UNAVAILABLE, detail)
    reason = _REASONS.get(status.code, Reason.AUTHENTICATION_FAILED)
    if reason is Reason.AUTHENTICATION_FAILED and order.method is Method.MASTER:
        # The client has been checked already: it must not be asked for its password again.
        reason = Reason.MISCONFIGURED
    passed_on = status.code not in _OWN_WORDS and order.method is not Method.MASTER
    return Refusal(reason, detail, status.text if passed_on else None, challenge)


def _without_secrets(text: bytes, order: LoginOrder) -> bytes:
    for credentials in (order.credentials, order.master):
        if credentials is None or not credentials.secret:
            continue
        for form in (credentials.secret, sasl.encode(credentials.secret)):
            text = text.replace(form, b"(secret)")
    return text
