"""Threads for long computations, of which a password's hash is one.

They are apart from the reactor's own threads, in which names are looked up and
files are read: however many hashes wait, none of those does.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, fail

from mailroute.events import LoginRefused, Reason, Refusal

MAX_THREADS = 4
"""Threads at most, and no more than there are cores: a hash of Argon2 may take 64 MiB in each."""

MAX_WAITING = 256
"""Computations that may wait or be under way.

At a tenth of a second each and four at once, the last one waits for six
seconds; whoever comes then is told at once to come again.
"""

MAX_WAIT = 10.0
"""Seconds that a computation may have to wait, by what the latest ones have taken: with dear hashes this is
what bounds the row, since whoever waits longer has hardly any ``login_timeout`` left, or has gone."""

RECENT = 16
"""Computations of which the durations are remembered."""

_Result = TypeVar("_Result")


class Computing:
    """Calls functions in threads of its own, a bounded number at once; it needs neither start nor stop.

    Only what leaves Python's lock alone while it computes is of use in here: OpenSSL, hashlib, libcrypt.

    :param reactor: in whose thread the Deferreds fire.
    :param now: seconds, from whenever.
    """

    def __init__(self, reactor: Any, threads: int = 0, now: Callable[[], float] = time.monotonic) -> None:
        self._reactor = reactor
        self._threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
        self._now = now
        self._executor: ThreadPoolExecutor | None = None
        self._under_way = 0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def __call__(self, function: Callable[[], _Result], /) -> Deferred[_Result]:
        """Call it, once a thread is free; who cancels the Deferred before then spares it the work.

        :raises LoginRefused: (fails with it) too many wait already, or it would have, or has had, to wait for
            too long.
        """
        if self._under_way >= MAX_WAITING or self._expected_wait() > MAX_WAIT:
            return fail(_too_many())
        # Made when it is needed, which is in the process that needs it: threads do not survive a fork.
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads, "computing")
        self._under_way += 1
        timed = _Timed(function, self._now)
        future = self._executor.submit(timed)

        def spare(_: object) -> None:
            future.cancel()

        done: Deferred[_Result] = Deferred(spare)
        future.add_done_callback(lambda _: self._reactor.callFromThread(self._ended, timed, future, done))
        return done

    def _expected_wait(self) -> float:
        """Return for how many seconds the next one would wait: for none where a thread is free."""
        ahead = self._under_way - self._threads + 1
        if ahead <= 0 or not self._recent:
            return 0.0
        return sum(self._recent) / len(self._recent) * ahead / self._threads

    def _ended(self, timed: _Timed[_Result], future: Future[_Result], done: Deferred[_Result]) -> None:
        self._under_way -= 1
        if timed.took is not None:
            self._recent.append(timed.took)
        if done.called:  # cancelled
            return
        error = future.exception()
        if error is not None:
            done.errback(error)
        else:
            done.callback(future.result())


class _Timed(Generic[_Result]):
    """A function that waits for a thread; ``took`` are its seconds there, None if it was not called."""

    def __init__(self, function: Callable[[], _Result], now: Callable[[], float]) -> None:
        self._function = function
        self._now = now
        self._asked = now()
        self.took: float | None = None

    def __call__(self) -> _Result:
        began = self._now()
        if began - self._asked > MAX_WAIT:
            raise _too_many()
        try:
            return self._function()
        finally:
            self.took = self._now() - began


def _too_many() -> LoginRefused:
    return LoginRefused(Refusal(Reason.UNAVAILABLE, "too many computations wait already"))
