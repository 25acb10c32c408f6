"""A worker's side of listening: accepts on sockets that the parent has bound."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReadDescriptor,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.sockets.endpoints import in_hub

_log = Logger(namespace="mailroute.workers")


@implementer(IStreamServerEndpoint, IListeningPort)
class Inherited:
    """A listener of which each worker has its own socket, or all have one.

    A worker also accepts for another one that is not there, on its socket:
    otherwise those whom the kernel has sent there would wait for it.

    :param descriptor: of this worker's socket, or of the only one.  All descriptors are closed here.
    :param place: this worker's number, from 0.
    """

    def __init__(self, reactor: Any, family: int, descriptor: int, place: int) -> None:
        self._reactor = reactor
        self._family = family
        self._descriptor = descriptor
        self._place = place
        self._factory: IProtocolFactory | None = None
        self._ports: dict[int, Any] = {}
        self._watch: Callable[[Any], None] | None = None

    def listen(self, factory: IProtocolFactory) -> Deferred[Any]:
        """Accept (`IStreamServerEndpoint.listen`)."""
        self._factory = factory
        self.adopt(self._place, self._descriptor)
        return succeed(self)

    def adopt(self, place: int, descriptor: int) -> None:
        """Accept on the socket of the worker that has that place."""
        try:
            if self._factory is not None and place not in self._ports:
                port = self._ports[place] = self._port(descriptor, self._factory)
                if self._watch is not None:
                    self._watch(port)
        finally:
            os.close(descriptor)

    def _port(self, descriptor: int, factory: IProtocolFactory) -> Any:
        if self._family == socket.AF_UNIX:
            # Twisted would give an adopted UNIX socket other permissions, and
            # remove its name once this worker is done with it.
            port = _UNIXPort(self._reactor, descriptor, factory)
            port.startListening()
            return port
        port = self._reactor.adoptStreamPort(descriptor, self._family, factory)
        return in_hub(port, self._reactor, factory)

    def for_each(self, watch: Callable[[Any], None]) -> None:
        """Show these ports, and those that are adopted from now on, to somebody."""
        self._watch = watch
        for port in self._ports.values():
            watch(port)

    def drop(self, place: int) -> None:
        """Accept on another worker's socket no longer."""
        if place != self._place and place in self._ports:
            self._ports.pop(place).stopListening()

    def startListening(self) -> None:
        """It does."""

    def stopListening(self) -> Deferred[Any]:
        """Accept no longer."""
        ports, self._ports, self._factory = self._ports, {}, None
        return gatherResults([maybeDeferred(port.stopListening) for port in ports.values()])

    def getHost(self) -> Any:
        """Return where it listens."""
        return self._ports[self._place].getHost()


_OUT_OF_SOMETHING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 1.0  # seconds without accepting, when there is something that has run out
_AT_ONCE = 100  # connections accepted in one turn of the reactor


@implementer(IListeningPort, IReadDescriptor)
class _UNIXPort:
    """Accepts on a UNIX socket that somebody else has made, and will remove."""

    def __init__(self, reactor: Any, descriptor: int, factory: IProtocolFactory) -> None:
        self._reactor = reactor
        self._socket = socket.fromfd(descriptor, socket.AF_UNIX, socket.SOCK_STREAM)
        self._factory = factory

    def startListening(self) -> None:
        """Accept."""
        if self._socket.fileno() >= 0:
            self._reactor.addReader(self)

    def stopListening(self) -> None:
        """Accept no longer."""
        self._reactor.removeReader(self)
        self._socket.close()

    def getHost(self) -> Any:
        """Return where it listens, as `socket.socket.getsockname` does."""
        return self._socket.getsockname()

    def fileno(self) -> int:
        """Return the descriptor to watch; -1 once it is closed."""
        return self._socket.fileno()

    def doRead(self) -> None:
        """Accept those who wait."""
        for _ in range(_AT_ONCE):
            try:
                connection, _name = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_SOMETHING:
                    self._pause(error)
                    return
                continue  # that client has gone
            with connection:
                connection.setblocking(False)
                self._reactor.adoptStreamConnection(connection.fileno(), socket.AF_UNIX, self._factory)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives it up, because it ends."""
        del reason
        self._socket.close()

    def logPrefix(self) -> str:
        """Return a name for the log."""
        return "workers"

    def _pause(self, error: OSError) -> None:
        _log.error("cannot accept connections: {reason}", reason=error.strerror)
        self._reactor.removeReader(self)
        self._reactor.callLater(_PAUSE, self.startListening)
