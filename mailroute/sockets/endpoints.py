"""Twisted endpoints whose connections are sockets in the hub."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectError, getConnectError
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IReactorFDSet,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.sockets import hub, openssl
from mailroute.sockets.hub import READ, WRITE, Hub, hub_of
from mailroute.sockets.transport import Family, HubTransport, address_of

_log = Logger(namespace="mailroute.sockets")

AT_ONCE = 64
"""Connections to accept before those that are open have their turn."""

_KIND = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0)


def suits(reactor: Any) -> bool:
    """Whether a hub can work with this reactor, on this platform and with these libraries."""
    return hub.AVAILABLE and openssl.AVAILABLE and IReactorFDSet.providedBy(reactor)


# --- server -----------------------------------------------------------------


@implementer(IStreamServerEndpoint)
class HubServerEndpoint:
    """Listens as another endpoint does, and has the hub serve what comes.

    An endpoint whose port is no socket that connections can be accepted from
    is left as it is.
    """

    def __init__(self, reactor: Any, inner: IStreamServerEndpoint) -> None:
        self._reactor = reactor
        self._inner = inner

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen, as any endpoint."""
        return self._inner.listen(factory).addCallback(in_hub, self._reactor, factory)


def in_hub(port: Any, reactor: Any, factory: IProtocolFactory) -> Any:
    """Return a port that accepts in the place of this one, which listens; or this one, if that cannot be."""
    # TLS from the first byte by the endpoint itself ("ssl:") is a port of another kind.
    known = type(port).__module__ in ("twisted.internet.tcp", "twisted.internet.unix")
    if known and isinstance(port, tcp.Port) and suits(reactor):
        return HubPort(port, factory, hub_of(reactor))
    return port


@implementer(IListeningPort)
class HubPort:
    """Accepts the connections of a Twisted port in its place."""

    def __init__(self, port: tcp.Port, factory: IProtocolFactory, hub: Hub) -> None:
        self._port: Any = port
        self._factory = factory
        self._hub = hub
        self._accepting = False
        self.numberAccepts = AT_ONCE
        port.stopReading()
        self.startReading()

    def startListening(self) -> None:
        """Listen again."""
        self._port.startListening()
        self._port.stopReading()
        self.startReading()

    def stopListening(self) -> Any:
        """Stop; the Deferred fires when the port is closed."""
        self.stopReading()
        return self._port.stopListening()

    def getHost(self) -> Any:
        """Return the address that it listens on."""
        return self._port.getHost()

    def fileno(self) -> int:
        """Return the listening socket's descriptor."""
        return int(self._port.fileno())

    @property
    def connected(self) -> bool:
        """Whether it listens."""
        return bool(self._port.connected)

    @property
    def disconnecting(self) -> bool:
        """Whether it is being closed."""
        return bool(self._port.disconnecting)

    # --- what the hub says ---

    def receive(self) -> None:
        """Accept who is there."""
        self.doRead()

    def ready(self, events: int) -> None:
        """Accept; a listening socket has nothing else to say."""
        del events
        self.doRead()

    def cut(self) -> None:
        """Go on: a defect of ours has been logged, and the next connection may be luckier."""

    # --- as Twisted's ports, for whoever watches over descriptors ---

    def doRead(self) -> None:
        """Accept who is there, up to ``numberAccepts``."""
        listening = self._port.socket
        for _ in range(self.numberAccepts):
            try:
                sock, peer = listening.accept()
            except OSError:
                # Nobody is there any more; or no descriptor is left, and
                # `mailroute.descriptors` sees that we do not ask in vain for ever.
                return
            sock.setblocking(False)
            self._begin_session(sock, peer)

    def startReading(self) -> None:
        """Accept again."""
        if not self._accepting and self._port.connected:
            self._accepting = True
            self._hub.add(self._port.fileno(), self, READ)

    def stopReading(self) -> None:
        """Leave those who come to the kernel."""
        if self._accepting:
            self._accepting = False
            self._hub.remove(self._port.fileno())

    def _begin_session(self, sock: socket.socket, peer: Any) -> None:
        try:
            protocol = self._factory.buildProtocol(address_of(sock.family, peer))
            if protocol is None:
                sock.close()
            else:
                HubTransport(sock, self._hub, peer).start(protocol)
        except Exception:
            _log.failure("a connection could not be begun")
            sock.close()


# --- client -----------------------------------------------------------------


@implementer(IStreamClientEndpoint)
class HubClientEndpoint:
    """Connects to one address that needs no look-up: a TCP address in numbers, or a path."""

    def __init__(self, reactor: Any, family: Family, sockaddr: Any) -> None:
        self._reactor = reactor
        self._family = family
        self._sockaddr = sockaddr

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect, as any endpoint; the Deferred fails with a `ConnectError`."""
        try:
            sock = socket.socket(self._family, _KIND)
        except OSError as error:
            return _failed(error.errno or 0)
        error_number = sock.connect_ex(self._sockaddr)
        dialling = Dialling(sock, hub_of(self._reactor), factory, self._sockaddr)
        if error_number == 0:
            return succeed(dialling.connected())
        if error_number != errno.EINPROGRESS:
            sock.close()
            return _failed(error_number)
        return dialling.wait()


class Dialling:
    """A connection that is being made."""

    __slots__ = ("done", "factory", "hub", "sock", "sockaddr")

    def __init__(self, sock: socket.socket, hub: Hub, factory: Any, sockaddr: Any) -> None:
        self.sock = sock
        self.hub = hub
        self.factory = factory
        self.sockaddr = sockaddr
        self.done: Deferred[IProtocol] | None = None

    def wait(self) -> Deferred[IProtocol]:
        """Have the hub say when it is made; cancelling the Deferred gives it up."""
        self.hub.add(self.sock.fileno(), self, WRITE)
        self.done = Deferred(lambda _: self.cut())
        return self.done

    def connected(self) -> IProtocol:
        """Begin: the connection is made."""
        protocol: IProtocol = self.factory.buildProtocol(address_of(self.sock.family, self.sockaddr))
        HubTransport(self.sock, self.hub, self.sockaddr, client=True).start(protocol)
        return protocol

    def receive(self) -> None:
        """Nothing: epoll says no such thing of a connection that is being made."""

    def ready(self, events: int) -> None:
        """See what has become of it."""
        del events
        self.hub.remove(self.sock.fileno())
        done, self.done = self.done, None
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self.sock.close()
        if done is not None:
            if error:
                done.errback(Failure(_error(error)))
            else:
                done.callback(self.connected())

    def cut(self) -> None:
        """Give it up."""
        if self.done is not None:
            self.done = None
            self.hub.remove(self.sock.fileno())
            self.sock.close()


def _error(number: int) -> ConnectError:
    error: ConnectError = getConnectError((number, os.strerror(number)))
    return error


def _failed(number: int) -> Deferred[IProtocol]:
    failed: Deferred[IProtocol] = Deferred()
    failed.errback(Failure(_error(number)))
    return failed
