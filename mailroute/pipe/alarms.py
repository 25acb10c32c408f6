"""One alarm clock for thousands of sleepers.

A `callLater` for each of ten thousand sessions would be ten thousand objects
in one heap, most of which ring to find that bytes have passed in the meantime.
Here whoever sleeps until about the same moment shares a bucket, and one
`callLater` rings for the earliest of them.
"""

from __future__ import annotations

import heapq
import math
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

COARSE = 1.0
"""Seconds that one bucket covers; a sleeper is woken late by this much at most, and never early."""

FINE = 0.125
"""The same for whoever sleeps less than `NEAR` seconds."""

NEAR = 16.0


class Sleeper(Protocol):
    """Somebody to be woken: ``alarm`` is kept here by the clock, and None while none is set."""

    alarm: float | None

    def ring(self) -> None:
        """Wake up; the alarm is not set any more."""


class Alarms:
    """Wakes sleepers, all those of one `IReactorTime`."""

    __slots__ = ("__weakref__", "_buckets", "_call", "_clock", "_moments")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._buckets: dict[float, set[Sleeper]] = {}
        self._moments: list[float] = []  # a heap of the buckets' keys
        self._call: IDelayedCall | None = None

    def set(self, sleeper: Sleeper, when: float | None) -> None:
        """Wake a sleeper at that time of the clock, and at no other; None: never."""
        if when is not None:
            width = FINE if when - self._clock.seconds() < NEAR else COARSE
            when = math.ceil(when / width) * width
        if when == sleeper.alarm:
            return
        if sleeper.alarm is not None:
            self._forget(sleeper, sleeper.alarm)
        sleeper.alarm = when
        if when is not None:
            bucket = self._buckets.get(when)
            if bucket is None:
                bucket = self._buckets[when] = set()
                heapq.heappush(self._moments, when)
            bucket.add(sleeper)
        self._sleep()

    def _forget(self, sleeper: Sleeper, when: float) -> None:
        bucket = self._buckets.get(when)
        if bucket is not None:  # else it is being rung right now
            bucket.discard(sleeper)

    def _sleep(self) -> None:
        """Have the earliest bucket rung for, and nothing if there is none."""
        moments = self._moments
        # A bucket that has become empty goes when it would be the next, so that none is made twice.
        while moments and not self._buckets[moments[0]]:
            del self._buckets[heapq.heappop(moments)]
        call = self._call
        if call is not None:
            if moments and call.getTime() == moments[0]:
                return
            call.cancel()
            self._call = None
        if moments:
            self._call = self._clock.callLater(max(0.0, moments[0] - self._clock.seconds()), self._ring)

    def _ring(self) -> None:
        self._call = None
        now = self._clock.seconds()
        while self._moments and self._moments[0] <= now:
            moment = heapq.heappop(self._moments)
            for sleeper in self._buckets.pop(moment):
                # One that rings may take another's alarm away.
                if sleeper.alarm == moment:
                    sleeper.alarm = None
                    sleeper.ring()
        self._sleep()
