"""The service of a mailroute that has workers: binds, has them made, and carries no mail itself."""

from __future__ import annotations

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
from mailroute.descriptors import most_of, raise_limit, remedy
from mailroute.listening import StartError
from mailroute.workers.counts import Counts, layout, share
from mailroute.workers.letter import Letter, post
from mailroute.workers.process import Nursery, Worker
from mailroute.workers.sockets import Held
from mailroute.workers.supervisor import START_TIMEOUT, Supervisor


class WorkersService(MultiService):
    """Listens, and has workers serve those who come.

    The nursery is started here and now: later this process may have given up
    its privileges, or be where there is no Python.

    :param settings: whose ``worker_count`` is more than 1.
    :raises StartError: the nursery cannot be started.
    """

    def __init__(self, settings: Settings, reactor: Any) -> None:
        super().__init__()
        assert settings.source is not None  # noqa: S101 - settings with workers have it
        count, limits = settings.worker_count, settings.limits
        plan = layout(count, limits.connections, limits.connections_per_address)
        letter = Letter(
            reactor=type(reactor).__module__,
            source=settings.source,
            layout=plan,
            gate_key=secrets.token_bytes(16),
            salt=secrets.token_bytes(16),
        )
        self._reactor = reactor
        self._held = [Held(listener, reactor, count) for listener in settings.listeners]
        self._supervisor = Supervisor(count, self._spawn, reactor, self._forget)
        self._workers: dict[int, Worker] = {}
        self._folders: list[int] = []
        try:
            self._memory = post(letter), share(plan)
            self._counts: Counts | None = Counts(self._memory[1], plan)
            self._nursery = Nursery(*self._memory)
        except OSError as error:
            raise StartError(_cannot_run(error)) from None
        for child in (*self._held, self._supervisor):
            child.setServiceParent(self)
        if settings.metrics is not None:
            # Not above, as it needs a library that only some have.
            from mailroute.workers.figures import of_workers

            of_workers(settings.metrics, limits, count, self._workers, reactor).setServiceParent(self)

    def privilegedStartService(self) -> None:
        """Bind, while the program may still bind low ports.

        :raises StartError: a port cannot be had.
        """
        # Each listener has a socket for each worker.
        raise_limit(most_of(self._reactor))
        try:
            # Whom this process becomes may not be allowed to open them.
            self._folders = [os.open(name, os.O_PATH | os.O_DIRECTORY) for name in ("/", ".")]
        except OSError as error:
            raise StartError(_cannot_run(error)) from None
        super().privilegedStartService()

    def startService(self) -> None:
        """Have the workers made, and wait until they are ready, unless the reactor is running already.

        :raises StartError: one of them cannot be made, or does not get ready.
        """
        self._nursery.settle(self._reactor, self._folders)
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

    def _spawn(self, place: int, ready: Callable[[], None], ended: Callable[[str], None]) -> Worker:
        if not self._nursery.alive():
            # Somebody has killed it.  Another one may not be able to do what it could.
            self._nursery = Nursery(*self._memory)
            self._nursery.settle(self._reactor, self._folders)
        ports = [held.port for held in self._held]
        self._workers[place] = Worker(place, self._nursery, ports, self._reactor, ready, ended)
        return self._workers[place]

    def _wait(self) -> None:
        """Wait for all workers; the reactor does not run yet, so that nobody else has to."""
        deadline = time.monotonic() + START_TIMEOUT
        nursery = self._nursery.channel
        while nursery is not None and not self._supervisor.ready():
            left = deadline - time.monotonic()
            waiting = {worker.channel.fileno(): worker for worker in self._workers.values()}
            poll = select.poll()
            for descriptor in waiting:
                poll.register(descriptor, select.POLLIN)
            poll.register(nursery, 0)  # its end, and not what it says of the workers
            for descriptor, _ in poll.poll(max(left, 0.0) * 1000):
                if descriptor in waiting:
                    waiting[descriptor].channel.doRead()
                else:
                    raise StartError(self._no_start())
            for worker in waiting.values():
                if not worker.channel.open or left <= 0:
                    raise StartError(self._no_start(worker))

    def _no_start(self, worker: Worker | None = None) -> str:
        """Stop what has been started, and return why it did not start."""
        self._supervisor.abandon()
        words = self._nursery.words if worker is None else worker.words
        if words is not None:
            words.drain()
        why = words.last if words is not None else ""
        if not why and worker is not None:
            why = self._end_of(worker) or f"it is not ready after {START_TIMEOUT:g} s"
        who = "the nursery" if worker is None else worker.name
        return f"mailroute: {who} does not start: {why or 'it has ended without a word'}"

    def _end_of(self, worker: Worker) -> str:
        """Return how a worker that said nothing has ended; empty if it has not."""
        nursery = self._nursery.channel
        if worker.channel.open or nursery is None:
            return ""
        poll = select.poll()
        poll.register(nursery, select.POLLIN)
        while not worker.how and nursery.open and poll.poll(1000):  # the nursery is about to tell
            nursery.doRead()
        return f"it {worker.how or 'is gone'}"

    # --- the rest ---

    def _forget(self, place: int) -> int:
        return 0 if self._counts is None else self._counts.forget(place)

    def _clean_up(self, result: Any) -> Any:
        self._nursery.close()
        for descriptor in (*self._memory, *self._folders):
            os.close(descriptor)
        self._counts = None  # which is memory, too
        return result


def _cannot_run(error: OSError) -> str:
    advice = remedy(error).removeprefix("; ") or "use workers = 1"
    return f"mailroute: cannot start workers with {sys.executable}: {error.strerror or error}: {advice}"
