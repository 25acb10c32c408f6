"""A question in JSON, for those who are asked in it."""

from __future__ import annotations

from mailroute.events import LoginRefused, Lookup, Reason, Refusal
from mailroute.proofs import Proof


def question(lookup: Lookup, *, with_password: bool) -> dict[str, object]:
    """Return what a lookup asks, for JSON.

    :param with_password: whether what the client shows is in it, if it shows anything.
    :raises LoginRefused: JSON cannot carry that.
    """
    client = lookup.client
    asked: dict[str, object] = {
        "user": lookup.user,
        "protocol": lookup.protocol,
        "client": None if client.source is None else client.source.host,
        "session": client.session_id,
        "tls": client.tls,
    }
    shown = lookup.credentials
    if with_password and shown is not None:
        try:
            # Two names that differ are two users, and not one in two spellings.
            own = not shown.authorize_as
            asked["authenticates_as"] = lookup.user if own else shown.user.decode("utf-8")
            asked["password" if shown.proof is Proof.PASSWORD else "token"] = shown.secret.decode("utf-8")
        except UnicodeDecodeError:
            detail = "the password is no UTF-8, which JSON cannot carry"
            raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, detail)) from None
    return asked
