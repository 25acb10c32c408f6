"""Taking a socket out of the reactor, and away from its Twisted transport."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
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

from mailroute.pipe.hub_leg import HubLeg
from mailroute.pipe.leg import Owner
from mailroute.pipe.socket_leg import SocketLeg
from mailroute.pipe.tls_leg import TLSLeg
from mailroute.sockets import openssl
from mailroute.sockets.hub import AVAILABLE, Hub, hub_of
from mailroute.sockets.transport import HubTransport


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


_NOWHERE = socket.socket()
_NOWHERE.close()
"""The socket of legs that were gone before they were joined."""


class Candidate(ABC):
    """A transport whose connection may be taken over."""

    @property
    def early(self) -> bytes:
        """What has come on it and been told to nobody; to be asked for once it is taken."""
        return b""

    @property
    @abstractmethod
    def hub(self) -> Hub:
        """The hub of the reactor that it lives in."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether it can be taken over as it stands."""

    @property
    @abstractmethod
    def restless(self) -> bool:
        """Whether it is likely to be in the middle of something, and needs a turn of the reactor."""

    @property
    @abstractmethod
    def gone(self) -> bool:
        """Whether it is closed, or closing."""

    @abstractmethod
    def catch(self) -> Catcher:
        """Stop reading, and have what still comes caught."""

    @abstractmethod
    def take(self, owner: Owner) -> HubLeg:
        """Take the connection over; a dead one makes a leg that is gone."""


class FromHub(Candidate):
    """A transport whose socket is in the hub already."""

    ready = True
    restless = False

    def __init__(self, transport: HubTransport) -> None:
        self._transport = transport

    @property
    def early(self) -> bytes:
        """What has come with the end of the TLS handshake, if it is joined by whoever hears of that."""
        return self._transport.early

    @property
    def hub(self) -> Hub:
        """The one that it is in."""
        return self._transport.hub

    @property
    def gone(self) -> bool:
        """Whether it is closed, or closing."""
        return not self._transport.connected or self._transport.disconnecting

    def catch(self) -> Catcher:
        """Stop reading; nothing comes after that."""
        catcher = Catcher()
        self._transport.pauseProducing()
        self._transport.protocol = catcher
        return catcher

    def take(self, owner: Owner) -> HubLeg:
        """Take the socket, and what has not been sent yet."""
        transport = self._transport
        leg: HubLeg = (
            SocketLeg(transport.sock, transport.hub, owner)
            if transport.tls is None
            else TLSLeg(transport.sock, transport.tls, transport.ssl, transport.hub, owner)
        )
        if self.gone:
            leg.gone = True
        else:
            transport.give_away()
            leg.inherit(transport.events, transport.rest, blocked=transport.blocked)
        return leg


class FromTwisted(Candidate):
    """A transport of Twisted's, and what is below.

    ``connection`` is the transport that has the socket, or None if this kind
    of transport cannot be taken over; ``layer`` the TLS on top of it.
    """

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
    def hub(self) -> Hub:
        """The one of the transport's reactor."""
        return hub_of(self.connection.reactor)

    @property
    def ready(self) -> bool:
        """Whether its socket can be taken: it is not on its way out, and has nothing left to send."""
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

    @property
    def gone(self) -> bool:
        """Whether it is closed, or closing."""
        return any(
            not one.connected or one.disconnecting for one in (self.connection, self.layer) if one is not None
        )

    @property
    def restless(self) -> bool:
        """With TLS: we may be called with what it has just decrypted, and it keeps small writes back."""
        return self.layer is not None

    def catch(self) -> Catcher:
        """Stop reading, and have what still comes caught."""
        catcher = Catcher()
        if self.layer is not None:
            self.layer.wrappedProtocol = catcher
        else:
            self.connection.protocol = catcher
        self.connection.pauseProducing()
        return catcher

    def take(self, owner: Owner) -> HubLeg:
        """Take the socket; to its transport this is as if the connection had been closed."""
        connection, layer, hub = self.connection, self.layer, self.hub
        if not self.ready:
            if not self.gone:
                # It has not come to rest; what it has left to send goes nowhere now.
                connection.abortConnection()
            leg = SocketLeg(_NOWHERE, hub, owner)
            leg.gone = True
            return leg
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
        if tls is None:
            return SocketLeg(ours, hub, owner)
        return TLSLeg(ours, tls, openssl.attach(tls, ours.fileno()), hub, owner)


def candidate(transport: ITransport) -> Candidate:
    """Look at a transport."""
    return FromHub(transport) if isinstance(transport, HubTransport) else FromTwisted(transport)


def _has_bytes(transport: FileDescriptor) -> bool:
    # Not in the documentation, but in every FileDescriptor: what write() has left to be sent.
    return transport._tempDataLen > 0 or len(transport.dataBuffer) > transport.offset
