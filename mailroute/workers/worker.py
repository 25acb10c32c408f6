"""A worker: a mailroute with a reactor of its own, on sockets that the parent has bound."""

from __future__ import annotations

import os
import socket
from functools import partial
from importlib import import_module
from typing import Any

from twisted.application.service import IService
from twisted.logger import globalLogBeginner

from mailroute import config
from mailroute.service import Share, StartError, assemble
from mailroute.workers import start
from mailroute.workers.channel import Channel
from mailroute.workers.counts import Counts, SharedGate
from mailroute.workers.inherited import Inherited
from mailroute.workers.letter import Letter
from mailroute.workers.logs import Sender

ORPHANED_TIMEOUT = 10.0
"""Seconds in which a worker ends in good order when its parent is gone."""


def run(letter: Letter, number: int) -> None:
    """Be the worker of that number, from 0, until the parent says that it is enough, or is gone.

    :raises StartError: the settings cannot be made, or the sockets cannot be used.
    """
    import_module(letter.reactor).install()
    from twisted.internet import reactor

    try:
        worker = Worker(letter, number, reactor)
    except config.ConfigError as error:
        raise StartError(str(error)) from None
    worker.start()
    worker.run()


def _itself(listener: Inherited) -> Inherited:
    return listener


class Worker:
    """The service of a worker, and its end of the channel to the parent."""

    def __init__(self, letter: Letter, number: int, reactor: Any) -> None:
        self._reactor = reactor
        self._leaving = False
        settings = config.reread(letter.source, reactor)
        limits = settings.limits
        counts = Counts(start.COUNTS, letter.layout)
        self._listeners = [
            Inherited(reactor, family, descriptors, number) for family, descriptors in letter.listeners
        ]
        gate = SharedGate(limits.connections, limits.connections_per_address, counts, number, letter.gate_key)
        share = Share(
            gate,
            [partial(_itself, listener) for listener in self._listeners],
            salt=letter.salt,
            announced=True,
        )
        self._service: IService = assemble(settings, reactor, share)
        self._channel = Channel(socket.socket(fileno=start.CHANNEL), reactor, self._received, self._orphaned)

    def start(self) -> None:
        """Serve clients, and say so.

        Until here, whatever goes wrong is told on standard error: Python does
        that by itself, whatever it is.
        """
        self._service.privilegedStartService()
        self._service.startService()
        self._reactor.addSystemEventTrigger("before", "shutdown", self._leave)
        globalLogBeginner.beginLoggingTo([Sender(lambda event: self._channel.send(b"log", event))])
        self._channel.send(b"ready")

    def run(self) -> None:
        """Run the reactor."""
        self._reactor.run()

    def _received(self, word: bytes, rest: bytes) -> None:
        if word == b"stop":
            self._stop()
        elif word == b"adopt":
            for listener in self._listeners:
                listener.adopt(int(rest))
        elif word == b"drop":
            for listener in self._listeners:
                listener.drop(int(rest))

    def _orphaned(self) -> None:
        # Nobody would kill it if it could not end.
        self._reactor.callLater(ORPHANED_TIMEOUT, os._exit, 1)
        self._stop()

    def _stop(self) -> None:
        if not self._leaving:
            self._reactor.stop()

    def _leave(self) -> Any:
        self._leaving = True
        return self._service.stopService()
