"""Asking a web server: one request and its answer, which is bounded as a body and on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionClosed,
    ConnectionDone,
    DNSLookupError,
)
from twisted.internet.interfaces import IConsumer, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from mailroute.sources.context import Unanswered
from mailroute.sources.hosts import Hosts
from mailroute.sources.trust import TLSByName

LAST_BYTES = 1.0
"""Seconds for a body that nobody needs to end, so that the connection can be used again."""

FAILURES = (
    TookTooLong,
    ConnectError,
    ConnectionClosed,
    DNSLookupError,
    ResponseFailed,
    RequestTransmissionFailed,
)
"""What ends a request when a server cannot be reached, or goes away."""


class WebServerFails(Unanswered):
    """The server says that it cannot answer, or answers as it must not; the text is for the log."""


@frozen
class WebAnswer:
    """An answer: its status, its headers and, if it was wanted, its body.  They may hold secrets."""

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)

    def values(self, name: bytes) -> Sequence[bytes]:
        """Return the values of a header."""
        return self.headers.getRawHeaders(name, [])


class WebClient:
    """Asks web servers, over http or https, each request once.

    No redirect is followed.  No compression is undone: a few bytes would
    become as many as the server likes before anybody could count them.

    :param tls: makes the client's side of TLS for ``https``.
    :param patience: seconds for a connection to be made.
    :param max_body: bytes of an answer's body.
    :param max_answer: bytes of an answer, its headers and all, as they come over the wire (inside TLS);
        whoever sends more is cut off.
    :param pool: keeps connections for the next request; None: each request has a connection of its own.
    """

    def __init__(
        self,
        reactor: Any,
        tls: TLSByName,
        *,
        patience: float,
        max_body: int,
        max_answer: int,
        pool: HTTPConnectionPool | None = None,
    ) -> None:
        self._reactor = reactor
        self._max_body = max_body
        endpoints = _Endpoints(Hosts(reactor), tls, patience, max_answer)
        self._agent: Any = Agent.usingEndpointFactory(reactor, endpoints, pool)

    async def ask(
        self,
        method: bytes,
        url: bytes,
        headers: Headers,
        body: bytes | None = None,
        *,
        needs_body: bool = True,
    ) -> WebAnswer:
        """Send a request, and return the answer, whatever its status is; cancelling it ends the connection.

        There is no bound on the time but that for connecting.

        :param needs_body: whether the answer's body is wanted; if not, it is none of it that counts when it
            does not come, or breaks off.
        :raises WebServerFails: the answer is too long.
        :raises Exception: one of `FAILURES`, or what Twisted finds wrong with the address.
        """
        try:
            asked: Deferred[IResponse] = self._agent.request(
                method, url, headers, None if body is None else _Body(body)
            )
            response = await asked
            return WebAnswer(response.code, response.headers, await self._body(response, needs_body))
        except ConnectingCancelledError:
            raise CancelledError from None
        except (ResponseFailed, RequestTransmissionFailed) as error:
            raise _meant(error) from None

    async def _body(self, response: IResponse, needed: bool) -> bytes:
        reading = _Reading(self._max_body).of(response)
        try:
            if needed:
                return await reading
            await reading.addTimeout(LAST_BYTES, self._reactor)
        except (TookTooLong, *FAILURES):
            if needed:
                raise
        return b""


def _meant(error: ResponseFailed | RequestTransmissionFailed) -> BaseException:
    """Return what has ended a request: to be given up, or cut off, wears many a dress."""
    for reason in error.reasons:
        if reason.check(CancelledError, WebServerFails):
            meant: BaseException = reason.value
            return meant
    return error


class _Reading(Protocol):
    """Reads the body of an answer.  Twisted's own `readBody` cannot be cancelled (as of 26.10)."""

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
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
        if len(self._read) > self._max_body and not self._done.called:
            self._done.errback(WebServerFails(f"more than {self._max_body} bytes"))
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

    factory: _CountingFactory
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
        if self.received > self.factory.max_answer:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """Tell whose fault it is."""
        if self.received > self.factory.max_answer:
            reason = Failure(WebServerFails(f"more than {self.factory.max_answer} bytes with its headers"))
        super().connectionLost(reason)


class _CountingFactory(WrappingFactory):
    """Makes connections that are counted."""

    protocol = _Counting
    noisy = False

    def __init__(self, factory: IProtocolFactory, max_answer: int) -> None:
        super().__init__(factory)
        self.max_answer = max_answer


@implementer(IStreamClientEndpoint)
@frozen
class _Counted:
    """An endpoint whose connections are counted."""

    endpoint: IStreamClientEndpoint
    max_answer: int

    def connect(self, factory: Any) -> Deferred[IProtocol]:
        # Or each connection would be two lines in the log.
        factory.noisy = False
        connected: Deferred[Any] = self.endpoint.connect(_CountingFactory(factory, self.max_answer))
        return connected.addCallback(lambda wrapper: wrapper.wrappedProtocol)


@implementer(IAgentEndpointFactory)
@frozen
class _Endpoints:
    hosts: Hosts
    tls: TLSByName
    patience: float
    max_answer: int

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return where to connect."""
        host = uri.host.decode("ascii").strip("[]")
        endpoint: Any = self.hosts.endpoint(host, uri.port, self.patience)
        if uri.scheme == b"https":
            endpoint = wrapClientTLS(self.tls(host), endpoint)
        return _Counted(endpoint, self.max_answer)
