"""Around every slow source: it is asked seldom, once at a time, not for long, and not while it is down."""

from __future__ import annotations

import random
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from hashlib import blake2b
from math import inf
from typing import Generic, TypeVar

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailroute.events import LoginRefused, Reason, Refusal
from mailroute.sources.context import BadAnswer, SourceContext
from mailroute.sources.counts import Counts, Durations
from mailroute.sources.faults import cause
from mailroute.sources.options import GuardOptions

MAX_FLIGHTS = 1000
"""Questions to one source at a time; whoever comes on top of that is told to come again."""

JITTER = 0.1
"""The part by which durations are shortened at random, so that what began together does not end together."""

_log = Logger(namespace="mailroute.sources")

Note = Callable[[str], object]
"""Is told how it came to an answer, for a person."""


_Answer = TypeVar("_Answer")


@frozen
class _Known(Generic[_Answer]):
    """An answer that is kept; times are the clock's.

    It is fresh until ``until``, and of no use at all from ``end`` on.
    """

    answer: _Answer
    since: float
    until: float
    end: float


class _Cache(Generic[_Answer]):
    """Keeps answers, also beyond their time; the one used longest ago goes first.

    :param size: how many.
    :param ttl: seconds for which one is fresh; 0: none is kept.
    """

    def __init__(self, size: int, ttl: float) -> None:
        self._size = size
        self._ttl = ttl
        self._known: OrderedDict[Hashable, _Known[_Answer]] = OrderedDict()

    def get(self, key: Hashable) -> _Known[_Answer] | None:
        """Return what is known, however old."""
        return self._known.get(key)

    def fresh(self, key: Hashable, now: float) -> _Known[_Answer] | None:
        """Return what is known, if it is fresh."""
        known = self._known.get(key)
        if known is None or now >= known.until:
            return None
        self._known.move_to_end(key)
        return known

    def keep(self, key: Hashable, answer: _Answer, now: float, end: float = inf) -> None:
        """Keep an answer, which is of no use from ``end`` on."""
        if self._ttl and now < end:
            until = min(now + self._ttl * _shortened(), end)
            self._known[key] = _Known(answer, now, until, end)
            if len(self._known) > self._size:
                self._known.popitem(last=False)

    def forget(self, key: Hashable) -> None:
        """Forget an answer."""
        self._known.pop(key, None)

    def __len__(self) -> int:
        return len(self._known)


