"""What a backend's NO or BYE to a login means, and what of it the client may see (RFC 5804 section 1.3)."""

from __future__ import annotations

from mailroute.events import Reason
from mailroute.wire.sieve_syntax import Reply

_REASONS = {
    # Site policy refuses the mechanism for this account: the client may have another.
    b"AUTH-TOO-WEAK": Reason.AUTHORIZATION_FAILED,
    # The backend wants TLS from us: the client has no part in that.
    b"ENCRYPT-NEEDED": Reason.MISCONFIGURED,
    b"REFERRAL": Reason.UNAVAILABLE,
    b"TRYLATER": Reason.UNAVAILABLE,
    b"QUOTA": Reason.LIMIT,
}

# The texts of these would tell whether the account exists, or are not for the client.
_OWN_WORDS = frozenset({b"", b"ENCRYPT-NEEDED", b"REFERRAL", b"TRANSITION-NEEDED"})


def read_refusal(reply: Reply) -> tuple[Reason, bytes | None]:
    """Return what a refusal means, and what the client may see of it, as `replies` has it.

    Of a hierarchical code only the first level counts.  An unknown code is
    passed on with its text.
    """
    code = reply.code.partition(b"/")[0]
    # A backend that says goodbye without a code has not looked at the password.
    otherwise = Reason.UNAVAILABLE if reply.condition == b"BYE" else Reason.AUTHENTICATION_FAILED
    if code in _OWN_WORDS:
        return _REASONS.get(code, otherwise), None
    return _REASONS.get(code, otherwise), b"(%s) %s" % (reply.code, reply.text)
