"""What a source has been asked, what became of it, and how long it took."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from attrs import define

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds up to which durations are counted together: from a look into memory to twice the usual timeout."""


@define
class Counts:
    """What a source has been asked, and what became of it."""

    cached: int = 0
    """Answers from the cache."""

    joined: int = 0
    """Questions that waited for an answer that somebody else had asked for."""

    asked: int = 0
    """Questions to the source itself."""

    failed: int = 0
    """Those that it did not answer, the slow ones among them."""

    slow: int = 0
    """Those that it did not answer in time."""

    stale: int = 0
    """Old answers given because it failed."""

    spared: int = 0
    """Questions that it was not asked because it had failed too often."""

    def __str__(self) -> str:
        return (
            f"{self.asked} asked, {self.cached} from the cache, {self.joined} shared, {self.failed} failed "
            f"({self.slow} too slow), {self.stale} stale, {self.spared} not asked"
        )


class Durations:
    """How many durations were how long, in seconds."""

    def __init__(self) -> None:
        self.total = 0.0
        """The sum of all."""
        self._counts = [0] * (len(BUCKETS) + 1)

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def up_to(self) -> Iterator[tuple[float, int]]:
        """Yield each bound of `BUCKETS`, and infinity, with the number of those that are no longer."""
        return zip((*BUCKETS, float("inf")), accumulate(self._counts), strict=True)
