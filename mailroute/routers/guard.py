"""Around every slow source: it is asked seldom, once at a time, not for long, and not while it is down."""

from __future__ import annotations

import random
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Generic, TypeVar

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.events import LoginRefused, Lookup, Reason, Refusal, Route
from mailroute.interfaces import IRouter
from mailroute.sources.context import BadAnswer, SourceContext
from mailroute.sources.counts import Counts, Durations
from mailroute.sources.options import SlowOptions

MAX_FLIGHTS = 1000
"""Questions to one source at a time; whoever comes on top of that is told to come again."""

JITTER = 0.1
"""The part by which durations are shortened at random, so that what began together does not end together."""

_log = Logger(namespace="mailroute.routers")

Ask = Callable[[Lookup], Awaitable[Route | None]]


class Unanswered(Exception):
    """The source did not answer; the text is for the log, and holds no secret."""


_Answer = TypeVar("_Answer")
_Flight = list[Deferred[Route | None]]
_Key = tuple[str, str, bytes]


@frozen
class _Known(Generic[_Answer]):
    """An answer that is kept; times are the clock's."""

    answer: _Answer
    since: float
    until: float


class _Cache(Generic[_Answer]):
    """Keeps answers, also beyond their time; the one used longest ago goes first.

    :param size: how many.
    :param ttl: seconds for which one is fresh; 0: none is kept.
    """

    def __init__(self, size: int, ttl: float) -> None:
        self._size = size
        self._ttl = ttl
        self._known: OrderedDict[_Key, _Known[_Answer]] = OrderedDict()

    def get(self, key: _Key) -> _Known[_Answer] | None:
        """Return what is known, however old."""
        return self._known.get(key)

    def fresh(self, key: _Key, now: float) -> _Known[_Answer] | None:
        """Return what is known, if it is fresh."""
        known = self._known.get(key)
        if known is None or now >= known.until:
            return None
        self._known.move_to_end(key)
        return known

    def keep(self, key: _Key, answer: _Answer, now: float) -> None:
        """Keep an answer."""
        if self._ttl:
            self._known[key] = _Known(answer, now, now + self._ttl * _shortened())
            if len(self._known) > self._size:
                self._known.popitem(last=False)

    def forget(self, key: _Key) -> None:
        """Forget an answer."""
        self._known.pop(key, None)

    def __len__(self) -> int:
        return len(self._known)


