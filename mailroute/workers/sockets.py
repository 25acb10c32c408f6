"""The parent's side of listening: binds, and leaves it to others to accept."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.abstract import isIPv6Address
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import Factory
from zope.interface import implementer

from mailroute.config import Listener
from mailroute.listening import Listening


@implementer(IListeningPort)
class HeldPort:
    """Sockets that the parent keeps open, so that no connection is lost while a worker is made again.

    :param sockets: one for each worker, or one for all.
    """

    def __init__(self, *sockets: socket.socket) -> None:
        self.family = int(sockets[0].family)
        self.each = len(sockets) > 1
        self._sockets = sockets

    def descriptor(self, place: int) -> int:
        """Return the descriptor of a worker's socket, by its number from 0."""
        return self._sockets[place % len(self._sockets)].fileno()

    def startListening(self) -> None:
        """It does."""

    def stopListening(self) -> Any:
        """Listen no longer."""
        for one in self._sockets:
            one.close()

    def getHost(self) -> Any:
        """Return where it listens, as `socket.socket.getsockname` does."""
        return self._sockets[0].getsockname()


class _HeldUNIXPort(HeldPort):
    """A UNIX socket, whose name and lock Twisted removes at the end."""

    def __init__(self, port: Any) -> None:
        super().__init__(socket.fromfd(port.fileno(), socket.AF_UNIX, socket.SOCK_STREAM))
        self._port = port

    def stopListening(self) -> Any:
        super().stopListening()
        return self._port.stopListening()


class Binder:
    """Stands for the reactor before an endpoint: what it makes listens, and accepts nobody.

    A TCP port gets a socket for each worker (SO_REUSEPORT): the kernel then
    spreads the clients evenly, and wakes one worker for each.  A UNIX socket,
    or one that systemd has opened, exists once, and all workers share it.

    :param reactor: the reactor.
    :param workers: how many there are.
    """

    def __init__(self, reactor: Any, workers: int) -> None:
        self._reactor = reactor
        self._workers = workers

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = ""
    ) -> HeldPort:
        """Bind a socket for each worker (`IReactorTCP.listenTCP`).

        :raises CannotListenError: it cannot be had.
        """
        del factory
        sockets: list[socket.socket] = []
        try:
            family, address = _address(interface, port)
            # A socket that shares a port may join those of another mailroute of
            # the same user; one that does not finds out whether there are any.
            with _bound(family, address, shared=False) as first:
                address = first.getsockname()
            for _ in range(self._workers):
                sockets.append(_bound(family, address, shared=True))
            for one in sockets:
                one.listen(backlog)
        except OSError as error:
            for one in sockets:
                one.close()
            raise CannotListenError(interface, port, error) from None
        return HeldPort(*sockets)

    def listenUNIX(self, *arguments: Any, **options: Any) -> HeldPort:
        """Bind a UNIX socket (`IReactorUNIX.listenUNIX`).

        :raises CannotListenError: it cannot be had.
        """
        port = self._reactor.listenUNIX(*arguments, **options)
        port.stopReading()
        return _HeldUNIXPort(port)

    def adoptStreamPort(self, descriptor: int, family: int, factory: IProtocolFactory) -> HeldPort:
        """Take a copy of a socket that listens already (`IReactorSocket.adoptStreamPort`)."""
        del factory
        copy = socket.fromfd(descriptor, family, socket.SOCK_STREAM)
        copy.setblocking(False)
        return HeldPort(copy)


def _address(interface: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Return family and address, the zone of a link-local one included."""
    if not isIPv6Address(interface):
        return socket.AF_INET, (interface, port)
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    [found, *_] = socket.getaddrinfo(interface, port, socket.AF_INET6, socket.SOCK_STREAM, flags=numeric)
    return socket.AF_INET6, found[4]


def _bound(family: socket.AddressFamily, address: Any, *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


class Held(Listening):
    """One listener of the parent's: bound while the program may bind low ports, and held until its end."""

    def __init__(self, listener: Listener, reactor: Any, workers: int) -> None:
        nobody: Factory[Any] = Factory()
        nobody.noisy = False
        super().__init__(nobody, listener.name, lambda: listener.server_endpoint(Binder(reactor, workers)))

    @property
    def port(self) -> HeldPort:
        """Its sockets, once it listens."""
        port: Any = self._port
        assert isinstance(port, HeldPort)  # noqa: S101 - all that a Binder makes
        return port
