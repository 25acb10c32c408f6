"""Tokens from the server that gives them out (RFC 6749 sections 4.4, 5 and 6)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Protocol, TypeGuard

from attrs import evolve, field, frozen

from mailroute.events import LoginRefused, Reason, Refusal
from mailroute.tokens.files import Record

MARGIN = 60.0
"""Seconds before a token expires from which on it is not used: clocks differ, and a login takes its time.
Of a token that is good for less than two of these, half of its life is used."""

LIFETIME = 300.0
"""Seconds that a token is good for if the server does not say."""

MAX_LIFETIME = 86400.0
"""Seconds for which a token is used, whatever the server says."""

MAX_TOKEN = 10240
"""Bytes of a token: with a user's name and in base64, it is a SASL message that servers take."""

# RFC 6750 section 2.1; what RFC 6749 appendix A.17 allows of a refresh token is more.
_ACCESS = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
_REFRESH = re.compile(r"[\x20-\x7e]+")
_ERROR = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,64}")


_REMEDIES = {
    "invalid_grant": "the user has to get a new refresh token",
    "invalid_client": "correct client_id and client_secret_file",
    "unauthorized_client": "have the server allow client_id this grant",
    "unsupported_grant_type": "correct token_url, or use another grant",
    "invalid_scope": "correct scope",
}
"""What to do about the errors of RFC 6749 section 5.2."""


class GrantInvalid(LoginRefused):
    """The server says that a user's refresh token is no good (RFC 6749 section 5.2): it will say so again."""


class Status(Protocol):
    """An HTTP server's answer."""

    @property
    def status(self) -> int:
        """Its status."""

    @property
    def content(self) -> bytes:
        """Its body."""


class Submitter(Protocol):
    """Sends forms (`mailroute.web.Web`)."""

    async def submit(self, url: str, headers: Mapping[str, str], form: Mapping[str, str]) -> Status:
        """Send one, and return the answer.

        :raises LoginRefused: there is none now.
        """


@frozen
class Grant:
    """How tokens are asked for: ``client_credentials``, or with each user's refresh token.

    :param headers: say who we are.
    :param form: what goes into every request.
    :param personal: each user has a token of its own, and a refresh token to get it with.
    :param seconds: the time of day.
    """

    web: Submitter
    url: str
    headers: Mapping[str, str] = field(repr=False)
    form: Mapping[str, str] = field(repr=False)
    personal: bool
    seconds: Callable[[], float]

    async def ask(self, record: Record) -> Record:
        """Return the next tokens of whoever has these.

        :raises GrantInvalid: there are none with this refresh token.
        :raises LoginRefused: there are none, for now or until an operator does something.
        """
        form = dict(self.form)
        if self.personal:
            form |= {"grant_type": "refresh_token", "refresh_token": record.refresh}
        else:
            form["grant_type"] = "client_credentials"
        # From before it is asked: the token's life has begun when the answer comes.
        asked = self.seconds()
        try:
            answer = await self.web.submit(self.url, self.headers, form)
        except LoginRefused as refused:
            # Another backend may be one of another provider's.
            raise LoginRefused(evolve(refused.refusal, unreached=True)) from None
        found = _document(answer.content)
        if answer.status != 200:
            raise self._refused(answer.status, found)
        return self._read(found, record, asked)

    def _read(self, found: Mapping[str, object], record: Record, asked: float) -> Record:
        token, kind = found.get("access_token"), found.get("token_type", "bearer")
        if not isinstance(token, str) or len(token) > MAX_TOKEN or not _ACCESS.fullmatch(token):
            raise self._unavailable("has sent no token that could be used")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise self._unavailable("has sent a token that is no bearer token")
        lifetime = _lifetime(found.get("expires_in", LIFETIME))
        until = asked + lifetime - min(MARGIN, lifetime / 2)
        record = evolve(record, access=token, until=until)
        rotated = found.get("refresh_token")
        if self.personal and is_refresh_token(rotated):
            record = evolve(record, refresh=rotated)
        return record

    def _refused(self, status: int, found: Mapping[str, object]) -> LoginRefused:
        """Return the refusal; of what the server says, only its word for the error is shown."""
        error = found.get("error")
        word = error if isinstance(error, str) and _ERROR.fullmatch(error) else "no reason"
        if status >= 500 or status in (408, 429) or word == "temporarily_unavailable":
            return self._unavailable(f"answered with status {status} ({word})")
        if 400 <= status < 500:
            dead = self.personal and word == "invalid_grant"
            remedy = _REMEDIES.get(word, "correct [backend.NAME.oauth2], such as its token_url")
            detail = f"{self.url} gives no token: status {status} ({word}): {remedy}"
            return (GrantInvalid if dead else LoginRefused)(Refusal(Reason.MISCONFIGURED, detail))
        return self._unavailable(f"answered with status {status}")

    def _unavailable(self, what: str) -> LoginRefused:
        return LoginRefused(Refusal(Reason.UNAVAILABLE, f"{self.url} {what}", unreached=True))


def is_refresh_token(token: object) -> TypeGuard[str]:
    """Tell whether it may be a refresh token."""
    return isinstance(token, str) and len(token) <= MAX_TOKEN and _REFRESH.fullmatch(token) is not None


def _lifetime(said: object) -> float:
    try:
        seconds = float(said)  # type: ignore[arg-type]  # some servers send it as a string
    except (TypeError, ValueError, OverflowError):
        return LIFETIME
    return min(max(seconds, 0.0), MAX_LIFETIME) if seconds == seconds else LIFETIME


def _document(content: bytes) -> Mapping[str, object]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
