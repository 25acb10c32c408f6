"""Keeps the workers running: starts one again that has ended, and sees to its clients meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from attrs import define
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

_log = Logger(namespace="mailroute.workers")

START_TIMEOUT = 60.0
"""Seconds that a worker has to get ready."""

STOP_TIMEOUT = 10.0
"""Seconds that a worker has to end in good order; twice what a client has to take the last words."""

FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0
"""Seconds before a worker is started again that has ended twice, and before each start at most."""

STEADY = 60.0
"""Seconds after which a worker that ends is no longer taken for one that cannot run."""


class Running(Protocol):
    """A worker process, as `mailroute.workers.process.Worker` is one."""

    pid: int
    """Its process id, once it is known."""

    def stop(self) -> None:
        """Have it end in good order."""

    def adopt(self, place: int, /) -> None:
        """Have it accept on the sockets of another worker."""

    def drop(self, place: int, /) -> None:
        """Have it accept no longer on the sockets of another worker."""

    def kill(self) -> None:
        """End it, whatever it is doing."""


Spawn = Callable[[int, Callable[[], None], Callable[[str], None]], Running]
"""Starts the worker of a number, from 0; calls the first function once it serves clients, and the second
once it is gone, with how it ended.  Raises `OSError` if it cannot be started."""


@define
class _Place:
    """Where a worker belongs; one after the other may have it."""

    number: int
    worker: Running | None = None
    ready: bool = False
    since: float = 0.0
    delay: float = 0.0
    timer: IDelayedCall | None = None
    orphaned: bool = False
    """There was a worker that clients may wait for."""
    helper: int | None = None
    """The worker that accepts for it meanwhile."""


class Supervisor(Service):
    """Runs a number of workers until it is stopped.

    A worker that ends is started again: the first time at once, and if that
    happens again within `STEADY` seconds, after a delay that doubles each time.
    Until it is ready, another worker accepts those who come to its socket.

    :param forget: takes the number of a worker that is gone out of account, and returns how many
        connections it had.
    """

    def __init__(self, workers: int, spawn: Spawn, clock: IReactorTime, forget: Callable[[int], int]) -> None:
        self._places = [_Place(number) for number in range(workers)]
        self._spawn = spawn
        self._clock = clock
        self._forget = forget
        self._stopped: Deferred[None] | None = None
        self._bound: IDelayedCall | None = None

    def startService(self) -> None:
        """Start all workers; see `ready`.

        :raises OSError: one of them cannot be started.
        """
        super().startService()
        for place in self._places:
            self._launch(place)

    def stopService(self) -> Deferred[None]:
        """Have all workers end in good order, and kill those that do not within `STOP_TIMEOUT` seconds."""
        super().stopService()
        for place in self._places:
            self._stop_timer(place)
            if place.worker is not None and place.ready:
                place.worker.stop()
            elif place.worker is not None:
                place.worker.kill()  # it has no clients yet
        if not self._left():
            return succeed(None)
        self._stopped = Deferred()
        self._bound = self._clock.callLater(STOP_TIMEOUT, self._lose_patience)
        return self._stopped

    def ready(self) -> bool:
        """Tell whether all workers serve clients."""
        return all(place.ready for place in self._places)

    def abandon(self) -> None:
        """Kill all workers, because the program does not start."""
        self.running = 0
        for place in self._left():
            self._stop_timer(place)
            if place.worker is not None:
                place.worker.kill()

    # --- the life of one worker ---

    def _launch(self, place: _Place) -> None:
        place.since = self._clock.seconds()
        place.worker = self._spawn(
            place.number, partial(self._is_ready, place), partial(self._has_ended, place)
        )
        place.timer = self._clock.callLater(START_TIMEOUT, self._too_late, place)

    def _launch_again(self, place: _Place) -> None:
        place.timer = None
        try:
            self._launch(place)
        except OSError as error:
            delay = self._next_delay(place)
            _log.error(
                "worker {worker} cannot be started: {reason}; trying again {when}",
                worker=place.number + 1,
                reason=error.strerror or str(error),
                when=_when(delay),
            )
            place.timer = self._clock.callLater(delay, self._launch_again, place)

    def _is_ready(self, place: _Place) -> None:
        assert place.worker is not None  # noqa: S101 - who else calls it?
        self._stop_timer(place)
        place.ready, place.orphaned = True, False
        _log.info("worker {worker} is ready: process {pid}", worker=place.number + 1, pid=place.worker.pid)
        self._help_out()

    def _too_late(self, place: _Place) -> None:
        place.timer = None
        _log.error(
            "worker {worker} is not ready after {seconds:g} s, and is killed",
            worker=place.number + 1,
            seconds=START_TIMEOUT,
        )
        if place.worker is not None:
            place.worker.kill()

    def _has_ended(self, place: _Place, how: str) -> None:
        self._stop_timer(place)
        process = f" (process {place.worker.pid})" if place.worker is not None and place.worker.pid else ""
        was_ready, place.ready, place.worker = place.ready, False, None
        place.orphaned = True
        lost = self._forget(place.number)
        if not self.running:
            self._one_less()
            return
        delay = self._next_delay(place)
        _log.error(
            "worker {worker}{process} {how}{before}; connections lost: {lost}; it is started again {when}",
            worker=place.number + 1,
            process=process,
            how=how,
            before="" if was_ready else " before it was ready",
            lost=lost,
            when=_when(delay),
        )
        place.timer = self._clock.callLater(delay, self._launch_again, place)
        self._help_out()

    def _next_delay(self, place: _Place) -> float:
        if self._clock.seconds() - place.since >= STEADY:
            place.delay = 0.0
        delay = place.delay
        place.delay = min(max(FIRST_DELAY, 2 * delay), LONGEST_DELAY)
        return delay

    def _stop_timer(self, place: _Place) -> None:
        if place.timer is not None:
            place.timer.cancel()
            place.timer = None

    # --- helping out ---

    def _help_out(self) -> None:
        """See that the clients of each place have a worker: its own, or another's."""
        ready = [place for place in self._places if place.ready]
        for place in self._places:
            helper = None if place.helper is None else self._places[place.helper]
            if helper is not None and not helper.ready:
                place.helper = helper = None  # whoever it was is gone, and serves nobody
            if place.ready and helper is not None:
                if helper.worker is not None:
                    helper.worker.drop(place.number)
                place.helper = None
            elif place.orphaned and helper is None and ready:
                # Not always the same one, if several need help.
                chosen = ready[place.number % len(ready)]
                if chosen.worker is not None:
                    chosen.worker.adopt(place.number)
                place.helper = chosen.number

    # --- the end ---

    def _left(self) -> list[_Place]:
        return [place for place in self._places if place.worker is not None]

    def _one_less(self) -> None:
        if self._stopped is not None and not self._left():
            if self._bound is not None and self._bound.active():
                self._bound.cancel()
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    def _lose_patience(self) -> None:
        for place in self._left():
            _log.error(
                "worker {worker} has not ended after {seconds:g} s, and is killed",
                worker=place.number + 1,
                seconds=STOP_TIMEOUT,
            )
            if place.worker is not None:
                place.worker.kill()


def _when(delay: float) -> str:
    return f"in {delay:g} s" if delay else "at once"
