"""ProxyClient: the connection to a backend until it is logged in."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
    ITLSTransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str
from zope.interface import implementer

from mailroute.deadlines import Deadlines, deadlines_of
from mailroute.descriptors import remedy
from mailroute.events import (
    Client,
    Credentials,
    Identity,
    LoggedIn,
    LoginEvent,
    LoginOrder,
    LoginRefused,
    LoginTerms,
    Method,
    Opened,
    Reason,
    Refusal,
    Refused,
    Send,
    StartTLS,
)
from mailroute.interfaces import IBackend, ILogin, IMailProtocol
from mailroute.sockets.endpoints import HubClientEndpoint
from mailroute.sockets.transport import HubTransport
from mailroute.tls import explain, remember, resuming_failed, shakes_hands
from mailroute.wire.proxy_header import version_1, version_2

LINGER = 2.0
"""Seconds that a backend that has refused a login has to finish its side of the connection's end."""

_NEGOTIATING = "negotiating TLS"


@implementer(IHandshakeListener)
class ProxyClient(Protocol):
    """A connection to a backend until it is logged in: dials, and speaks a login's half of a protocol.

    It tells its ``attempt`` once how it ends, and knows nothing of how long that may take.
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

        If it comes to its end instead of an answer, which is what backends do
        with those who wait too long, another one is dialled.
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
            # Before TLS: whoever reads the header has no TLS yet.
            transport.write(header)
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
            refusal = Refusal(Reason.UNAVAILABLE, detail)
        self._refuse(refusal)

    # --- what else may happen to it ---

    def not_connected(self, error: BaseException | None) -> None:
        """The backend could not be reached."""
        self._stop_connecting = None
        detail = f"cannot connect to backend {self._backend.name}: {safe_str(error)}{remedy(error)}"
        self._refuse(Refusal(Reason.UNAVAILABLE, detail))

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
                self._hang_up(event.refusal)
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
        attempt.opened(Opened(transport, outcome, connected - self._started, self._now() - connected))
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
    """Whom a connection to a backend tells once how it has ended, and before that perhaps that it is ready."""

    def ready(self) -> None:
        """The backend has greeted; the connection waits for an order."""

    def opened(self, opened: Opened) -> None:
        """The connection is logged in."""

    def refused(self, refusal: Refusal) -> None:
        """The connection has come to nothing."""


class Attempt:
    """An attempt to open one account within a backend's time, over one connection.

    ``done`` fires with the connection once it is logged in; cancelling it
    closes the connection.
    """

    __slots__ = ("_backend", "_connection", "_deadline", "done")

    def __init__(self, backend: Backend, connection: ProxyClient) -> None:
        self.done: Deferred[Opened] = Deferred(self._cancelled)
        self._backend = backend
        self._connection = connection
        self._deadline = backend.deadlines.after(backend.timeout, self) if backend.timeout else None

    def ready(self) -> None:
        """Nothing: a connection with an order goes on by itself."""

    def opened(self, opened: Opened) -> None:
        """The connection is logged in."""
        self._end()
        self.done.callback(opened)

    def refused(self, refusal: Refusal) -> None:
        """The connection has come to nothing."""
        self._end()
        self.done.errback(LoginRefused(refusal))

    def time_is_up(self) -> None:
        """It has taken too long."""
        backend, connection = self._backend, self._connection
        detail = f"backend {backend.name} took over {backend.timeout:g} s, at last {connection.too_slow()}"
        connection.give_up()
        self.refused(Refusal(Reason.UNAVAILABLE, detail))

    def _cancelled(self, done: Deferred[Opened]) -> None:
        del done  # it fails with CancelledError by itself
        self._end()
        self._connection.give_up()

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.discard(self)


class _Once(Factory[ProxyClient]):
    """Gives out the one client that it is made for."""

    noisy = False

    def __init__(self, proxy: ProxyClient) -> None:
        self._proxy = proxy

    def buildProtocol(self, addr: IAddress | None) -> ProxyClient:
        """Return the client."""
        del addr
        return self._proxy


@frozen
class Dial:
    """Where a backend serves one protocol; ``tls`` verifies it, and is None for a connection in the clear."""

    endpoint: IStreamClientEndpoint
    tls: IOpenSSLClientConnectionCreator | None = None

    def connect(self, proxy: ProxyClient) -> Callable[[], object]:
        """Get the proxy its connection; it may have it, or the reason why not, before this returns.

        :return: gives it up.
        """
        if isinstance(self.endpoint, HubClientEndpoint):
            return self.endpoint.dial(proxy).cut
        connecting = self.endpoint.connect(_Once(proxy))
        # A failure that comes from cancelling it finds nobody waiting for it.
        connecting.addErrback(lambda failure: proxy.not_connected(failure.value))
        return connecting.cancel


class Stock(typing.Protocol):
    """Keeps connections ready for their orders."""

    def take(self) -> ProxyClient | None:
        """Return one, and forget it; None if there is none."""


@implementer(IBackend)
@frozen
class Backend:
    """One ``[backend.…]`` block: where it is, and how to log in there.

    ``dials`` are by the protocols' names; ``tls_first`` tells TLS from the
    first byte from STARTTLS.  ``timeout`` is seconds for dialling and logging in together, 0 for no bound.
    """

    name: str
    dials: Mapping[str, Dial]
    clock: IReactorTime
    tls_first: bool = False
    method: Method = Method.REPLAY
    master: Credentials | None = field(default=None, repr=False)
    identity: Identity = Identity.NATIVE
    timeout: float = 30
    deadlines: Deadlines = field(init=False)
    terms: Mapping[str, LoginTerms] = field(init=False, repr=False)
    """What a login there needs to know, by the protocols' names."""

    stocks: dict[str, Stock] = field(init=False, factory=dict, repr=False)
    """Where connections are kept ready, by the protocols' names; `mailroute.warm` puts itself here."""

    @deadlines.default
    def _deadlines(self) -> Deadlines:
        return deadlines_of(self.clock)

    @terms.default
    def _terms(self) -> Mapping[str, LoginTerms]:
        return {
            name: LoginTerms(
                self.method,
                self.master,
                starttls=dial.tls is not None and not self.tls_first,
                tell_client=self.identity is Identity.NATIVE,
            )
            for name, dial in self.dials.items()
        }

    def open(
        self, protocol: IMailProtocol, credentials: Credentials, user: str, client: Client, seam: object
    ) -> Deferred[Opened]:
        """Connect and log in (`IBackend.open`)."""
        dial = self.dials.get(protocol.name)
        if dial is None:
            detail = f"backend {self.name} does not serve {protocol.name}"
            return fail(LoginRefused(Refusal(Reason.MISCONFIGURED, detail)))
        order = LoginOrder(credentials, user, client, seam)
        stock = self.stocks.get(protocol.name)
        ready = None if stock is None else stock.take()
        connection = ready or ProxyClient(self, dial, protocol)
        attempt = Attempt(self, connection)
        if ready is None:
            connection.open(order, attempt)
        else:
            connection.open_ready(order, attempt)
        return attempt.done

    def header(self, client: Client) -> bytes:
        """Return what goes before anything else: the PROXY header, if the backend wants one."""
        if self.identity not in (Identity.PROXY_V1, Identity.PROXY_V2):
            return b""
        source, destination = client.source, client.destination
        near = (source.host, source.port) if source is not None else None
        far = (destination.host, destination.port) if destination is not None else None
        if self.identity is Identity.PROXY_V1:
            return version_1(near, far)
        return version_2(
            near, far, unique_id=client.session_id, server_name=client.server_name, tls=client.tls
        )
