"""Asking web servers: several for one purpose, over connections that are kept, each answer within a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, succeed
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionClosed,
    ConnectionDone,
    DNSLookupError,
)
from twisted.internet.interfaces import IConsumer, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from mailroute.sources.turns import Turns
from mailroute.tls import ClientTLS

_log = Logger(namespace="mailroute.routers")

MAX_BODY = 32768
"""Bytes of an answer's body.  They are what they are: no compression is asked for, and none undone."""

MAX_ANSWER = 2 * MAX_BODY
"""Bytes of an answer, its headers and all, as they come over the wire; whoever sends more is cut off."""

KEPT = 60
"""Seconds for which a connection that is not used is kept."""

LAST_BYTES = 1.0
"""Seconds for a body that nobody needs to end, so that the connection can be used again."""


class WebServerFails(Exception):
    """The server says that it cannot answer, or answers as it must not; the text is for the log."""


@frozen
class WebAnswer:
    """An answer: its status, its headers and, if it was wanted, its body."""

    status: int
    headers: Headers
    body: bytes

    def values(self, name: bytes) -> Sequence[bytes]:
        """Return the values of a header."""
        return self.headers.getRawHeaders(name, [])


@frozen
class _Server:
    """Where a server is asked."""

    url: str

    def __str__(self) -> str:
        return urlsplit(self.url).netloc


_Said = TypeVar("_Said")


