"""Deadlines for thousands of connections on one timer.

Almost every deadline of a proxy is set and then cancelled, because what it
bounds comes to its end in time.  A `callLater` each would be an object, a
place in the reactor's heap and a closure each, and the cancelled ones would
pile up there.  Here those that fall due within the same quarter of a second
share a bucket: setting one adds to a set, cancelling discards from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from math import ceil
from typing import Protocol
from weakref import WeakValueDictionary

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

_log = Logger(namespace="mailroute.deadlines")

_PER_SECOND = 4
"""Buckets in a second.  A power of two, so that a multiple of a quarter of a second falls due exactly."""

_EARLY = 0.001
"""Seconds by which the reactor may ring early, because it adds and subtracts times itself."""

_AT_ONCE = 100
"""Owners to call in one turn of the reactor: thousands may fall due together, each with much to do."""


class Owner(Protocol):
    """Whoever may set a deadline; hashable by identity, as objects are unless they say otherwise."""

    __slots__ = ()

    def time_is_up(self) -> None:
        """Act: the deadline has passed, and is set no more."""


Deadline = set[Owner]
"""What is due together.  ``deadline.discard(owner)`` cancels the owner's part in it, at any time."""


class Deadlines:
    """Calls its owners back at, or up to a quarter of a second after, the time that each has asked for.

    :param clock: tells the time, and rings for all of them.
    """

    __slots__ = ("__weakref__", "_buckets", "_clock", "_now", "_rings_at", "_ticks", "_timer")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._now = clock.seconds
        self._buckets: dict[int, Deadline] = {}
        self._ticks: list[int] = []  # a heap of the keys of _buckets
        self._timer: IDelayedCall | None = None
        self._rings_at = 0

    def after(self, seconds: float, owner: Owner) -> Deadline:
        """Call ``owner.time_is_up()`` after that many seconds.

        Whoever may end before that keeps the deadline, and takes itself out of it then.
        """
        tick = ceil((self._now() + seconds) * _PER_SECOND)
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._new_bucket(tick)
        bucket.add(owner)
        return bucket

    def __len__(self) -> int:
        """How many deadlines are set."""
        return sum(map(len, self._buckets.values()))

    def __iter__(self) -> Iterator[Owner]:
        """Everybody who waits, as often as it does."""
        return (owner for bucket in self._buckets.values() for owner in bucket)

    # --- the timer ---

    def _new_bucket(self, tick: int) -> Deadline:
        bucket = self._buckets[tick] = set()
        heappush(self._ticks, tick)
        if self._timer is None or tick < self._rings_at:
            self._set_timer()
        return bucket

    def _set_timer(self) -> None:
        """Ring for the first bucket.  It may be empty by then: emptying a bucket touches no timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = self._ticks[0]
        delay = self._rings_at / _PER_SECOND - self._now()
        self._timer = self._clock.callLater(max(delay, 0.0), self._ring)

    def _ring(self) -> None:
        self._timer = None
        due = (self._now() + _EARLY) * _PER_SECOND
        for _ in range(_AT_ONCE):
            self._drop_empty()
            if not self._ticks or self._ticks[0] > due:
                break
            self._tell(self._buckets[self._ticks[0]].pop())
        self._drop_empty()
        if self._ticks:
            self._set_timer()

    def _drop_empty(self) -> None:
        while self._ticks and not self._buckets[self._ticks[0]]:
            del self._buckets[heappop(self._ticks)]

    def _tell(self, owner: Owner) -> None:
        try:
            owner.time_is_up()
        except Exception:
            # One that is broken must not keep the others waiting.
            _log.failure("a deadline of {owner} failed", owner=type(owner).__name__)


# By the clock's id, which is its own for as long as its deadlines hold on to it.
_deadlines: WeakValueDictionary[int, Deadlines] = WeakValueDictionary()


def deadlines_of(clock: IReactorTime) -> Deadlines:
    """Return the deadlines of a clock, which live as long as somebody uses them."""
    deadlines = _deadlines.get(id(clock))
    if deadlines is None:
        deadlines = _deadlines[id(clock)] = Deadlines(clock)
    return deadlines
