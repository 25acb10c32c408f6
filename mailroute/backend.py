"""A backend: where it is, and attempts to open accounts there."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping

from attrs import field, frozen
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import (
    IAddress,
    IOpenSSLClientConnectionCreator,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from zope.interface import implementer

from mailroute.deadlines import Deadline, Deadlines, deadlines_of
from mailroute.events import (
    Change,
    Client,
    Credentials,
    Identity,
    LoginOrder,
    LoginRefused,
    LoginTerms,
    Method,
    Opened,
    Reason,
    Refusal,
)
from mailroute.interfaces import IBackend, IMailProtocol
from mailroute.proxy_client import ProxyClient
from mailroute.sockets.endpoints import HubClientEndpoint
from mailroute.wire.proxy_header import version_1, version_2


class Attempt:
    """An attempt to open one account within a backend's time, over one connection.

    ``done`` fires with the connection once it is logged in; cancelling it
    closes the connection.
    """

    __slots__ = ("_backend", "_connection", "_deadline", "_patience", "done")

    def __init__(self, backend: Backend, connection: ProxyClient, patience: float = 0) -> None:
        self.done: Deferred[Opened] = Deferred(self._cancelled)
        self._backend = backend
        self._connection = connection
        self._deadline: Deadline | None = None
        # For its first word a backend has less time than for all, if there are others.
        self._patience = patience if patience and not 0 < backend.timeout <= patience else 0.0
        self._wait(self._patience or backend.timeout)

    def _wait(self, seconds: float) -> None:
        self._deadline = self._backend.deadlines.after(seconds, self) if seconds else None

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
        waited = self._patience or backend.timeout
        if self._patience and connection.heard:
            self._patience = 0.0
            self._wait(backend.timeout - waited if backend.timeout else 0)
            return
        detail = f"backend {backend.name} took over {waited:g} s, at last {connection.too_slow()}"
        connection.give_up()
        refusal = Refusal(Reason.UNAVAILABLE, detail, unreached=not connection.heard)
        self.refused(connection.advised(refusal))

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
    """Where a backend serves one protocol; ``tls`` verifies it, and is None for a connection in the clear.

    ``probe`` is what ``mailroute probe`` has to be told to look at it, empty if it cannot.
    """

    endpoint: IStreamClientEndpoint
    tls: IOpenSSLClientConnectionCreator | None = None
    probe: str = ""

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
@frozen(eq=False)
class Backend:
    """One ``[backend.…]`` block: where it is, and how to log in there.

    ``dials`` are by the protocols' names; ``tls_first`` tells TLS from the
    first byte from STARTTLS.  ``timeout`` is seconds for dialling and logging in together, 0 for no bound.
    ``change`` makes what `changed` returns; None: it cannot be changed.
    """

    name: str
    dials: Mapping[str, Dial]
    clock: IReactorTime
    tls_first: bool = False
    method: Method = Method.REPLAY
    master: Credentials | None = field(default=None, repr=False)
    master_separator: str = ""
    identity: Identity = Identity.NATIVE
    timeout: float = 30
    change: Callable[[Change], IBackend] | None = field(default=None, repr=False)
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
                master_separator=self.master_separator,
            )
            for name, dial in self.dials.items()
        }

    def changed(self, change: Change) -> IBackend:
        """Return this one with what a route has otherwise (`IBackend.changed`)."""
        if self.change is None:
            raise ValueError("it takes no changes")
        return self.change(change)

    def open(self, protocol: IMailProtocol, order: LoginOrder) -> Deferred[Opened]:
        """Connect and log in (`IBackend.open`)."""
        dial = self.dials.get(protocol.name)
        if dial is None:
            detail = f'backend {self.name} does not serve {protocol.name}: give it {protocol.name} = "…"'
            return fail(LoginRefused(Refusal(Reason.MISCONFIGURED, detail)))
        stock = self.stocks.get(protocol.name)
        ready = None if stock is None else stock.take()
        connection = ready or ProxyClient(self, dial, protocol)
        attempt = Attempt(self, connection, 0 if ready is not None else order.patience)
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
