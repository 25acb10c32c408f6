"""What a backend's NO means, and what of it the client may see (RFC 5530)."""

from __future__ import annotations

from mailroute.events import Reason
from mailroute.wire.imap_syntax import Status

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


def reason_of(status: Status) -> Reason:
    """Return what a tagged NO, which answers a login, means."""
    return _REASONS.get(status.code, Reason.AUTHENTICATION_FAILED)


def reply_of(status: Status) -> bytes | None:
    """Return what the client may see of it: an unknown response code is passed on with its text."""
    return None if status.code in _OWN_WORDS else status.text
