"""The keys that sign tokens (RFC 7517), kept, and fetched again when a token names one that is not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from attrs import field, frozen
from jwt import PyJWK
from jwt.exceptions import PyJWTError
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailroute.events import LoginRefused, Reason, Refusal
from mailroute.sources import BadOption, SourceContext
from mailroute.web import Web

MAX_KEYS = 100
"""Keys of one authority; the largest ones have a dozen."""


FILE_TTL = 10.0
"""Seconds after which a file of keys is read again when a token comes; for an unknown key after a tenth."""


@frozen
class SigningKey:
    """A key: its id, its kind (RSA, EC, OKP or oct), and the one signature that it is for, if it says so."""

    id: str | None
    kind: str
    algorithm: str | None
    key: Any = field(repr=False)

    def makes(self, kind: str, algorithm: str) -> bool:
        """Tell whether it may have made such a signature."""
        return self.kind == kind and self.algorithm in (None, algorithm)


KeysById = Mapping[str | None, tuple[SigningKey, ...]]


class Fetcher(Protocol):
    """Brings the document that has the keys."""

    async def fetch(self) -> bytes:
        """Return it.

        :raises LoginRefused: it cannot be had now.
        """


class WebKeys:
    """Keys at an address."""

    def __init__(self, web: Web, url: str) -> None:
        self._web = web
        self._url = url

    async def fetch(self) -> bytes:
        """Return the document (`Fetcher.fetch`)."""
        return await self._web.get(self._url)

    def __str__(self) -> str:
        return self._url


class FileKeys:
    """Keys in a file; ``first`` are those that it had at the start, when somebody could read it.

    :raises BadOption: it cannot be read, or is no set of keys.
    """

    def __init__(self, path: Path, context: SourceContext) -> None:
        self._path = path
        self._in_thread = context.in_thread
        try:
            self.first = read(context.copies.read(path))
        except OSError as error:
            raise BadOption("jwks", f"cannot read {path}: {error.strerror or error}") from None
        except ValueError as error:
            raise BadOption("jwks", f"{path} {error}") from None

    async def fetch(self) -> bytes:
        """Return the file's content (`Fetcher.fetch`)."""
        try:
            return await self._in_thread(self._path.read_bytes)
        except OSError as error:
            detail = f"cannot read {self._path}: {error.strerror or error}"
            raise LoginRefused(Refusal(Reason.UNAVAILABLE, detail)) from None

    def __str__(self) -> str:
        return str(self._path)


def read(document: bytes) -> KeysById:
    """Return the keys of a set that can sign, by their ids.

    :raises ValueError: it is no set of keys, or has none that can be used; no key is repeated.
    """
    try:
        found = json.loads(document)
        listed = found["keys"]
        if not isinstance(listed, list):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError('is no set of keys (JSON with a list "keys", RFC 7517)') from None
    if len(listed) > MAX_KEYS:
        raise ValueError(f"has more than {MAX_KEYS} keys")
    keys: dict[str | None, tuple[SigningKey, ...]] = {}
    for each in listed:
        key = _key(each)
        if key is not None:
            keys[key.id] = (*keys.get(key.id, ()), key)
    if not keys:
        raise ValueError("has no key that could have signed a token")
    return keys


def _key(description: Any) -> SigningKey | None:
    """Return a key; None for one that is for something else, or of a kind that is not known here."""
    if not isinstance(description, dict) or description.get("use", "sig") != "sig":
        return None
    key_id, algorithm = description.get("kid"), description.get("alg")
    try:
        key = PyJWK(description).key
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    return SigningKey(key_id if isinstance(key_id, str) else None, description["kty"], algorithm, key)


class Keys:
    """Has the keys of one authority.

    :param ttl: seconds after which they are fetched again.
    :param interval: seconds at least between two fetches.
    :param first: the keys to begin with.
    """

    _log = Logger()

    def __init__(
        self,
        fetcher: Fetcher,
        context: SourceContext,
        ttl: float,
        interval: float,
        first: KeysById = MappingProxyType({}),
    ) -> None:
        self._fetcher = fetcher
        self._clock = context.clock
        self._ttl = ttl
        self._interval = interval
        self._keys = first
        self._fetched = self._tried = float("-inf")
        self._fault = "they have not been fetched yet"
        self._waiting: list[Deferred[None]] | None = None

    async def of(self, key_id: str | None) -> tuple[SigningKey, ...]:
        """Return the keys that may be meant by an id, or all if there is no id.

        :raises LoginRefused: there are no keys at all yet, and none can be had.
        """
        unknown = not self._keys or (key_id is not None and not self._meant(key_id))
        if unknown or self._clock.seconds() >= self._fetched + self._ttl:
            self._begin_if_due()
        # Who has its key does not wait for what is fetched for others.
        if unknown:
            await self._turn()
        if not self._keys:
            detail = f"there are no keys for tokens: {self._fault}"
            raise LoginRefused(Refusal(Reason.UNAVAILABLE, detail))
        return self._meant(key_id)

    async def newer(self, key_id: str | None) -> tuple[SigningKey, ...]:
        """Return the keys that may be meant when those of `of` have not fitted: none unless they are new."""
        before = self._keys
        self._begin_if_due()
        await self._turn()
        return () if self._keys is before else self._meant(key_id)

    def _meant(self, key_id: str | None) -> tuple[SigningKey, ...]:
        if key_id is None:
            return tuple(key for keys in self._keys.values() for key in keys)
        # An id is a hint (RFC 7515 section 4.1.4): a key need not have one.
        return (*self._keys.get(key_id, ()), *self._keys.get(None, ()))

    async def _turn(self) -> None:
        """Wait for the fetch that is under way, if one is."""
        if self._waiting is not None:
            turn: Deferred[None] = Deferred()
            self._waiting.append(turn)
            await turn

    def _begin_if_due(self) -> None:
        now = self._clock.seconds()
        if now >= self._tried + self._interval:
            self._begin(now)

    def _begin(self, now: float) -> None:
        """Fetch the keys, whoever of those that wait for them stays."""
        self._tried = now
        self._waiting = []
        Deferred.fromCoroutine(self._renew(now)).addErrback(self._broken).addBoth(self._done)

    async def _renew(self, now: float) -> None:
        try:
            self._keys = read(await self._fetcher.fetch())
            self._fetched = now
        except LoginRefused as error:
            self._failed(error.refusal.detail)
        except ValueError as error:
            self._failed(f"{self._fetcher} {error}")

    def _failed(self, why: str) -> None:
        self._fault = why
        kept = "those that there are stay" if self._keys else "there are none yet"
        self._log.error("no new keys for tokens: {why}; {kept}", why=why, kept=kept)

    def _broken(self, failure: Failure) -> None:
        self._fault = failure.type.__name__ if failure.type is not None else "it failed"
        self._log.failure("cannot fetch {keys}", failure=failure, keys=str(self._fetcher))

    def _done(self, _: object) -> None:
        waiting, self._waiting = self._waiting, None
        for each in waiting or ():
            if not each.called:  # else its client has left
                each.callback(None)

    def __str__(self) -> str:
        return str(self._fetcher)
