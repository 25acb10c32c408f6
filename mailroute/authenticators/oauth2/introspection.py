"""Tokens that the server knows which has given them out (RFC 7662)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from mailroute.authenticators.oauth2.authenticator import BadToken, Claims
from mailroute.events import LoginRefused, Reason, Refusal
from mailroute.web import Web, basic


class Introspection:
    """Asks the server about each token.

    :param client: our name and password there.
    :param issuer: who must have issued a token, if the server says who has; None: anybody whom it knows.
    :param audience: for whom a token must be; empty: for anybody.
    :param leeway: seconds that clocks may differ.
    :param seconds: the time of day.
    """

    def __init__(
        self,
        web: Web,
        url: str,
        client: tuple[bytes, bytes],
        *,
        issuer: str | None,
        audience: Sequence[str],
        leeway: float,
        seconds: Callable[[], float],
    ) -> None:
        self._web = web
        self._url = url
        self._authorization = basic(*client)
        self._issuer = issuer
        self._audience = frozenset(audience)
        self._leeway = leeway
        self._seconds = seconds

    async def claims(self, token: str) -> Claims:
        """Return what the server says of a token (`Validator.claims`)."""
        form = {"token": token, "token_type_hint": "access_token"}
        answer = await self._web.post(self._url, self._authorization, form)
        try:
            claims = json.loads(answer)
            active = claims["active"]
        except (ValueError, TypeError, KeyError, RecursionError):
            detail = f"{self._url} has not answered as RFC 7662 wants it"
            raise LoginRefused(Refusal(Reason.UNAVAILABLE, detail)) from None
        if active is not True:
            raise BadToken("the server does not take the token")
        self._check(claims)
        found: Claims = claims
        return found

    def _check(self, claims: Claims) -> None:
        now = self._seconds()
        over, begins = _number(claims, "exp", now), _number(claims, "nbf", now)
        if not begins - self._leeway <= now <= over + self._leeway:
            raise BadToken("the token's time has not come, or is over")
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise BadToken("the token is another issuer's")
        said = claims.get("aud")
        audience = {each for each in (said if isinstance(said, list) else [said]) if isinstance(each, str)}
        if self._audience and not self._audience & audience:
            raise BadToken("the token is for somebody else")

    def __str__(self) -> str:
        return f"the server at {self._url}"


def _number(claims: Claims, key: str, otherwise: float) -> float:
    value = claims.get(key, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadToken(f"the token's {key} is no time")
    return value
