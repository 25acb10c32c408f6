"""The service of a mailroute that has workers: binds, starts them, and carries no mail itself."""

from __future__ import annotations

import itertools
import os
import secrets
import select
import sys
import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred

from mailroute.config import Settings
from mailroute.service import StartError
from mailroute.workers import start
from mailroute.workers.counts import Counts, layout, share
from mailroute.workers.letter import Letter, post
from mailroute.workers.process import Kit, Worker
from mailroute.workers.sockets import Held
from mailroute.workers.supervisor import START_TIMEOUT, Supervisor


class WorkersService(MultiService):
    """Listens, and has workers serve those who come.

    :param settings: whose ``worker_count`` is more than 1.
    """

    def __init__(self, settings: Settings, reactor: Any) -> None:
        super().__init__()
        assert settings.source is not None  # noqa: S101 - settings with workers have it
        count, limits = settings.worker_count, settings.limits
        self._reactor = reactor
        self._source = settings.source
        self._layout = layout(count, limits.connections, limits.connections_per_address)
        self._held = [Held(listener, reactor, count) for listener in settings.listeners]
        self._supervisor = Supervisor(count, self._spawn, reactor, self._forget)
        self._workers: dict[int, Worker] = {}
        self._kit: Kit | None = None
        self._counts: Counts | None = None
        for child in (*self._held, self._supervisor):
            child.setServiceParent(self)

    def startService(self) -> None:
        """Start the workers and wait until they are ready, unless this program is doing other things by now.

        By here privileges have been given up, which the workers must not have.

        :raises StartError: one of them cannot be started, or does not get ready.
        """
        try:
            super().startService()
        except OSError as error:
            self._supervisor.abandon()
            raise StartError(_cannot_run(error)) from None
        if not self._reactor.running:
            try:
                self._wait()
            except BaseException:  # somebody may have lost patience
                self._supervisor.abandon()
                raise

    def stopService(self) -> Deferred[None]:
        """Stop listening, and end the workers."""
        return maybeDeferred(super().stopService).addBoth(self._clean_up)

    # --- starting ---

    def _spawn(self, number: int, ready: Callable[[], None], ended: Callable[[str], None]) -> Worker:
        if self._kit is None:
            self._kit = self._pack()
        self._workers[number] = Worker(number + 1, self._kit, self._reactor, ready, ended)
        return self._workers[number]

    def _pack(self) -> Kit:
        """Put together what every worker gets; one that is started later gets the same."""
        numbers = itertools.count(start.LISTENERS)
        ports = [held.port for held in self._held]
        letter = Letter(
            reactor=type(self._reactor).__module__,
            source=self._source,
            layout=self._layout,
            listeners=tuple((port.family, tuple(next(numbers) for _ in port.descriptors)) for port in ports),
            gate_key=secrets.token_bytes(16),
            salt=secrets.token_bytes(16),
        )
        counts = share(self._layout)
        self._counts = Counts(counts, self._layout)
        sockets = [descriptor for port in ports for descriptor in port.descriptors]
        return Kit(post(letter), counts, sockets)

    def _wait(self) -> None:
        """Wait for all workers; the reactor does not run yet, so that nobody else has to."""
        deadline = time.monotonic() + START_TIMEOUT
        while not self._supervisor.ready():
            left = deadline - time.monotonic()
            waiting = {worker.channel.fileno(): worker for worker in self._workers.values()}
            poll = select.poll()
            for descriptor in waiting:
                poll.register(descriptor, select.POLLIN)
            for descriptor, _ in poll.poll(max(left, 0.0) * 1000):
                waiting[descriptor].channel.doRead()
            for worker in waiting.values():
                if not worker.channel.open or left <= 0:
                    raise StartError(_does_not_start(worker))

    # --- the rest ---

    def _forget(self, number: int) -> int:
        return 0 if self._counts is None else self._counts.forget(number)

    def _clean_up(self, result: Any) -> Any:
        if self._kit is not None:
            os.close(self._kit.letter)
            os.close(self._kit.counts)
        self._kit = self._counts = None
        return result


def _cannot_run(error: OSError) -> str:
    return (
        f"mailroute: cannot start workers: {sys.executable}: {error.strerror or error}: "
        "Python has to be there, in a chroot as well, or use workers = 1"
    )


def _does_not_start(worker: Worker) -> str:
    worker.words.drain()
    why = worker.words.last or (
        f"it is not ready after {START_TIMEOUT:g} s" if worker.channel.open else "it has ended without a word"
    )
    return f"mailroute: worker {worker.number} cannot start: {why}"
