"""Taking a socket out of the reactor, and away from its Twisted transport."""

from __future__ import annotations

import socket
from typing import Any

from OpenSSL import SSL
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorFDSet, ITransport
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.pipe import openssl
from mailroute.pipe.hub import AVAILABLE, Hub
from mailroute.pipe.hub_leg import HubLeg
from mailroute.pipe.leg import Owner
from mailroute.pipe.socket_leg import SocketLeg
from mailroute.pipe.tls_leg import TLSLeg


@implementer(IHalfCloseableProtocol)
class Catcher(Protocol):
    """The protocol of a transport that is about to be taken over: keeps what still comes."""

    def readConnectionLost(self) -> None:
        """Nothing: whoever reads next is told again."""

    def writeConnectionLost(self) -> None:
        """Nothing: nobody has shut our writing side."""

    def __init__(self) -> None:
        self.caught = b""

    def dataReceived(self, data: bytes) -> None:
        """Keep it: Twisted delivers what it has read before it was paused."""
        self.caught += data


_DEAF = Protocol()
"""The protocol of transports whose sockets were taken: it hears their end, and does nothing."""


class Candidate:
    """A transport as a protocol sees it, and what is below.

    ``connection`` is the Twisted transport that has the socket, or None if
    this kind of transport cannot be taken over; ``layer`` the TLS on top of it.
    """

    __slots__ = ("connection", "layer")

    def __init__(self, transport: ITransport) -> None:
        top: Any = transport
        # After startTLS it is not the transport that speaks to the protocol, but the transport's own.
        layer = top.protocol if getattr(top, "TLS", False) and top.connected else top
        self.layer: Any = None
        if isinstance(layer, TLSMemoryBIOProtocol):
            self.layer = layer
            top = top if top is not layer else layer.transport
        self.connection: Any = top if isinstance(top, Connection) else None

    @property
    def ready(self) -> bool:
        """Whether its socket can be taken as it stands.

        A connection that has bytes left to send, or is on its way out, must be left to Twisted.
        """
        connection, layer = self.connection, self.layer
        if (
            not AVAILABLE
            or connection is None
            or not connection.connected
            or connection.disconnecting
            or not IReactorFDSet.providedBy(connection.reactor)
            or _has_bytes(connection)
        ):
            return False
        return layer is None or (
            openssl.AVAILABLE
            and bool(layer.connected)
            and not layer.disconnecting
            # What an unfinished handshake makes the layer keep back is nowhere public.
            and not layer._appSendBuffer
            and openssl.is_at_rest(layer.getHandle())
        )

    def catch(self) -> Catcher:
        """Stop reading, and have what still comes caught."""
        catcher = Catcher()
        if self.layer is not None:
            self.layer.wrappedProtocol = catcher
        else:
            self.connection.protocol = catcher
        self.connection.pauseProducing()
        return catcher

    def take(self, hub: Hub, owner: Owner) -> HubLeg:
        """Take the socket; to its transport this is as if the connection had been closed."""
        connection, layer = self.connection, self.layer
        connection.unregisterProducer()
        connection.stopReading()
        connection.stopWriting()
        theirs = connection.socket
        ours = socket.socket(theirs.family, theirs.type, 0, theirs.detach())
        ours.setblocking(False)
        tls: SSL.Connection | None = None
        if layer is None:
            connection.protocol = _DEAF
        else:
            tls = layer.getHandle()
            layer.wrappedProtocol = _DEAF
            # Otherwise it would end the stream in OpenSSL, too.
            layer._lostTLSConnection = True
        connection.connectionLost(Failure(ConnectionDone()))
        return SocketLeg(ours, hub, owner) if tls is None else TLSLeg(ours, tls, hub, owner)


def _has_bytes(transport: FileDescriptor) -> bool:
    # Not in the documentation, but in every FileDescriptor: what write() has left to be sent.
    return transport._tempDataLen > 0 or len(transport.dataBuffer) > transport.offset
