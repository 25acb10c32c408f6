"""A worker's side of listening: accepts on sockets that the parent has bound."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from zope.interface import implementer

from mailroute.sockets.adopted import adopt
from mailroute.sockets.endpoints import in_hub


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
        port = adopt(self._reactor, descriptor, self._family, factory)
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
