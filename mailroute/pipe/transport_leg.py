"""An end that is a Twisted transport: the other end's producer and its own protocol at once.

What is said here of transports was read in Twisted's sources
(`twisted.internet.abstract`, `twisted.protocols.tls`); not all of it is in the
documentation.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    ITransport,
)
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.pipe.leg import Leg, Owner

# A transport reads this much at once, and asks for a pause as soon as more
# than this waits to be written.  So a direction holds one read and one buffer,
# and for a moment a second copy of both while Twisted joins them to send: three
# quarters of HELD_AT_MOST with the other direction.
CLEAR_BUFFER = 32 * 1024

# With TLS an unfinished record (16 KiB) waits in front of it, and what was
# decrypted in one go (a read and that record) behind it.
TLS_BUFFER = 18 * 1024


@implementer(IProtocol, IHalfCloseableProtocol, IPushProducer)
class TransportLeg(Leg):
    """One end: its transport's protocol, and the other transport's producer.

    ``write`` is the other transport's.
    """

    __slots__ = ("half_closes", "socket", "transport", "write")

    other: TransportLeg

    def __init__(self, transport: ITransport, owner: Owner) -> None:
        super().__init__(owner)
        # Any: no one interface has writing, pausing, half-close and abort.
        self.transport: Any = layer(transport)
        self.socket: Any = socket_under(transport)
        self.half_closes = _half_closes(self.transport)
        self.gone = not getattr(transport, "connected", True)

    def part(self) -> None:
        """Let go of the other end."""
        super().part()
        del self.write

    def join(self, other: TransportLeg) -> None:  # type: ignore[override]  # both ends are of one kind
        """Take the transport over from its protocol, and supply the other with what comes."""
        self.other = other
        self.write = other.transport.write
        if self.gone:
            return
        if isinstance(self.socket, FileDescriptor):
            self.socket.bufferSize = CLEAR_BUFFER if self.half_closes else TLS_BUFFER
        if isinstance(self.transport, ProtocolWrapper):
            self.transport.wrappedProtocol = self
        else:
            self.transport.protocol = self
        self.transport.unregisterProducer()
        self.transport.registerProducer(other, True)

    @property
    def on_its_way_out(self) -> bool:
        """Whether somebody has closed the transport already."""
        return any(getattr(layer, "disconnecting", False) for layer in (self.transport, self.socket))

    @property
    def holds_bytes(self) -> bool:
        """Whether bytes are left that the socket has not taken; asked of a transport that has just died."""
        socket = self.socket
        return isinstance(socket, FileDescriptor) and (
            socket._tempDataLen > 0 or len(socket.dataBuffer) > socket.offset
        )

    # --- what the transport says ---

    def makeConnection(self, transport: ITransport) -> None:  # noqa: N802 (Twisted's name)
        """Nothing: the transport was connected long before it was ours."""

    def connectionMade(self) -> None:
        """Nothing, for the same reason."""

    def dataReceived(self, data: bytes) -> None:
        """Pass bytes on.  Every byte of a session comes through here: keep it short."""
        if self.mute:
            return
        self.heard = self.now()
        self.passed += len(data)
        self.write(data)

    def readConnectionLost(self) -> None:
        """Note that the peer has finished sending, and may still want to receive."""
        if not self.finished_reading:
            self.finished_reading = True
            if self.closing:
                self.transport.loseConnection()
            else:
                self.owner.finished_reading(self)

    def writeConnectionLost(self) -> None:
        """Note that all was sent, and the peer told that nothing more will come."""
        self.finished_writing = True
        self.waiting_since = None
        self.owner.finished_writing(self)

    def connectionLost(self, reason: Failure) -> None:
        """Note that the transport is closed."""
        if not self.gone:
            self.gone = True
            # A TLS layer that has died would keep hold of its producer.
            self.transport.unregisterProducer()
            closed = reason.check(ConnectionDone) is not None
            error = "" if closed else type(reason.value).__name__
            self.owner.lost(self, error, spilt=self.holds_bytes)

    # --- what the other transport says ---

    def pauseProducing(self) -> None:
        """Stop reading: the other end is full.  What still comes is written all the same, in order."""
        if self.gone:
            return
        if self.other.waiting_since is None:
            self.other.waiting_since = self.now()
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on: the other end has taken all that it had."""
        if self.gone:
            return
        if self.other.waiting_since is not None:
            self.other.heard = self.now()
        self.other.waiting_since = None
        if self.other.on_its_way_out:
            # TLS closes by itself when it is told to by its peer, and the
            # socket under it would now wait for a producer that has nothing
            # more to give.
            self.other.transport.unregisterProducer()
        if not self.finished_reading:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Nothing: the other transport says this as it dies, and the splice then closes this one.

        A producer is meant to close here.  The socket under a TLS layer says
        it first, and so TLS would never get to say goodbye.
        """

    # --- what the splice says ---

    def start(self) -> None:
        """Begin to read, unless the first bytes are too many for the other end."""
        if self.other.waiting_since is None:
            self.transport.resumeProducing()

    give_first = dataReceived

    def finish_writing(self) -> None:
        """Send what is left, then tell the peer that nothing more will come."""
        # Registered, a paused producer would be resumed in place of this.
        self.transport.unregisterProducer()
        if self.waiting_since is None:
            self.waiting_since = self.now()
        self.transport.loseWriteConnection()

    def close(self) -> None:
        """Send what is left and close in good order."""
        if self.gone or self.closing:
            return
        self.closing = True
        # Registered, a producer would keep the transport open.
        self.transport.unregisterProducer()
        if not self.half_closes or self.finished_reading:
            self.transport.loseConnection()
        elif not self.finished_writing:
            # A socket closed with unread bytes in it resets, and the peer may
            # lose what it has not read yet.  So read, till it closes as well.
            self.transport.loseWriteConnection()
        if not self.gone:
            # To see the peer's own goodbye.
            self.transport.resumeProducing()

    def cut(self) -> None:
        """Close at once, whatever is left."""
        if self.gone or self.aborted:
            return
        self.closing = True
        self.transport.unregisterProducer()
        if self.finished_writing and not self.aborted:
            # All has been sent; only the peer's own goodbye is missing.
            self.transport.loseConnection()
        else:
            self.aborted = True
            self.transport.abortConnection()


def socket_under(transport: Any) -> Any:
    """Return the transport that has the socket, below any layers of TLS and the like."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def layer(transport: Any) -> Any:
    """Return what speaks to a protocol: after startTLS that is not the transport, but its own protocol."""
    return transport.protocol if getattr(transport, "TLS", False) and transport.connected else transport


def _half_closes(layer: Any) -> bool:
    """Whether either direction can end alone: TLS cannot do it, and other wrappers do not tell of it."""
    return IHalfCloseableDescriptor.providedBy(layer) and not isinstance(layer, ProtocolWrapper)