@implementer(IRouter)
class Guard(Service):
    """A router that asks a slow source, and spares it.

    What the source said definitely is kept: a route, that there is none, or a
    refusal; "try again later" and an answer that makes no sense are not.

    :param ask: asks the source; it may raise anything, which counts as a failure of the source unless it is
        `LoginRefused` or `BadAnswer`.  It is cancelled when it takes too long.
    :param by_password: the answer depends on the credentials of the lookup, which are part of what it is kept
        for, by a keyed hash.
    """

    def __init__(
        self, ask: Ask, options: SlowOptions, context: SourceContext, *, by_password: bool = False
    ) -> None:
        self.counts = Counts()
        self.durations: Durations | None = None
        """How long the source took each time it was asked; None unless somebody wants to know."""
        self.label = context.label
        self._ask = ask
        self._options = options
        self._clock = context.clock
        self._by_password = by_password
        ttl, negative_ttl = options.cache_ttl, options.negative_ttl
        if by_password and "cache_ttl" not in options.model_fields_set:
            # A password that was changed is to count at once, unless the operator says otherwise.
            ttl = negative_ttl = 0.0
        self._salt = secrets.token_bytes(16)
        # Apart, so that guesses at names do not drive routes out.
        self._routes: _Cache[Route] = _Cache(options.cache_size, ttl)
        self._others: _Cache[Refusal | None] = _Cache(options.cache_size, negative_ttl)
        self._stopping = False
        self._flights: dict[_Key, _Flight] = {}
        self._running: set[Deferred[Route | None]] = set()
        self._breaker = _Breaker(options.breaker_failures, options.breaker_pause, self.label)

    def stopService(self) -> Deferred[None] | None:
        """Give up what is asked, and say how it went."""
        super().stopService()
        self._stopping = True
        for question in list(self._running):
            question.cancel()
        _log.info("{source}: {counts}", source=self.label, counts=str(self.counts))
        return None

    @property
    def under_way(self) -> int:
        """How many questions the source has not answered yet."""
        return len(self._flights)

    @property
    def left_alone(self) -> bool:
        """Whether the source has failed too often lately to be asked."""
        return self._breaker.is_open

    @property
    def known(self) -> tuple[int, int]:
        """How many routes are in the cache, and how many other answers."""
        return len(self._routes), len(self._others)

    def route(self, lookup: Lookup) -> Route | Deferred[Route | None] | None:
        """Return the route (`IRouter.route`): at once if it is known."""
        key = self._key(lookup)
        now = self._clock.seconds()
        known = self._routes.fresh(key, now) or self._others.fresh(key, now)
        if known is not None:
            self.counts.cached += 1
            _note(lookup, f"from the cache, {now - known.since:.0f} s old")
            if isinstance(known.answer, Refusal):
                raise LoginRefused(known.answer)
            return known.answer
        flight = self._flights.get(key)
        if flight is not None:
            self.counts.joined += 1
            _note(lookup, "shared with a question under way")
            return self._join(flight)
        if not self._breaker.lets_through(now):
            self.counts.spared += 1
            return self._instead(key, "it has failed too often lately, and is left alone")
        if len(self._flights) >= MAX_FLIGHTS:
            self.counts.spared += 1
            return self._instead(key, f"it is asked {MAX_FLIGHTS} questions already")
        _note(lookup, "fresh")
        return self._fly(key, lookup, now)

    def _key(self, lookup: Lookup) -> _Key:
        secret = b""
        if self._by_password and lookup.credentials is not None:
            shown = lookup.credentials
            digest = blake2b(key=self._salt, digest_size=16)
            for part in (shown.mechanism.encode(), shown.user, shown.authorize_as, shown.secret):
                digest.update(len(part).to_bytes(4) + part)
            secret = digest.digest()
        return lookup.user, lookup.protocol, secret

    # --- asking ---

    def _fly(self, key: _Key, lookup: Lookup, now: float) -> Deferred[Route | None]:
        """Ask the source, for whoever wants to know."""
        flight: _Flight = []
        self._flights[key] = flight
        # Before it is asked, since the answer may be there at once.
        waiting = self._join(flight)
        self.counts.asked += 1
        question = Deferred.fromCoroutine(_coroutine(self._ask, lookup))
        self._running.add(question)
        question.addTimeout(self._options.timeout, self._clock)
        question.addBoth(self._landed, key, flight, now)
        question.addBoth(lambda _: self._running.discard(question))
        return waiting

    @staticmethod
    def _join(flight: _Flight) -> Deferred[Route | None]:
        # Whoever leaves does not take the answer from the others, nor from the cache.
        waiting: Deferred[Route | None] = Deferred(lambda left: flight.remove(left))
        flight.append(waiting)
        return waiting

    def _landed(self, outcome: Route | Failure | None, key: _Key, flight: _Flight, began: float) -> None:
        self._flights.pop(key, None)
        if self.durations is not None:
            self.durations.add(self._clock.seconds() - began)
        if not isinstance(outcome, Failure):
            self._breaker.succeeded()
            self._keep(key, outcome)
        elif isinstance(outcome.value, LoginRefused):
            self._breaker.succeeded()
            self._keep(key, outcome.value.refusal)
        elif isinstance(outcome.value, BadAnswer):
            self._breaker.succeeded()
        else:
            outcome = self._failure(key, outcome)
        waiting, flight[:] = list(flight), []
        for each in waiting:
            each.callback(outcome)

    def _failure(self, key: _Key, failure: Failure) -> Route | Failure | None:
        """The source did not answer: return what is given instead."""
        self.counts.failed += not self._stopping
        if failure.check(TookTooLong):
            self.counts.slow += 1
            why = f"no answer within {self._options.timeout:g} s"
        elif failure.check(CancelledError):
            why = "given up"
        else:
            # Its text may hold anything, such as a password in an address.
            why = type(failure.value).__name__
            if isinstance(failure.value, Unanswered):
                why = str(failure.value)
        if not self._stopping:
            _log.warn("{source} failed: {why}", source=self.label, why=why)
            self._breaker.failed(self._clock.seconds())
        try:
            return self._instead(key, why)
        except LoginRefused:
            return Failure()

    def _instead(self, key: _Key, why: str) -> Route:
        """Return what was known of the user not too long ago.

        :raises LoginRefused: nothing was.
        """
        known = self._routes.get(key)
        if known is not None and self._clock.seconds() < known.until + self._options.stale_if_error:
            self.counts.stale += 1
            return known.answer
        raise LoginRefused(Refusal(Reason.UNAVAILABLE, f"{self.label} cannot be asked: {why}"))

    def _keep(self, key: _Key, answer: Route | Refusal | None) -> None:
        now = self._clock.seconds()
        self._routes.forget(key)
        self._others.forget(key)
        if isinstance(answer, Route):
            self._routes.keep(key, answer, now)
        elif answer is None or answer.reason is not Reason.UNAVAILABLE:
            self._others.keep(key, answer, now)


class _Breaker:
    """Leaves a source alone that has failed several times in a row, and then tries it with one question.

    :param failures: how many, 0 for never.
    :param pause: seconds to leave it alone.
    """

    def __init__(self, failures: int, pause: float, label: str) -> None:
        self._limit = failures
        self._pause = pause
        self._label = label
        self._failures = 0
        self._until: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the source is left alone, or has been and is yet to answer."""
        return self._until is not None

    def lets_through(self, now: float) -> bool:
        """Tell whether the source may be asked; the first to ask after the pause is the one who tries."""
        if self._until is None:
            return True
        if now < self._until:
            return False
        self._until = now + self._pause * _shortened()
        return True

    def succeeded(self) -> None:
        """The source has answered."""
        if self._until is not None:
            _log.info("{source} answers again", source=self._label)
        self._failures, self._until = 0, None

    def failed(self, now: float) -> None:
        """The source has not answered."""
        self._failures += 1
        if not self._limit or self._failures < self._limit:
            return
        if self._until is None:
            _log.warn(
                "{source} has failed {count} times in a row: left alone for {pause:g} s, then tried again",
                source=self._label,
                count=self._failures,
                pause=self._pause,
            )
        self._until = now + self._pause * _shortened()


async def _coroutine(ask: Ask, lookup: Lookup) -> Route | None:
    return await ask(lookup)


def _note(lookup: Lookup, text: str) -> None:
    if lookup.note is not None:
        lookup.note(text)


def _shortened() -> float:
    return 1 - JITTER * random.random()  # noqa: S311 (nothing depends on its being guessed)