class WebServers(Generic[_Said]):
    """Several servers, each of which can answer: the first that does is believed.

    :param urls: in the order in which they are to be asked.
    :param headers: for every request; they may hold secrets.
    :param read: reads an answer; raises `WebServerFails` where another server may do better.
    :param patience: seconds for all of them together.
    :param connections: at most so many requests are under way.
    """

    def __init__(
        self,
        urls: Sequence[str],
        reactor: Any,
        tls: Callable[[str], ClientTLS],
        read: Callable[[WebAnswer], _Said],
        *,
        headers: Mapping[bytes, bytes],
        patience: float,
        connections: int,
        label: str,
    ) -> None:
        self._servers = Turns(map(_Server, urls), reactor, label)
        self._headers = headers
        self._read = read
        self._label = label
        self._patience = patience / len(urls)
        self._reactor = reactor
        self._turns = DeferredSemaphore(connections)
        self._pool: Any = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = connections
        self._pool.cachedConnectionTimeout = KEPT
        self._agent: Any = Agent.usingEndpointFactory(
            reactor, _Endpoints(reactor, tls, self._patience), self._pool
        )

    async def ask(
        self, method: bytes, headers: Headers, body: bytes | None = None, *, needs_body: bool = True
    ) -> _Said:
        """Ask the servers in turn until one answers.

        :raises Exception: what the last of them did.
        """
        failure: Exception = WebServerFails("nobody was asked")
        for name, value in self._headers.items():
            headers.setRawHeaders(name, [value])
        for server in self._servers:
            await self._turns.acquire()
            try:
                url = server.url.encode("ascii")
                asking = Deferred.fromCoroutine(self._request(method, url, headers, body, needs_body))
                said = self._read(await asking.addTimeout(self._patience, self._reactor))
            except (WebServerFails, *_FAILURES) as error:
                failure = error
                if isinstance(error, WebServerFails):
                    why = {"source": self._label, "server": str(server), "why": str(error)}
                    _log.warn("{source}: {server} does not answer as it should: {why}", **why)
                self._servers.failed(server, error)
            else:
                self._servers.answered(server)
                return said
            finally:
                self._turns.release()
        raise failure

    async def _request(
        self, method: bytes, url: bytes, headers: Headers, body: bytes | None, needs_body: bool
    ) -> WebAnswer:
        try:
            response = await self._once(method, url, headers, body)
        except (RequestTransmissionFailed, ResponseNeverReceived):
            # The server may have closed a connection that was kept: to ask twice does no harm.
            response = await self._once(method, url, headers, body)
        return WebAnswer(response.code, response.headers, await self._body(response, needs_body))

    async def _once(self, method: bytes, url: bytes, headers: Headers, body: bytes | None) -> IResponse:
        try:
            asked: Deferred[IResponse] = self._agent.request(
                method, url, headers, None if body is None else _Body(body)
            )
            return await asked
        except ConnectingCancelledError:
            raise CancelledError from None
        except (ResponseFailed, RequestTransmissionFailed) as error:
            # It wears many a dress, and must not be taken for the server's fault.
            if any(reason.check(CancelledError) for reason in error.reasons):
                raise CancelledError from None
            raise

    async def _body(self, response: IResponse, needed: bool) -> bytes:
        reading = _Reading().of(response)
        try:
            if needed:
                return await reading
            await reading.addTimeout(LAST_BYTES, self._reactor)
        except (TookTooLong, *_FAILURES):
            if needed:
                raise
        return b""

    def close(self) -> Deferred[None]:
        """Close the connections that are kept."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed


_FAILURES = (
    TookTooLong,
    ConnectError,
    ConnectionClosed,
    DNSLookupError,
    ResponseFailed,
    RequestTransmissionFailed,
)


class _Reading(Protocol):
    """Reads the body of an answer.  Twisted's own `readBody` cannot be cancelled (as of 26.10)."""

    def __init__(self) -> None:
        self._read = bytearray()
        self._done: Deferred[bytes] = Deferred(lambda _: self._leave())

    def of(self, response: IResponse) -> Deferred[bytes]:
        """Return the body; cancelling it ends the connection."""
        response.deliverBody(self)
        return self._done

    def _leave(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        """Take a part."""
        self._read += data
        if len(self._read) > MAX_BODY and not self._done.called:
            self._done.errback(WebServerFails(f"more than {MAX_BODY} bytes"))
            self._leave()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """It is complete, or it will never be."""
        if self._done.called:
            return
        # A server of HTTP/1.0 may say with the end of the connection that the body ends.
        if reason.check(ResponseDone, PotentialDataLoss):
            self._done.callback(bytes(self._read))
        else:
            self._done.errback(reason)


@implementer(IBodyProducer)
class _Body:
    """The body of a request, which is small."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write it."""
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It is written already."""

    resumeProducing = stopProducing = pauseProducing


class _Counting(ProtocolWrapper):
    """Cuts a server off that sends too much for one answer."""

    transport: Any
    received = 0

    def write(self, data: bytes) -> None:
        """Write what belongs to a new question."""
        self.received = 0
        super().write(data)

    def writeSequence(self, data: Sequence[bytes]) -> None:
        """Write what belongs to a new question."""
        self.received = 0
        super().writeSequence(data)

    def loseConnection(self) -> None:
        """Close at once: whoever wants that has nothing more to say, and waits for nothing."""
        self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Take what belongs to the answer."""
        self.received += len(data)
        super().dataReceived(data)
        if self.received > MAX_ANSWER:
            self.transport.abortConnection()


@implementer(IStreamClientEndpoint)
@frozen
class _Counted:
    """An endpoint whose connections are counted."""

    endpoint: IStreamClientEndpoint

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        wrapping = WrappingFactory(factory)
        wrapping.protocol = _Counting
        connected: Deferred[Any] = self.endpoint.connect(wrapping)
        return connected.addCallback(lambda wrapper: wrapper.wrappedProtocol)


@implementer(IAgentEndpointFactory)
@frozen
class _Endpoints:
    reactor: Any
    tls: Callable[[str], ClientTLS]
    patience: float

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return where to connect."""
        host = uri.host.decode("ascii").strip("[]")
        endpoint: Any = HostnameEndpoint(self.reactor, host, uri.port, self.patience)
        if uri.scheme == b"https":
            endpoint = wrapClientTLS(self.tls(host), endpoint)
        return _Counted(endpoint)
