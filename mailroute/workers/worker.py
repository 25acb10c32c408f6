"""A worker: a mailroute with a reactor of its own, on sockets that the parent has bound."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger, globalLogBeginner

from mailroute.descriptors import remedy
from mailroute.listening import StartError
from mailroute.service import Share, assemble
from mailroute.sources import BadOption
from mailroute.workers.channel import Channel
from mailroute.workers.counts import SharedGate
from mailroute.workers.inherited import Inherited
from mailroute.workers.logs import Sender
from mailroute.workers.questions import FIGURES

if TYPE_CHECKING:
    from mailroute.workers.nursery import Given, Order

_log = Logger(namespace="mailroute.workers")

ORPHANED_TIMEOUT = 10.0
"""Seconds in which a worker ends in good order when its parent is gone."""


def prepare(given: Given) -> None:
    """Import what only the worker needs, while it can be imported."""
    import_module(given.reactor)
    if given.settings.metrics is not None:
        import_module("mailroute.workers.figures")


def run(given: Given, order: Order) -> None:
    """Be a worker until the parent says that it is enough, or is gone.

    :raises StartError: something is not as it was when mailroute was started.
    """
    import_module(given.reactor).install()
    from twisted.internet import reactor

    worker = Worker(given, order, reactor)
    try:
        worker.start()
    except BadOption as error:
        raise StartError(str(error)) from None
    worker.run()


class Worker:
    """The service of a worker, and its end of the channel to the parent."""

    def __init__(self, given: Given, order: Order, reactor: Any) -> None:
        self._reactor = reactor
        self._leaving = False
        self._place = order.place
        self._channel = Channel(order.channel, reactor, self._received, self._orphaned)
        # What has been logged in the nursery was logged by the parent before.  Standard
        # output and error stay what they are: the parent logs what comes there.
        globalLogBeginner.beginLoggingTo(
            [Sender(partial(self._channel.send, b"log"))], discardBuffer=True, redirectStandardIO=False
        )
        limits = given.settings.limits
        self._listeners = [
            Inherited(reactor, family, descriptor, order.place) for family, descriptor in order.sockets
        ]
        share = Share(
            SharedGate(
                limits.connections, limits.connections_per_address, given.counts, order.place, given.gate_key
            ),
            [partial(_itself, listener) for listener in self._listeners],
            given.tls,
            given.salt,
            announced=True,
        )
        self._service = assemble(given.settings, reactor, share)
        self._answer: Callable[[bytes], object] | None = None
        if given.settings.metrics is not None:
            # Not above, as it needs a library that only some have.
            from mailroute.workers.figures import Answers

            self._answer = Answers(self._service, reactor, self._channel)

    def start(self) -> None:
        """Serve clients, and say so."""
        self._service.privilegedStartService()
        self._service.startService()
        self._reactor.addSystemEventTrigger("before", "shutdown", self._service.stopService)
        self._channel.send(b"ready", str(os.getpid()).encode())

    def run(self) -> None:
        """Run the reactor."""
        self._reactor.callWhenRunning(signal.signal, signal.SIGTERM, self._asked)
        self._reactor.run()

    def _asked(self, number: int, frame: object) -> None:
        # Not by Twisted's own handler: a service manager tells all processes to end, and
        # then the parent says so once more, which the reactor would take for a mistake.
        del number, frame
        self._reactor.callFromThread(self._stop)

    def _received(self, word: bytes, rest: bytes, descriptors: Sequence[int]) -> None:
        if word == b"stop":
            self._stop()
        elif word == b"adopt":
            asked = json.loads(rest)
            self._adopt(asked["place"], asked["listeners"], list(descriptors))
        elif word == b"drop":
            for listener in self._listeners:
                listener.drop(int(rest))
        elif word == FIGURES and self._answer is not None:
            self._answer(rest)

    def _adopt(self, place: int, listeners: Sequence[int], descriptors: list[int]) -> None:
        """Accept for a worker that is away, unless there is no descriptor to do it with."""
        try:
            if len(descriptors) < len(listeners):  # the kernel leaves out those for which there is no room
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            for position in listeners:
                self._listeners[position].adopt(place, descriptors.pop(0))
        except OSError as error:
            for one in descriptors:
                os.close(one)
            _log.error(
                "worker {other} is away, and worker {own} cannot accept its clients meanwhile: "
                "{reason}{remedy}",
                other=place + 1,
                own=self._place + 1,
                reason=error.strerror,
                remedy=remedy(error),
            )

    def _orphaned(self) -> None:
        # Nobody would kill it if it could not end.
        self._reactor.callLater(ORPHANED_TIMEOUT, os._exit, 1)
        self._stop()

    def _stop(self) -> None:
        if not self._leaving:
            self._leaving = True
            self._reactor.stop()


def _itself(listener: Inherited) -> Inherited:
    return listener
