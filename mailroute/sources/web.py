"""Asking web servers: several for one purpose, over connections that are kept, each answer within a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.web.client import HTTPConnectionPool, RequestTransmissionFailed, ResponseNeverReceived
from twisted.web.http_headers import Headers

from mailroute.sources.trust import TLSByName
from mailroute.sources.turns import Turns, all_failed
from mailroute.sources.web_client import FAILURES, WebAnswer, WebClient, WebServerFails

MAX_BODY = 32768
"""Bytes of an answer's body.  They are what they are: no compression is asked for, and none undone."""

MAX_ANSWER = 2 * MAX_BODY
"""Bytes of an answer, its headers and all, as they come over the wire; whoever sends more is cut off."""

KEPT = 60
"""Seconds for which a connection that is not used is kept."""


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
        tls: TLSByName,
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
        self._client = WebClient(
            reactor,
            tls,
            patience=self._patience,
            max_body=MAX_BODY,
            max_answer=MAX_ANSWER,
            pool=self._pool,
        )

    async def ask(
        self, method: bytes, headers: Headers, body: bytes | None = None, *, needs_body: bool = True
    ) -> _Said:
        """Ask the servers in turn until one answers.

        :raises Exception: what all of them did.
        """
        failures: list[tuple[_Server, Exception]] = []
        for name, value in self._headers.items():
            headers.setRawHeaders(name, [value])
        for server in self._servers:
            await self._turns.acquire()
            try:
                url = server.url.encode("ascii")
                asking = Deferred.fromCoroutine(self._request(method, url, headers, body, needs_body))
                said = self._read(await asking.addTimeout(self._patience, self._reactor))
            except (WebServerFails, *FAILURES) as error:
                failures.append((server, error))
                self._servers.failed(server, error)
            else:
                self._servers.answered(server)
                return said
            finally:
                self._turns.release()
        raise all_failed(failures)

    async def _request(
        self, method: bytes, url: bytes, headers: Headers, body: bytes | None, needs_body: bool
    ) -> WebAnswer:
        try:
            return await self._client.ask(method, url, headers, body, needs_body=needs_body)
        except (RequestTransmissionFailed, ResponseNeverReceived):
            # The server may have closed a connection that was kept: to ask twice does no harm.
            return await self._client.ask(method, url, headers, body, needs_body=needs_body)

    def close(self) -> Deferred[None]:
        """Close the connections that are kept."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed
