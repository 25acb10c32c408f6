"""Requests to OAuth servers, bounded in time and size."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote_plus, urlencode

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.python.failure import Failure
from twisted.python.url import URL
from twisted.web.http_headers import Headers

from mailroute.events import LoginRefused, Reason, Refusal
from mailroute.sources.faults import cause
from mailroute.sources.guard import Breaker
from mailroute.sources.trust import TLSByName
from mailroute.sources.web_client import WebClient, WebServerFails

MAX_DOCUMENT = 256 * 1024
"""Bytes of an answer: some hundred keys."""

MAX_ANSWER = MAX_DOCUMENT + 64 * 1024
"""Bytes of an answer with its headers, as they come over the wire."""

MAX_ASKED = 256
"""Requests at once; whoever comes on top of that is told to come again."""

FAILURES = 5
"""Failures in a row after which a server that gives out tokens is left alone."""

PAUSE = 10.0
"""Seconds for which it is left alone; then one request tries it."""

PATIENCE = 30.0
"""Seconds for a connection to be made where nothing else bounds a request."""

_USUAL = {
    "Accept": ["application/json"],
    # RFC 9110 section 12.5.3: without it any coding may come.
    "Accept-Encoding": ["identity"],
}


@frozen
class _Request:
    method: str
    url: str
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)


@frozen
class Answer:
    """An answer's status and its content, which may be a secret."""

    status: int
    content: bytes = field(repr=False)


class Web:
    """Asks servers over HTTPS.

    :param clock: the reactor.
    :param tls: makes the client's side of TLS; says who may vouch for the servers.
    :param timeout: seconds for one answer; None: whoever asks sees to it.
    """

    def __init__(self, clock: Any, tls: TLSByName, timeout: float | None) -> None:
        self._clock = clock
        self._timeout = timeout
        self._asked = 0
        # A connection for each request: the server may close one that is kept just as it is used
        # again, and a POST is not repeated.
        self._client = WebClient(
            clock, tls, patience=timeout or PATIENCE, max_body=MAX_DOCUMENT, max_answer=MAX_ANSWER, pool=None
        )

    async def get(self, url: str) -> bytes:
        """Return the document at an address.

        :raises LoginRefused: it cannot be had now.
        """
        return _good(url, await self._ask(_Request("GET", url)))

    async def post(self, url: str, headers: Mapping[str, str], form: Mapping[str, str]) -> bytes:
        """Send a form, and return the answer.

        :raises LoginRefused: it cannot be had now.
        """
        return _good(url, await self.submit(url, headers, form))

    async def submit(self, url: str, headers: Mapping[str, str], form: Mapping[str, str]) -> Answer:
        """Send a form, and return the answer, whatever its status is.

        :raises LoginRefused: there is none now.
        """
        return await self._ask(_Request("POST", url, headers, form))

    async def _ask(self, request: _Request) -> Answer:
        if self._asked >= MAX_ASKED:
            raise _unavailable(request.url, "too many requests are under way")
        self._asked += 1
        try:
            answer: Deferred[Answer] = Deferred.fromCoroutine(self._exchange(request))
            if self._timeout is not None:
                answer.addTimeout(self._timeout, self._clock, _too_late)
            answer.addErrback(_explained, request.url)
            return await answer
        finally:
            self._asked -= 1

    async def _exchange(self, request: _Request) -> Answer:
        url = URL.fromText(request.url).asURI().asText().encode("ascii")
        headers = Headers({**_USUAL, **{name: [value] for name, value in request.headers.items()}})
        body = None
        if request.form is not None:
            headers.setRawHeaders("Content-Type", ["application/x-www-form-urlencoded"])
            body = urlencode(request.form).encode("ascii")
        answer = await self._client.ask(request.method.encode("ascii"), url, headers, body)
        if any(value.strip().lower() != b"identity" for value in answer.values(b"Content-Encoding")):
            raise WebServerFails("it is encoded (Content-Encoding), which it was not asked for")
        return Answer(answer.status, answer.body)


class SparedWeb:
    """Sends forms to one server, which is left alone for a while when it has failed several times in a row.

    :param label: what the log calls it.
    :param seconds: the time.
    """

    def __init__(self, web: Web, label: str, seconds: Callable[[], float]) -> None:
        self._web = web
        self._seconds = seconds
        self._breaker = Breaker(FAILURES, PAUSE, label)

    async def submit(self, url: str, headers: Mapping[str, str], form: Mapping[str, str]) -> Answer:
        """Send a form, and return the answer (`Web.submit`).

        :raises LoginRefused: there is none now.
        """
        if not self._breaker.lets_through(self._seconds()):
            raise _unavailable(url, "it has failed too often lately, and is left alone")
        try:
            answer = await self._web.submit(url, headers, form)
        except LoginRefused:
            self._breaker.failed(self._seconds())
            raise
        if answer.status >= 500:
            self._breaker.failed(self._seconds())
        else:
            self._breaker.succeeded()
        return answer


def _good(url: str, answer: Answer) -> bytes:
    if answer.status != 200:
        raise _unavailable(url, f"status {answer.status}")
    return answer.content


def _too_late(result: object, timeout: float) -> Failure:
    del result  # what a request ends with that is given up
    return Failure(TookTooLong(timeout))


def _explained(failure: Failure, url: str) -> Failure:
    if failure.check(LoginRefused, CancelledError):
        return failure
    return Failure(_unavailable(url, cause(failure.value)))


def _unavailable(url: str, why: str) -> LoginRefused:
    return LoginRefused(Refusal(Reason.UNAVAILABLE, f"{url} cannot be asked: {why}"))


def basic(name: bytes, password: bytes) -> dict[str, str]:
    """Return the header with which a client of an OAuth server says who it is."""
    # RFC 6749 section 2.3.1: both are encoded as in a form before they are put together.
    pair = f"{quote_plus(name)}:{quote_plus(password)}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode('ascii')).decode('ascii')}"}
