"""Tokens that the server knows which has given them out (RFC 7662)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any, Protocol

from attrs import field, frozen
from twisted.internet.defer import Deferred

from mailroute.authenticators.oauth2.authenticator import BadToken, Claims
from mailroute.events import LoginRefused
from mailroute.sources import SourceContext
from mailroute.sources.context import Unanswered
from mailroute.sources.guard import Guard
from mailroute.sources.options import GuardOptions
from mailroute.web import MAX_ASKED, basic

MAX_KEPT = 4096
"""Bytes of an answer that is kept: those of the usual servers have some hundred."""


@frozen
class Known:
    """What a server says of a token that it takes, and when that is over at the latest (seconds)."""

    document: bytes = field(repr=False)
    end: float

    @property
    def claims(self) -> Claims:
        """What it says."""
        claims: Claims = json.loads(self.document)
        return claims


class Asks(Protocol):
    """Sends forms (`mailroute.web.Web`), without a bound on the time."""

    async def post(self, url: str, headers: Mapping[str, str], form: Mapping[str, str]) -> bytes:
        """Send one, and return the answer.

        :raises LoginRefused: it cannot be had now.
        """


class Introspection(Guard[Known]):
    """Asks the server about each token, and spares it (RFC 7662 section 4 lets answers be kept).

    :param client: our name and password there.
    :param issuer: who must have issued a token, if the server says who has; None: anybody whom it knows.
    :param audience: for whom a token must be; empty: for anybody.
    :param leeway: seconds that clocks may differ.
    :param seconds: the time of day.
    """

    def __init__(
        self,
        web: Asks,
        url: str,
        client: tuple[bytes, bytes],
        options: GuardOptions,
        context: SourceContext,
        *,
        issuer: str | None,
        audience: Sequence[str],
        leeway: float,
    ) -> None:
        # Not more than `Web` takes: to be told so by that would look like the server's fault.
        super().__init__(options, context, flights=MAX_ASKED, end=lambda known: known.end)
        self._web = web
        self._url = url
        self._authorization = basic(*client)
        self._issuer = issuer
        self._audience = frozenset(audience)
        self._leeway = leeway
        self._seconds: Callable[[], float] = context.clock.seconds

    async def claims(self, token: str) -> Claims:
        """Return what the server says of a token (`Validator.claims`)."""
        answer = self.ask(self.hidden(token.encode("ascii")), partial(self._introspect, token))
        known = await answer if isinstance(answer, Deferred) else answer
        if known is None:
            raise BadToken("the server does not take the token")
        # Also of an answer that is kept: meanwhile the token's time may be over.
        self._check(known.claims)
        return known.claims

    async def _introspect(self, token: str) -> Known | None:
        form = {"token": token, "token_type_hint": "access_token"}
        try:
            answer = await self._web.post(self._url, self._authorization, form)
        except LoginRefused as refused:
            raise Unanswered(refused.refusal.detail) from None
        try:
            claims = json.loads(answer)
            active = claims["active"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Unanswered(f"{self._url} has not answered as RFC 7662 wants it") from None
        if active is not True:
            return None
        return Known(answer, -inf if len(answer) > MAX_KEPT else _end(claims))

    def _check(self, claims: Claims) -> None:
        now = self._seconds()
        over, begins = _time(claims, "exp", now), _time(claims, "nbf", now)
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


def _end(claims: Claims) -> float:
    """Return when an answer is of no use any more."""
    try:
        return _time(claims, "exp", inf)
    except BadToken:
        return -inf


def _time(claims: Mapping[str, Any], key: str, otherwise: float) -> float:
    value = claims.get(key, otherwise)
    try:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        return float(value)
    except (TypeError, OverflowError):
        raise BadToken(f"the token's {key} is no time") from None
