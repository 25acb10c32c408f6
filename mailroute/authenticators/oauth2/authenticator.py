"""Whose a bearer token is, and what a client is told whose token is not taken (RFC 7628)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted.application.service import IService, MultiService
from zope.interface import implementer

from mailroute.events import LoginRefused, Lookup, Reason, Refusal
from mailroute.interfaces import IAuthenticator
from mailroute.proofs import Proof
from mailroute.wire.sasl import SaslError, bearer_token

Claims = Mapping[str, Any]


class BadToken(Exception):
    """A token is not to be taken; the text is for the log, and does not repeat it."""


class Validator(Protocol):
    """Knows whether tokens are good."""

    async def claims(self, token: str) -> Claims | None:
        """Return what a token says, ``None`` if it is for others to check.

        :raises BadToken: it is not good.
        :raises LoginRefused: that cannot be known now.
        """


@implementer(IAuthenticator)
class TokenAuthenticator(MultiService):
    """Takes users' names from the claims of tokens, and runs what checks them, if that has to run.

    :param normalise: brings a name into its one form.
    :param claim: which claim is the name.
    :param scope: what a token must be good for.
    :param openid_configuration: where clients find out how to get a token.
    """

    proofs = frozenset({Proof.TOKEN})

    def __init__(
        self,
        validator: Validator,
        normalise: Callable[[str], str],
        *,
        claim: str,
        scope: Sequence[str],
        openid_configuration: str | None,
    ) -> None:
        super().__init__()
        self._validator = validator
        if IService.providedBy(validator):
            IService(validator).setServiceParent(self)
        self._normalise = normalise
        self._claim = claim
        self._scope = tuple(scope)
        told = {"scope": " ".join(scope), "openid-configuration": openid_configuration}
        self._told = {key: value for key, value in told.items() if value}

    async def authenticate(self, lookup: Lookup) -> str | None:
        """Return the name that a good token has in its claim (`IAuthenticator.authenticate`).

        A client that names a user itself must have that user's token.
        """
        assert lookup.credentials is not None  # noqa: S101 - the chain asks with what a client has shown
        try:
            token = bearer_token(lookup.credentials.secret)
            claims = await self._validator.claims(token)
            if claims is None:
                return None
            name = self._name(claims)
        except (SaslError, BadToken) as error:
            raise self._refused("invalid_token", str(error)) from None
        if not set(self._scope) <= scopes(claims):
            raise self._refused("insufficient_scope", "the token is not good for this")
        if lookup.user and lookup.user != name:
            detail = f"the token is {name}'s"
            raise LoginRefused(Refusal(Reason.AUTHORIZATION_FAILED, detail))
        return name

    def _name(self, claims: Claims) -> str:
        name = claims.get(self._claim)
        if not isinstance(name, str) or not name:
            raise BadToken(f"the token has no claim {self._claim}")
        if self._claim == "email" and claims.get("email_verified") in (False, "false"):
            # Anybody may have claimed that address (OpenID Connect Core 1.0 section 5.7).
            raise BadToken("the token's email is not verified")
        return self._normalise(name)

    def _refused(self, status: str, detail: str) -> LoginRefused:
        document = json.dumps({"status": status, **self._told}, separators=(",", ":"))
        return LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, detail, challenge=document.encode("utf-8")))

    def __str__(self) -> str:
        return f"tokens are checked by {self._validator}; the claim {self._claim} is the user's name"


def scopes(claims: Claims) -> set[str]:
    """Return what a token is good for (RFC 8693 section 4.2; some write ``scp``, or a list)."""
    said = claims.get("scope", claims.get("scp", ""))
    if isinstance(said, str):
        return set(said.split())
    return {each for each in said if isinstance(each, str)} if isinstance(said, list) else set()
