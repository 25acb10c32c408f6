"""ProxyClient: the connection to a backend until it is logged in."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import evolve
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, ITCPTransport, ITLSTransport
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str
from zope.interface import implementer

from mailroute.descriptors import remedy
from mailroute.events import (
    LoggedIn,
    LoginEvent,
    LoginOrder,
    Opened,
    Reason,
    Refusal,
    Refused,
    Send,
    StartTLS,
)
from mailroute.interfaces import ILogin, IMailProtocol
from mailroute.sockets.transport import HubTransport
from mailroute.tls import below_tls, explain, remember, resuming_failed, shakes_hands

if TYPE_CHECKING:
    from mailroute.backend import Backend, Dial

LINGER = 2.0
"""Seconds that a backend that has refused a login has to finish its side of the connection's end."""

_NEGOTIATING = "negotiating TLS"


@implementer(IHandshakeListener)
class ProxyClient(Protocol):
    """A connection to a backend until it is logged in: dials, and speaks a login's half of a protocol.

    It tells its ``attempt`` once how it ends, and knows nothing of how long that may take.

    :ivar heard: the backend has said something.
    """

    def __init__(self, backend: Backend, dial: Dial, protocol: IMailProtocol) -> None:
        self._backend = backend
        self._dial = dial
        self._protocol = protocol
        self._now = backend.clock.seconds
        self._linger: IDelayedCall | None = None
        self._stop_connecting: Callable[[], object] | None = None
        self._attempt: Owner | None = None
        self._order: LoginOrder | None = None
        self._was_ready = False
        self.heard = False

    def open(self, order: LoginOrder, attempt: Owner) -> None:
        """Dial, and log in at this account."""
        self._order = order
        self._attempt = attempt
        self._connect()

    def get_ready(self, keeper: Owner) -> None:
        """Dial, and be greeted, for nobody yet."""
        self._attempt = keeper
        self._connect()

    def open_ready(self, order: LoginOrder, attempt: Owner) -> None:
        """Log in at this account, on a connection that is ready.

        If it comes to its end instead of an answer, or to a goodbye, which is what
        backends do with those who wait too long, another one is dialled.
        """
        self._order = order
        self._attempt = attempt
        self._was_ready = True
        self._started = self._connected_at = self._now()
        if self._login is not None:
            self._obey(self._login.open(order))

    def _connect(self) -> None:
        self._login: ILogin | None = self._protocol.login(self._backend.terms[self._protocol.name])
        if self._order is not None:
            self._login.open(self._order)
        self._tls_first = self._backend.tls_first
        self._phase = "connecting"
        self._started = self._connected_at = self._now()
        stop_connecting = self._dial.connect(self)
        if self.transport is None:
            self._stop_connecting = stop_connecting

    def doing(self) -> str:
        """Say what it is doing, for the log."""
        return self._phase or (self._login.doing() if self._login is not None else "closing")

    def _resuming_failed(self) -> bool:
        """Tell whether it has come to its end in a handshake that was to resume a TLS session."""
        return self._phase == _NEGOTIATING and resuming_failed(self._dial.tls, self.transport)

    # --- what the transport tells it ---

    def connectionMade(self) -> None:
        """Announce the client if need be, then begin."""
        transport: Any = self.transport
        self._stop_connecting = None
        self._connected_at = self._now()
        self._phase = ""
        if not isinstance(transport, HubTransport) and ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
        header = b"" if self._order is None else self._backend.header(self._order.client)
        if header:
            # Before TLS, the endpoint's own too: whoever reads the header has no TLS yet.
            below_tls(transport).write(header)
        if shakes_hands(transport):
            self._tls_first, self._phase = True, _NEGOTIATING
        elif self._tls_first:
            self._start_tls()
        elif self._login is not None:
            self._obey(self._login.start())

    def handshakeCompleted(self) -> None:
        """The backend's certificate and its name are verified."""
        if self._login is None:
            return
        self._phase = ""
        first, self._tls_first = self._tls_first, False
        self._obey(self._login.start() if first else self._login.secured())

    def dataReceived(self, data: bytes) -> None:
        """Bytes came from the backend."""
        self.heard = True
        if self._login is not None:
            self._obey(self._login.receive(data))

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """The backend, or the network, has ended the connection."""
        self.connected = 0
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        if self._login is not None and (self._resuming_failed() or self._was_ready):
            # The password gets another handshake, in full, or another connection, fresh.
            self._was_ready = False
            self.transport = None
            self._connect()
            return
        if reason.check(SSL.Error, VerificationError):
            refusal = Refusal(Reason.MISCONFIGURED, f"TLS with the backend failed: {explain(reason)}")
        else:
            detail = f"the backend's connection ended while {self.doing()}: {reason.getErrorMessage()}"
            refusal = Refusal(Reason.UNAVAILABLE, detail, unreached=not self.heard)
        self._refuse(self.advised(refusal))

    # --- what else may happen to it ---

    def not_connected(self, error: BaseException | None) -> None:
        """The backend could not be reached."""
        self._stop_connecting = None
        detail = f"cannot connect to backend {self._backend.name}: {safe_str(error)}{remedy(error)}"
        self._refuse(self.advised(Refusal(Reason.UNAVAILABLE, detail, unreached=True)))

    def advised(self, refusal: Refusal) -> Refusal:
        """Return the refusal with what to do about it, where something is wrong with the backend."""
        probe = self._dial.probe
        if not probe or refusal.reason not in (Reason.UNAVAILABLE, Reason.MISCONFIGURED):
            return refusal
        return evolve(refusal, detail=f"{refusal.detail.rstrip('.')}; see mailroute probe {probe}")

    def too_slow(self) -> str:
        """Say what it is doing, for the log, as the reason to give it up."""
        self._resuming_failed()
        return self.doing()

    def give_up(self) -> None:
        """Close at once, and say no more."""
        self._end()
        transport: Any = self.transport
        stop_connecting, self._stop_connecting = self._stop_connecting, None
        if transport is not None:
            transport.abortConnection()
        elif stop_connecting is not None:
            stop_connecting()

    # --- running ---

    def _obey(self, events: list[LoginEvent]) -> None:
        assert self.transport is not None  # noqa: S101 (called while connected)
        for event in events:
            if isinstance(event, Send):
                self.transport.write(event.data)
            elif isinstance(event, LoggedIn):
                self._opened(event)
            elif isinstance(event, Refused):
                if self._was_ready and not event.answered and event.refusal.reason is Reason.UNAVAILABLE:
                    transport: Any = self.transport
                    transport.abortConnection()  # with its end another one is dialled
                else:
                    self._hang_up(event.refusal if event.answered else self.advised(event.refusal))
            elif isinstance(event, StartTLS):
                self._start_tls()
            elif self._attempt is not None:
                self._attempt.ready()

    def _start_tls(self) -> None:
        self._phase = _NEGOTIATING
        transport = ITLSTransport(self.transport, None)
        if transport is None or self._dial.tls is None:
            self._hang_up(Refusal(Reason.MISCONFIGURED, "this endpoint's transport cannot start TLS"))
            return
        transport.startTLS(self._dial.tls)

    def _opened(self, outcome: LoggedIn) -> None:
        attempt = self._end()
        if attempt is None:
            return
        transport: Any = self.transport
        # What the hub serves can wait: until we return it reads nothing, and whoever
        # takes it now would only have to have the reading begun again.
        in_hub = isinstance(transport, HubTransport)
        if not in_hub:
            transport.pauseProducing()
        remember(self._dial.tls, transport)
        connected = self._connected_at
        took = connected - self._started, self._now() - connected
        attempt.opened(Opened(transport, outcome, *took, self._backend.name))
        if in_hub and transport.protocol is self:
            transport.pauseProducing()

    def _hang_up(self, refusal: Refusal) -> None:
        """Close; a backend that does not play its part in that is cut off."""
        transport: Any = self.transport
        self._refuse(refusal)
        transport.loseConnection()
        if self.connected:
            self._linger = self._backend.clock.callLater(LINGER, transport.abortConnection)

    def _refuse(self, refusal: Refusal) -> None:
        attempt = self._end()
        if attempt is not None:
            attempt.refused(refusal)

    def _end(self) -> Owner | None:
        """Nothing is said any more.  Return whom to tell, if it has not been told."""
        # Both must not hold on to each other: only the garbage collector would get rid of them.
        attempt, self._attempt = self._attempt, None
        self._login = None
        return attempt


class Owner(typing.Protocol):
    """Whom a connection to a backend tells once how it has ended, and perhaps before that it is ready."""

    def ready(self) -> None:
        """The backend has greeted; the connection waits for an order."""

    def opened(self, opened: Opened) -> None:
        """The connection is logged in."""

    def refused(self, refusal: Refusal) -> None:
        """The connection has come to nothing."""
