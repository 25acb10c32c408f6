"""What a protocol sees of a socket in the hub.

Twisted's own transports cost a session some twenty changes to the reactor's
epoll and as many objects, because they can do more than a proxy wants: pull
producers, file descriptors over UNIX sockets, a TLS layer that is a protocol
and a transport of its own.  These have the same interfaces where a protocol
looks at them, and can give their socket away (`mailroute.pipe`).
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    ITCPTransport,
    ITLSTransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.sockets import openssl
from mailroute.sockets.hub import NOTHING, READ, RESET, WRITE, Hub
from mailroute.sockets.with_tls import WithTLS

Family = socket.AddressFamily | int

AT_ONCE = 8 * 1024
"""Bytes that are read at once: before the login there are few, and what follows it is the splice's."""


def address_of(sockaddr: Any) -> IPv4Address | IPv6Address | UNIXAddress:
    """Return a socket's address as Twisted has it."""
    if not isinstance(sockaddr, tuple):
        return UNIXAddress(sockaddr or None)
    return IPv4Address("TCP", *sockaddr) if len(sockaddr) == 2 else IPv6Address("TCP", *sockaddr)


@implementer(ITCPTransport, ITLSTransport, IPushProducer)
class HubTransport(WithTLS):
    """One connected socket, its protocol, and TLS if there is any; small writes go out at once.

    ``rest`` is what the socket has not taken yet.  Nothing that a protocol
    calls here calls it back before it has returned.  ``said_goodbye`` is whether
    our side has ended, ``heard_all`` whether the peer's has, in the clear.
    """

    __slots__ = (
        "_peer",
        "events",
        "heard_all",
        "hub",
    )

    def __init__(self, sock: socket.socket, hub: Hub, peer: Any, *, client: bool = False) -> None:
        self.sock = sock
        self.hub = hub
        self._peer = peer
        self.client = client
        self.protocol: Any = None
        self.connected = 1
        self.disconnecting = self.handshaking = self.said_goodbye = self.heard_all = False
        self.reading = True
        self.rest = b""
        self.reason: Failure | None = None
        self.tls: SSL.Connection | None = None
        self.ssl: Any = None
        self.events = READ

    def start(self, protocol: IProtocol, *, in_hub: bool = False) -> None:
        """Begin: the protocol is told that it is connected, and then what comes.

        :param in_hub: its socket is in the hub already, on behalf of another member.
        """
        self.protocol = protocol
        descriptor = self.sock.fileno()
        if in_hub:
            self.hub.replace(descriptor, self)
            self.hub.modify(descriptor, READ)
        else:
            self.hub.add(descriptor, self, READ)
        protocol.makeConnection(self)

    @property
    def reactor(self) -> Any:
        """The reactor that serves it."""
        return self.hub.reactor

    # --- what the hub says ---

    def receive(self) -> None:
        """Read once, and give what there is to the protocol."""
        if self.tls is not None:
            if self.handshaking:
                self._receive_handshake()
            else:
                self._receive_tls()
            return
        try:
            data = self.sock.recv(AT_ONCE)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(Failure(ConnectionLost(str(error))))
            return
        if data:
            if not self.disconnecting:
                self.protocol.dataReceived(data)
        else:
            self._end_of_stream()

    def ready(self, events: int) -> None:
        """Handle what epoll says."""
        if events & WRITE and self.events & WRITE:
            self._send_rest()
        if not self.connected:
            return
        if (self.reading or self.handshaking) and events & ~WRITE:
            self.receive()
        elif events & ~(READ | WRITE):
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._lose(Failure(ConnectionLost(os.strerror(error))))

    def cut(self) -> None:
        """Close at once: a defect of ours has been logged."""
        self._lose(Failure(ConnectionAborted()))

    # --- ITCPTransport and IPushProducer ---

    def write(self, data: bytes) -> None:
        """Send these bytes; what the socket does not take now waits.

        Nothing can be said while hands are shaken: that is dropped.
        """
        if self.disconnecting or self.handshaking or not self.connected or not data:
            return
        if self.rest:
            self.rest += data
        else:
            self._send(data)

    def writeSequence(self, data: Any) -> None:
        """Send these bytes."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close once everything is sent, in good order."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            if self.handshaking:
                self.abortConnection()
            elif not self.rest:
                self._say_goodbye()

    def abortConnection(self) -> None:
        """Close at once, whatever is left."""
        if self.connected:
            self.disconnecting = True
            self.hub.reactor.callLater(0, self._abort)

    def _abort(self) -> None:
        if not self.connected:
            return
        if self.sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._lose(Failure(ConnectionAborted()))

    def pauseProducing(self) -> None:
        """Stop reading."""
        self.reading = False
        self._watch()

    def resumeProducing(self) -> None:
        """Read again; a peer that has finished is seen again."""
        if self.connected:
            self.reading = True
            self._watch()

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    def unregisterProducer(self) -> None:
        """Nothing: there are none."""

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Refuse: the splice does without.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError

    def fileno(self) -> int:
        """Return the socket's descriptor; -1 once it is closed."""
        return self.sock.fileno()

    def getHandle(self) -> Any:
        """Return the socket, or OpenSSL's connection on top of it."""
        return self.sock if self.tls is None else self.tls

    def getPeer(self) -> Any:
        """Return the other end's address."""
        return address_of(self._peer)

    def getHost(self) -> Any:
        """Return this end's address."""
        return address_of(self.sock.getsockname())

    def sockaddrs(self) -> tuple[Any, Any]:
        """Return the other end's address and this end's as sockets have them: tuples, or paths."""
        return self._peer, self.sock.getsockname()

    def getTcpNoDelay(self) -> bool:  # noqa: N802 (Twisted's name)
        """Whether small writes go out at once."""
        return bool(self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:  # noqa: N802 (Twisted's signature)
        """Have small writes go out at once, or not."""
        if self.sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, enabled)

    def getTcpKeepAlive(self) -> bool:  # noqa: N802 (Twisted's name)
        """Whether the kernel asks a silent peer if it is still there."""
        return bool(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:  # noqa: N802 (Twisted's signature)
        """Have the kernel ask a silent peer if it is still there, or not."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)

    def loseWriteConnection(self) -> None:
        """Refuse: only the splice closes one direction alone.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError

    # --- sending ---

    def _send(self, data: Any) -> None:
        try:
            sent = self.sock.send(data) if self.ssl is None else openssl.send(self.ssl, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            # What the peer has said before can still be read; the end is seen behind it.
            sent = len(data)
        if sent < len(data):
            self.rest = bytes(data[sent:])
            self._watch()

    def _send_rest(self) -> None:
        rest, self.rest = self.rest, b""
        self._send(memoryview(rest))
        if self.rest:
            return
        self._watch()
        if self.handshaking:
            self._shake_hands()
        elif self.disconnecting:
            self._say_goodbye()

    def _watch(self) -> None:
        events = (READ if self.reading or self.handshaking else 0) | (WRITE if self.rest else 0) or NOTHING
        if self.connected and events != self.events:
            self.events = events
            self.hub.modify(self.sock.fileno(), events)

    def _wait_to_write(self) -> None:
        """Read no more until the socket takes something; then `_send_rest` sees what is to be watched."""
        self.events = WRITE
        self.hub.modify(self.sock.fileno(), WRITE)

    # --- ends ---

    def _end_of_stream(self) -> None:
        protocol = self.protocol
        if self.disconnecting or not IHalfCloseableProtocol.providedBy(protocol):
            self._lose(Failure(ConnectionDone()))
            return
        self.heard_all = True
        self.reading = False
        self._watch()
        protocol.readConnectionLost()

    def _say_goodbye(self) -> None:
        """All is sent: end our side, and close once the peer has ended its own.

        A socket that is closed with unread bytes in it resets, and the peer
        may lose what it has not read yet.  Whoever closes sets a bound on this.
        """
        if self.said_goodbye:
            return
        self.said_goodbye = True
        if self.tls is not None:
            if openssl.shutdown(self.ssl) < 0:
                openssl.clear_errors()
        elif self.heard_all:
            self._lose(Failure(ConnectionDone()), soon=True)
            return
        else:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
        self.resumeProducing()

    def _lose(self, reason: Failure, *, soon: bool = False) -> None:
        """Close the socket, and tell the protocol: now, or ``soon`` if it is the protocol that is calling."""
        if not self.connected:
            return
        self.connected = 0
        self.hub.remove(self.sock.fileno())
        if self.tls is not None:
            self.tls.set_app_data(None)
        self.sock.close()
        protocol, self.protocol = self.protocol, None
        if protocol is None:
            return
        if soon:
            self.hub.reactor.callLater(0, protocol.connectionLost, reason)
        else:
            protocol.connectionLost(reason)

    def give_up(self) -> None:
        """Close at once: its protocol could not be begun, and is not told."""
        self.protocol = None
        self.cut()

    def give_away(self) -> socket.socket:
        """Return the socket, which stays in the hub, with ``events``; this transport is at its end."""
        self.connected = 0
        self.protocol = None
        return self.sock
