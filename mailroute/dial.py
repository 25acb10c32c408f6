"""Dialling an IP address.

Twisted's own ways look a name up, try all its addresses and keep an object for
each step.  An address that is written down needs none of that, and every
session dials.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Protocol

from twisted.internet import error as errors
from twisted.internet.interfaces import IReactorFDSet, ITransport, IWriteDescriptor
from twisted.internet.tcp import Server
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.deadlines import Deadline, deadlines_of

# Where it exists it saves setblocking() a system call.
_STREAM = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)

_UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK)


class Caller(Protocol):
    """Who wants a connection, and hears of one of these once."""

    def makeConnection(self, transport: ITransport) -> None:  # noqa: N802 (Twisted's name)
        """Take the connection."""

    def not_connected(self, error: BaseException | None) -> None:
        """Hear why there is none."""


class Dialled(Server):
    """A connection that we have dialled.

    To Twisted a `Server` is the transport of any socket that is connected already.
    """

    repstr = "<a connection that mailroute has dialled>"

    def __init__(
        self, sock: socket.socket, caller: Caller, where: tuple[str, int], reactor: IReactorFDSet
    ) -> None:
        no_listener: Any = None
        protocol: Any = caller
        super().__init__(sock, protocol, where, no_listener, 0, reactor)

    def startTLS(self, ctx: object, normal: bool = True) -> None:
        """Begin TLS, as the client."""
        super().startTLS(ctx, not normal)


class Address:
    """Where to connect to.

    :param reactor: an `IReactorFDSet` and `IReactorTime`.
    :param host: an IP address, version 4 or 6.
    :param timeout: seconds that connecting may take, 0 for no bound.
    :param bind: the IP address to connect from.
    """

    def __init__(
        self, reactor: Any, host: str, port: int, timeout: float = 30, bind: str | None = None
    ) -> None:
        self.reactor = reactor
        self.deadlines = deadlines_of(reactor)
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.where = (host, port)
        self.timeout = timeout
        self.bind = bind

    def dial(self, caller: Caller) -> Dialling:
        """Connect; the caller may hear what comes of it before this returns."""
        dialling = Dialling(self, caller)
        dialling.begin()
        return dialling


@implementer(IWriteDescriptor)
class Dialling:
    """One dial that is under way: waits for its socket to become writable."""

    __slots__ = ("_address", "_caller", "_deadline", "_socket", "_waits")

    def __init__(self, address: Address, caller: Caller) -> None:
        self._address = address
        self._caller: Caller | None = caller
        self._deadline: Deadline | None = None
        self._socket: socket.socket | None = None
        self._waits = False

    def begin(self) -> None:
        """Connect."""
        address = self._address
        try:
            sock = self._socket = socket.socket(address.family, _STREAM)
            sock.setblocking(False)
            if address.bind is not None:
                sock.bind((address.bind, 0))
        except OSError as error:
            self._fail(errors.ConnectBindError(error.errno, error.strerror))
            return
        result = sock.connect_ex(address.where)
        if result in _UNDER_WAY:
            # Asked again at once: a server on this machine has answered by now.
            result = sock.connect_ex(address.where)
        if result in _UNDER_WAY:
            self._waits = True
            address.reactor.addWriter(self)
            if address.timeout:
                self._deadline = address.deadlines.after(address.timeout, self)
        else:
            self._settle(0 if result == errno.EISCONN else result)

    def cancel(self) -> None:
        """Give it up; the caller hears nothing more."""
        self._caller = None
        self._fail(errors.ConnectingCancelledError(None))

    def time_is_up(self) -> None:
        """Give it up: it has taken too long."""
        self._deadline = None
        self._fail(errors.TimeoutError())

    # --- what the reactor wants ---

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:  # noqa: N802 (Twisted's name)
        """Return the name for the reactor's own log messages."""
        return "mailroute.dial"

    def doWrite(self) -> None:  # noqa: N802 (Twisted's name)
        """Go on: there is a connection, or an error."""
        self._settle(self._error())

    def connectionLost(self, reason: Failure) -> None:
        """Go on with the error that the reactor has seen first, or end because the reactor does."""
        error = self._error()
        self._fail(errors.getConnectError((error, os.strerror(error))) if error else reason.value)

    # --- ends ---

    def _error(self) -> int:
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if self._socket is not None else 0

    def _settle(self, error: int) -> None:
        if error:
            self._fail(errors.getConnectError((error, os.strerror(error))))
            return
        sock, caller, address = self._socket, self._caller, self._address
        self._let_go()
        if sock is not None and caller is not None:
            caller.makeConnection(Dialled(sock, caller, address.where, address.reactor))

    def _fail(self, error: BaseException | None) -> None:
        sock, caller = self._socket, self._caller
        self._let_go()
        if sock is not None:
            sock.close()
        if caller is not None:
            caller.not_connected(error)

    def _let_go(self) -> None:
        if self._waits:
            self._waits = False
            self._address.reactor.removeWriter(self)
        self._socket = self._caller = None
        if self._deadline is not None:
            self._deadline.discard(self)
            self._deadline = None
