"""The page over HTTP: one request a connection, GET or HEAD of one path, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, HTTPFactory, Request

from mailroute.metrics.families import CONTENT_TYPE

PATH = b"/metrics"
"""Where the page is."""

MAX_CONNECTIONS = 16
"""Connections at once; Prometheus makes one at a time.  Whoever comes on top of that is cut off."""

MAX_TIME = 10.0
"""Seconds from connecting to the end, in which the request has to come and the answer has to be taken."""

MAX_HEADER = HTTPChannel.totalHeadersSize
"""Bytes of a request's first line and its header."""

MAX_BODY = 4096
"""Bytes of a request's body, of which none is of any use: whoever sends more is cut off."""

_METHODS = (b"GET", b"HEAD")

_log = Logger(namespace="mailroute.metrics")

Page = Callable[[], Deferred[bytes]]
"""Returns the page as it is now."""


class _Request(Request):
    """A request, and what is said to it."""

    channel: Any  # None once the client has gone

    def gotLength(self, length: int | None) -> None:
        """Make no room for the body, for which Twisted would take a file."""
        del length
        self.content = BytesIO()
        self._body = 0

    def handleContentChunk(self, data: bytes) -> None:
        """Drop a part of the body."""
        self._body += len(data)
        if self._body > MAX_BODY:
            self.channel.loseConnection()

    def process(self) -> None:
        """Answer."""
        if self.path != PATH:
            self._say(404, b"There is only /metrics here.\n")
        elif self.method not in _METHODS:
            self.setHeader(b"allow", b", ".join(_METHODS))
            self._say(405, b"Only GET and HEAD are understood.\n")
        else:
            page = self.channel.factory.page()
            self.notifyFinish().addErrback(lambda _: page.cancel())
            page.addCallbacks(self._show, self._fail)

    def _show(self, page: bytes) -> None:
        self._say(200, page, CONTENT_TYPE)

    def _fail(self, failure: Failure) -> None:
        if self.channel is None:  # the client has gone, and so it was given up
            return
        _log.failure("the metrics cannot be collected", failure=failure)
        self._say(500, b"The metrics cannot be collected: the log has the reason.\n")

    def _say(self, code: int, text: bytes, kind: bytes = b"text/plain; charset=utf-8") -> None:
        if self.channel is None:  # the client has gone
            return
        self.setResponseCode(code)
        self.setHeader(b"content-type", kind)
        self.setHeader(b"content-length", str(len(text)).encode())
        self.write(text)
        self.finish()


class _Channel(HTTPChannel):
    """A connection, which ends after one request and does not last."""

    requestFactory = _Request
    factory: PageFactory
    _bound: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Begin."""
        self.factory.channels.add(self)
        self._bound = self.factory.reactor.callLater(MAX_TIME, self.abort)
        super().connectionMade()

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Have the connection end with the answer."""
        del version
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return False

    def abort(self) -> None:
        """End it, whatever is under way."""
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """It has ended."""
        self.factory.channels.discard(self)
        if self._bound is not None and self._bound.active():
            self._bound.cancel()
        super().connectionLost(reason)


class PageFactory(HTTPFactory):
    """Makes the connections.

    :param page: is called for each request that gets the page.
    """

    protocol: Any = _Channel
    noisy = False

    def __init__(self, page: Page, reactor: IReactorTime) -> None:
        # Each connection has its own bound, which activity does not put off.
        super().__init__(timeout=None, reactor=reactor)  # type: ignore[arg-type]
        self.page = page
        self.channels: set[Any] = set()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:  # type: ignore[override]
        """Make a connection, or cut it off."""
        return super().buildProtocol(addr) if len(self.channels) < MAX_CONNECTIONS else None

    def startFactory(self) -> None:
        """Do nothing: there is no log of requests."""

    def stopFactory(self) -> None:
        """Do nothing likewise."""

    def log(self, request: Request) -> None:
        """Leave it out: a line for each scrape is of no use."""

    def abort(self) -> None:
        """End all connections."""
        for channel in list(self.channels):
            channel.abort()
