"""Twisted endpoints whose connections are sockets in the hub."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import typing
from collections.abc import Callable
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.error import getConnectError
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
from mailroute.sockets.adopted import AdoptedUNIXPort, Adopting
from mailroute.sockets.hub import READ, WRITE, Hub, hub_of
from mailroute.sockets.transport import Family, HubTransport, address_of

_log = Logger(namespace="mailroute.sockets")

AT_ONCE = 64
"""Connections to accept before those that are open have their turn."""

_UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY)

_KIND = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0)


def suits(reactor: Any) -> bool:
    """Whether a hub can work with this reactor, on this platform and with these libraries."""
    return hub.AVAILABLE and openssl.AVAILABLE and IReactorFDSet.providedBy(reactor)


# --- server -----------------------------------------------------------------


@implementer(IStreamServerEndpoint)
class HubServerEndpoint:
    """Listens as another endpoint does, and has the hub serve what comes.

    An endpoint whose port is no socket that connections can be accepted from
    is left as it is.  A socket that somebody else has made, such as systemd, is
    left as it is, too.
    """

    def __init__(self, reactor: Any, inner: IStreamServerEndpoint) -> None:
        self._reactor = reactor
        self._inner = inner
        if isinstance(inner, AdoptedStreamServerEndpoint):
            inner.reactor = Adopting(reactor)

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen, as any endpoint."""
        return self._inner.listen(factory).addCallback(in_hub, self._reactor, factory)


def in_hub(port: Any, reactor: Any, factory: IProtocolFactory) -> Any:
    """Return a port that accepts in the place of this one, which listens; or this one, if that cannot be."""
    twisteds = type(port).__module__ in ("twisted.internet.tcp", "twisted.internet.unix")
    known = isinstance(port, AdoptedUNIXPort) or (twisteds and isinstance(port, tcp.Port))
    # An endpoint that puts something in between, such as TLS ("ssl:"), has a port with another factory.
    direct = getattr(port, "factory", None) is factory
    if known and direct and suits(reactor):
        return HubPort(port, factory, hub_of(reactor))
    return port


@implementer(IListeningPort)
class HubPort:
    """Accepts the connections of another port in its place."""

    def __init__(self, port: Any, factory: IProtocolFactory, hub: Hub) -> None:
        self._port = port
        self._factory: Any = factory
        self._hub = hub
        self._accepting = False
        self.numberAccepts = AT_ONCE
        with contextlib.suppress(OSError):  # a UNIX socket knows no such thing
            # Linux hands it on to the connections.
            self._port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
        transport = HubTransport(sock, self._hub, peer)
        try:
            # Without the address, which is dear to make and which the transport has.
            protocol = self._factory.buildProtocol(None)
            if protocol is None:
                sock.close()
            else:
                transport.start(protocol)
        except Exception:
            _log.failure("a connection could not be begun")
            transport.give_up()


# --- client -----------------------------------------------------------------


class Caller(typing.Protocol):
    """Who wants a connection, and hears of one of these once."""

    def makeConnection(self, transport: Any) -> None:  # noqa: N802 (Twisted's name)
        """Take the connection."""

    def not_connected(self, error: BaseException | None) -> None:
        """Hear why there is none."""


@implementer(IStreamClientEndpoint)
class HubClientEndpoint:
    """Connects to one address that needs no look-up: a TCP address in numbers, or a path."""

    def __init__(self, reactor: Any, family: Family, sockaddr: Any) -> None:
        self._hub = hub_of(reactor)
        self._family = family
        self._sockaddr = sockaddr

    def dial(self, caller: Caller) -> Dialling:
        """Connect; the caller may hear what comes of it before this returns."""
        dialling = Dialling(self._hub, caller, self._sockaddr)
        dialling.begin(self._family)
        return dialling

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect, as any endpoint; the Deferred fails with a `ConnectError`."""
        waiting = _Waiting(factory, address_of(self._sockaddr))
        dialling = self.dial(waiting)
        waiting.cancel = dialling.cut
        return waiting.done


class Dialling:
    """A connection that is being made: a member of the hub until it is."""

    __slots__ = ("_caller", "_hub", "_sock", "_sockaddr", "_under_way")

    def __init__(self, hub: Hub, caller: Caller, sockaddr: Any) -> None:
        self._hub = hub
        self._caller: Caller | None = caller
        self._sockaddr = sockaddr
        self._sock: socket.socket
        self._under_way = False

    def begin(self, family: Family) -> None:
        """Connect, at the end of the hub's batch."""
        try:
            self._sock = sock = socket.socket(family, _KIND)
        except OSError as error:
            self._fail(error.errno or 0)
            return
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._hub.at_end(self):
            self.flush()

    def flush(self) -> None:
        """Connect, unless it has been given up."""
        if self._caller is None:
            return
        sock = self._sock
        result = sock.connect_ex(self._sockaddr)
        if result == errno.EINPROGRESS:
            # Asked again at once: a server on this machine has answered by now.
            result = sock.connect_ex(self._sockaddr)
        if result in _UNDER_WAY:
            try:
                self._hub.add(sock.fileno(), self, WRITE)
            except OSError as error:
                sock.close()
                self._fail(error.errno or 0)
            else:
                self._under_way = True
        elif result and result != errno.EISCONN:
            self._close()
            self._fail(result)
        else:
            self._succeed(in_hub=False)

    def receive(self) -> None:
        """Nothing: epoll says no such thing of a connection that is being made."""

    def ready(self, events: int) -> None:
        """See what has become of it."""
        del events
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._close()
            self._fail(error)
        else:
            self._succeed(in_hub=True)

    def cut(self) -> None:
        """Give it up; the caller hears nothing more."""
        if self._caller is not None:
            self._caller = None
            self._close()

    def _close(self) -> None:
        if self._under_way:
            self._hub.remove(self._sock.fileno())
        self._sock.close()

    def _succeed(self, *, in_hub: bool) -> None:
        protocol: Any = self._caller
        self._caller = None
        transport = HubTransport(self._sock, self._hub, self._sockaddr, client=True)
        try:
            transport.start(protocol, in_hub=in_hub)
        except Exception:
            transport.cut()
            raise

    def _fail(self, number: int) -> None:
        caller, self._caller = self._caller, None
        if caller is not None:
            caller.not_connected(getConnectError((number, os.strerror(number))))


class _Waiting:
    """A caller with a factory and a Deferred, as Twisted's endpoints have them."""

    def __init__(self, factory: IProtocolFactory, address: Any) -> None:
        self.done: Deferred[IProtocol] = Deferred(lambda _: self.cancel())
        self.cancel: Callable[[], None] = lambda: None
        self._factory = factory
        self._address = address

    def makeConnection(self, transport: HubTransport) -> None:  # noqa: N802 (Twisted's name)
        """Have the factory make the protocol."""
        protocol: Any = self._factory.buildProtocol(self._address)
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.done.callback(protocol)

    def not_connected(self, error: Any) -> None:
        """Tell why not."""
        self.done.errback(Failure(error))