class Guard(Service, Generic[_Answer]):
    """Asks a slow source, and spares it.

    What the source said definitely is kept: an answer, that there is none
    (None), or a refusal; "try again later" and an answer that makes no sense
    are not.

    :param flights: questions at a time; whoever comes on top of that is told to come again.
    :param end: says when an answer is of no use any more, by the clock.
    """

    def __init__(
        self,
        options: GuardOptions,
        context: SourceContext,
        *,
        flights: int = MAX_FLIGHTS,
        end: Callable[[_Answer], float] = lambda _: inf,
    ) -> None:
        self.counts = Counts()
        self.durations: Durations | None = None
        """How long the source took each time it was asked; None unless somebody wants to know."""
        self._options = options
        self.label = context.label
        self._clock = context.clock
        self._end = end
        self._most = flights
        self._salt = secrets.token_bytes(16)
        # Apart, so that guesses at names do not drive answers out.
        self._positive: _Cache[_Answer] = _Cache(options.cache_size, options.cache_ttl)
        self._others: _Cache[Refusal | None] = _Cache(options.cache_size, options.negative_ttl)
        self._stopping = False
        self._flights: dict[Hashable, list[Deferred[_Answer | None]]] = {}
        self._running: set[Deferred[_Answer | None]] = set()
        self._breaker = Breaker(options.breaker_failures, options.breaker_pause, self.label)

    def startService(self) -> None:
        """Begin to ask, or go on."""
        super().startService()
        self._stopping = False

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
        """How many answers are in the cache, and how many that there is none."""
        return len(self._positive), len(self._others)

    def drop(self, key: Hashable) -> None:
        """Forget what is known for a key."""
        self._positive.forget(key)
        self._others.forget(key)

    def hidden(self, *parts: bytes) -> bytes:
        """Return what stands for secrets in a key: a hash that nobody else can make."""
        digest = blake2b(key=self._salt, digest_size=16)
        for part in parts:
            digest.update(len(part).to_bytes(4) + part)
        return digest.digest()

    def ask(
        self, key: Hashable, ask: Callable[[], Awaitable[_Answer | None]], note: Note | None = None
    ) -> _Answer | Deferred[_Answer | None] | None:
        """Return the source's answer: at once if it is known.

        :param key: what the answer depends on.
        :param ask: asks the source; it may raise anything, which counts as a failure of the source unless it
            is `LoginRefused` or `BadAnswer`.  It is cancelled when it takes too long.
        :raises LoginRefused: (or fails with it) the source has refused, or cannot be asked.
        """
        told = note or _nobody
        now = self._clock.seconds()
        known = self._positive.fresh(key, now) or self._others.fresh(key, now)
        if known is not None:
            self.counts.cached += 1
            told(f"from the cache, {now - known.since:.0f} s old")
            if isinstance(known.answer, Refusal):
                raise LoginRefused(known.answer)
            return known.answer
        flight = self._flights.get(key)
        if flight is not None:
            self.counts.joined += 1
            told("shared with a question under way")
            return self._join(flight)
        if self._stopping:
            return self._instead(key, "mailroute is about to end")
        if not self._breaker.lets_through(now):
            self.counts.spared += 1
            return self._instead(key, "it has failed too often lately, as the log says, and is left alone")
        if len(self._flights) >= self._most:
            self.counts.spared += 1
            return self._instead(key, f"it is asked {self._most} questions already")
        told("fresh")
        return self._fly(key, ask, now)

    # --- asking ---

    def _fly(
        self, key: Hashable, ask: Callable[[], Awaitable[_Answer | None]], now: float
    ) -> Deferred[_Answer | None]:
        """Ask the source, for whoever wants to know."""
        flight: list[Deferred[_Answer | None]] = []
        self._flights[key] = flight
        # Before it is asked, since the answer may be there at once.
        waiting = self._join(flight)
        self.counts.asked += 1
        question = Deferred.fromCoroutine(_coroutine(ask))
        self._running.add(question)
        question.addTimeout(self._options.timeout, self._clock)
        question.addBoth(self._landed, key, flight, now)
        question.addBoth(lambda _: self._running.discard(question))
        return waiting

    @staticmethod
    def _join(flight: list[Deferred[_Answer | None]]) -> Deferred[_Answer | None]:
        # Whoever leaves does not take the answer from the others, nor from the cache.
        waiting: Deferred[_Answer | None] = Deferred(lambda left: flight.remove(left))
        flight.append(waiting)
        return waiting

    def _landed(
        self,
        outcome: _Answer | Failure | None,
        key: Hashable,
        flight: list[Deferred[_Answer | None]],
        began: float,
    ) -> None:
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
        # One by one: whoever gets the answer may have another one leave.
        while flight:
            flight.pop(0).callback(outcome)

    def _failure(self, key: Hashable, failure: Failure) -> _Answer | Failure:
        """The source did not answer: return what is given instead."""
        self.counts.failed += not self._stopping
        if failure.check(TookTooLong):
            self.counts.slow += 1
            why = f"no answer within {self._options.timeout:g} s; see why it is slow, or raise timeout"
        elif failure.check(CancelledError):
            why = "given up"
        else:
            why = cause(failure.value)
        if not self._stopping:
            _log.warn("{source} failed: {why}", source=self.label, why=why)
            self._breaker.failed(self._clock.seconds())
        try:
            return self._instead(key, why)
        except LoginRefused:
            return Failure()

    def _instead(self, key: Hashable, why: str) -> _Answer:
        """Return what was known not too long ago.

        :raises LoginRefused: nothing was.
        """
        known, now = self._positive.get(key), self._clock.seconds()
        if known is not None and now < min(known.until + self._options.stale_if_error, known.end):
            self.counts.stale += 1
            return known.answer
        raise LoginRefused(Refusal(Reason.UNAVAILABLE, f"{self.label} cannot be asked: {why}"))

    def _keep(self, key: Hashable, answer: _Answer | Refusal | None) -> None:
        now = self._clock.seconds()
        self.drop(key)
        if answer is None or isinstance(answer, Refusal):
            if answer is None or answer.reason is not Reason.UNAVAILABLE:
                self._others.keep(key, answer, now)
        else:
            self._positive.keep(key, answer, now, self._end(answer))


class Breaker:
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


async def _coroutine(ask: Callable[[], Awaitable[_Answer | None]]) -> _Answer | None:
    return await ask()


def _nobody(_: str) -> None:
    """Tell nobody."""


def _shortened() -> float:
    return 1 - JITTER * random.random()  # noqa: S311 (nothing depends on its being guessed)
