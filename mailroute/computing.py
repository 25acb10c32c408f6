"""Threads for long computations, of which a password's hash is one.

They are apart from the reactor's own threads, in which names are looked up and
files are read: however many hashes wait, none of those does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail

from mailroute.events import LoginRefused, Reason, Refusal

MAX_THREADS = 4
"""Threads at most, and no more than there are cores: a hash of Argon2 may take 64 MiB in each."""

MAX_WAITING = 256
"""Computations that may wait or be under way.

At a tenth of a second each and four at once, the last one waits for six
seconds; whoever comes then is told at once to come again.
"""

_Result = TypeVar("_Result")


class Computing:
    """Calls functions in threads of its own, a bounded number at once; it needs neither start nor stop.

    Only what leaves Python's lock alone while it computes is of use in here: OpenSSL, hashlib, libcrypt.

    :param reactor: in whose thread the Deferreds fire.
    """

    def __init__(self, reactor: Any, threads: int = 0) -> None:
        self._reactor = reactor
        self._threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
        self._executor: ThreadPoolExecutor | None = None
        self._under_way = 0

    def __call__(self, function: Callable[[], _Result], /) -> Deferred[_Result]:
        """Call it, once a thread is free; who cancels the Deferred before then spares it the work.

        :raises LoginRefused: (fails with it) too many wait already.
        """
        if self._under_way >= MAX_WAITING:
            return fail(LoginRefused(Refusal(Reason.UNAVAILABLE, "too many computations wait already")))
        # Made when it is needed, which is in the process that needs it: threads do not survive a fork.
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads, "computing")
        self._under_way += 1
        future = self._executor.submit(function)

        def spare(_: object) -> None:
            future.cancel()

        done: Deferred[_Result] = Deferred(spare)
        future.add_done_callback(lambda _: self._reactor.callFromThread(self._ended, future, done))
        return done

    def _ended(self, future: Future[_Result], done: Deferred[_Result]) -> None:
        self._under_way -= 1
        if done.called:  # cancelled
            return
        error = future.exception()
        if error is not None:
            done.errback(error)
        else:
            done.callback(future.result())
