"""ProxyClient: the connection to a backend until it is logged in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError, ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
    ITLSTransport,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.events import (
    Client,
    Credentials,
    Identity,
    LoggedIn,
    LoginEvent,
    LoginOrder,
    LoginRefused,
    Method,
    Opened,
    Reason,
    Refusal,
    Refused,
    Send,
)
from mailroute.interfaces import IBackend, ILogin, IMailProtocol
from mailroute.tls import ResumptionFailed, explain, remember
from mailroute.wire.proxy_header import version_1, version_2

LINGER = 2.0
"""Seconds that a backend that has refused a login has to finish its side of the connection's end."""


@implementer(IHandshakeListener)
class ProxyClient(Protocol):
    """Speaks a login's half of a protocol over one connection.

    :param tls: makes the client's side of TLS; None for a connection in the clear.
    :param tls_first: TLS begins with the first byte, behind the PROXY header.
    :param header: bytes to send before anything else: the PROXY header.
    """

    def __init__(
        self,
        login: ILogin,
        clock: IReactorTime,
        tls: IOpenSSLClientConnectionCreator | None,
        *,
        tls_first: bool,
        header: bytes,
    ) -> None:
        self.done: Deferred[Opened] = Deferred(self._cancelled)
        self.resumption_failed = False
        self._login: ILogin | None = login
        self._clock = clock
        self._tls = tls
        self._tls_first = tls_first
        self._header = header
        self._started = clock.seconds()
        self._connected_at = self._started
        self._phase = "connecting"
        self._linger: IDelayedCall | None = None

    def doing(self) -> str:
        """Say what it is doing, for the log."""
        return self._phase or (self._login.doing() if self._login is not None else "closing")

    # --- what the transport tells it ---

    def connectionMade(self) -> None:
        """Announce the client if need be, then begin."""
        assert self.transport is not None  # noqa: S101 (Twisted's promise)
        self._connected_at = self._clock.seconds()
        self._phase = ""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        if self._header:
            # Before TLS: whoever reads the header has no TLS yet.
            self.transport.write(self._header)
        if self._tls_first:
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
        self.resumption_failed = bool(reason.check(ResumptionFailed))
        if reason.check(SSL.Error, VerificationError):
            refusal = Refusal(Reason.MISCONFIGURED, f"TLS with the backend failed: {explain(reason)}")
        else:
            detail = f"the backend's connection ended while {self.doing()}: {reason.getErrorMessage()}"
            refusal = Refusal(Reason.UNAVAILABLE, detail)
        self._refuse(refusal)

    # --- running ---

    def _obey(self, events: list[LoginEvent]) -> None:
        assert self.transport is not None  # noqa: S101 (called while connected)
        for event in events:
            match event:
                case Send(data):
                    self.transport.write(data)
                case LoggedIn():
                    self._opened(event)
                case Refused(refusal):
                    self._hang_up(refusal)
                case _:
                    self._start_tls()

    def _start_tls(self) -> None:
        self._phase = "negotiating TLS"
        transport = ITLSTransport(self.transport, None)
        if transport is None or self._tls is None:
            self._hang_up(Refusal(Reason.MISCONFIGURED, "this endpoint's transport cannot start TLS"))
            return
        transport.startTLS(self._tls)

    def _opened(self, outcome: LoggedIn) -> None:
        if self._login is None:
            return
        self._login = None
        transport = ITransport(self.transport)
        transport.pauseProducing()  # type: ignore[attr-defined]  # every stream transport is an IPushProducer
        remember(self._tls, transport)
        now = self._clock.seconds()
        self.done.callback(
            Opened(transport, outcome, self._connected_at - self._started, now - self._connected_at)
        )

    def _hang_up(self, refusal: Refusal) -> None:
        """Close; a backend that does not play its part in that is cut off."""
        transport: Any = self.transport
        self._refuse(refusal)
        transport.loseConnection()
        if self.connected:
            self._linger = self._clock.callLater(LINGER, transport.abortConnection)

    def _refuse(self, refusal: Refusal) -> None:
        if self._login is not None:
            self._login = None
            self.done.errback(LoginRefused(refusal))

    def _cancelled(self, done: Deferred[Opened]) -> None:
        del done  # it fails with CancelledError by itself
        self._login = None
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]  # all stream transports can


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

    def open(
        self, protocol: IMailProtocol, credentials: Credentials, user: str, client: Client, seam: object
    ) -> Deferred[Opened]:
        """Connect and log in (`IBackend.open`)."""
        dial = self.dials.get(protocol.name)
        if dial is None:
            return _refused(Reason.MISCONFIGURED, f"backend {self.name} does not serve {protocol.name}")
        order = LoginOrder(
            credentials,
            user,
            client,
            method=self.method,
            master=self.master,
            starttls=dial.tls is not None and not self.tls_first,
            tell_client=self.identity is Identity.NATIVE,
            seam=seam,
        )
        proxy: ProxyClient

        def connect() -> Deferred[Opened]:
            nonlocal proxy
            proxy = ProxyClient(
                protocol.login(order),
                self.clock,
                dial.tls,
                tls_first=self.tls_first,
                header=self._header(client),
            )
            opening = dial.endpoint.connect(_Once(proxy))
            opened: Deferred[Opened] = opening.addCallbacks(lambda _: proxy.done, self._not_connected)
            return opened

        # Whoever fails at resuming a session gets the password by another handshake, in full.
        opened = connect()
        opened.addErrback(lambda failure: connect() if proxy.resumption_failed else failure)
        if self.timeout:
            opened.addTimeout(self.timeout, self.clock)
            opened.addErrback(lambda failure: self._timed_out(failure, proxy))
        return opened

    def _header(self, client: Client) -> bytes:
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

    def _not_connected(self, failure: Failure) -> Failure:
        if failure.check(LoginRefused):
            return failure
        if failure.check(CancelledError, ConnectingCancelledError):
            return Failure(CancelledError())
        return _refusal(
            Reason.UNAVAILABLE, f"cannot connect to backend {self.name}: {failure.getErrorMessage()}"
        )

    def _timed_out(self, failure: Failure, proxy: ProxyClient) -> Failure:
        if not failure.check(defer.TimeoutError):
            return failure
        return _refusal(
            Reason.UNAVAILABLE, f"backend {self.name} took over {self.timeout:g} s, at last {proxy.doing()}"
        )


def _refusal(reason: Reason, detail: str) -> Failure:
    return Failure(LoginRefused(Refusal(reason, detail)))


def _refused(reason: Reason, detail: str) -> Deferred[Opened]:
    refused: Deferred[Opened] = Deferred()
    refused.errback(_refusal(reason, detail))
    return refused
