"""A UNIX socket that somebody else has made: systemd, or the process that started this one.

Twisted's own port would give its name other permissions, and remove the name at the end.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import unix
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_log = Logger(namespace="mailroute.sockets")


@implementer(IListeningPort, IReadDescriptor)
class AdoptedUNIXPort:
    """Accepts on it, and leaves its name alone.

    :param descriptor: of the socket, which must not block; a copy of it is used.
    :raises OSError: no descriptor is left for the copy.
    """

    numberAccepts = 100
    """Connections to accept in one turn of the reactor."""

    disconnecting = False
    _realPortNumber = None  # noqa: N815 - what Twisted's transports ask a port for

    def __init__(self, reactor: Any, descriptor: int, factory: IProtocolFactory) -> None:
        self._reactor = reactor
        self.factory = factory
        self.socket = socket.fromfd(descriptor, socket.AF_UNIX, socket.SOCK_STREAM)

    def startListening(self) -> None:
        """Accept."""
        self.factory.doStart()
        self.startReading()

    def stopListening(self) -> None:
        """Accept no longer."""
        self.stopReading()
        self._close()

    def getHost(self) -> UNIXAddress:
        """Return where it listens."""
        return UNIXAddress(self.socket.getsockname())

    @property
    def connected(self) -> bool:
        """Whether it listens."""
        return self.socket.fileno() >= 0

    def startReading(self) -> None:
        """Accept again."""
        self._reactor.addReader(self)

    def stopReading(self) -> None:
        """Leave those who come to the kernel."""
        self._reactor.removeReader(self)

    # --- what the reactor calls ---

    def fileno(self) -> int:
        """Return the descriptor to watch; -1 once it is closed."""
        return self.socket.fileno()

    def doRead(self) -> None:
        """Accept who is there, up to ``numberAccepts``."""
        for _ in range(self.numberAccepts):
            try:
                connection, peer = self.socket.accept()
            except OSError:
                # Nobody is there any more; or no descriptor is left, and
                # `mailroute.descriptors` sees that we do not ask in vain for ever.
                return
            connection.setblocking(False)
            try:
                self._begin_session(connection, peer)
            except Exception:
                _log.failure("a connection could not be begun")
                connection.close()

    def connectionLost(self, reason: Failure) -> None:
        """Close it: the reactor ends."""
        del reason
        self._close()

    def logPrefix(self) -> str:
        """Return a name for the log."""
        return "mailroute.sockets"

    # --- its parts ---

    def _begin_session(self, connection: socket.socket, peer: Any) -> None:
        protocol = self.factory.buildProtocol(UNIXAddress(peer or None))
        if protocol is None:
            connection.close()
            return
        port: Any = self
        protocol.makeConnection(unix.Server(connection, protocol, peer, port, 0, self._reactor))

    def _close(self) -> None:
        if self.connected:
            self.socket.close()
            self.factory.doStop()


def adopt(reactor: Any, descriptor: int, family: int, factory: IProtocolFactory) -> Any:
    """Return a port that accepts on a listening socket, as `IReactorSocket.adoptStreamPort` does.

    :raises OSError: no descriptor is left for the copy that is used.
    """
    if family != socket.AF_UNIX:
        return reactor.adoptStreamPort(descriptor, family, factory)
    port = AdoptedUNIXPort(reactor, descriptor, factory)
    port.startListening()
    return port


class Adopting:
    """Stands for the reactor before an endpoint that does nothing but adopt a socket."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def adoptStreamPort(self, descriptor: int, family: int, factory: IProtocolFactory) -> Any:
        """Do it by `adopt`."""
        return adopt(self._reactor, descriptor, family, factory)
