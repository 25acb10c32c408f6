"""Requests to OAuth servers, bounded in time and size."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote_plus

import treq
from attrs import field, frozen
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.python.failure import Failure
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS
from twisted.web.http_headers import Headers

from mailroute.events import LoginRefused, Reason, Refusal
from mailroute.sources import BadOption, SourceContext

MAX_DOCUMENT = 256 * 1024
"""Bytes of an answer: some hundred keys."""

MAX_ASKED = 256
"""Requests at once; whoever comes on top of that is told to come again."""

_BEGIN = "-----BEGIN CERTIFICATE-----"


class _TooLong(Exception):
    """An answer has more bytes than any answer should."""


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
    :param root: Twisted's trust root, which says who may vouch for them; None for the system's authorities.
    :param timeout: seconds for one answer.
    """

    def __init__(self, clock: Any, root: object | None, timeout: float) -> None:
        self._clock = clock
        self._root = root
        self._timeout = timeout
        self._asked = 0
        self._client: HTTPClient | None = None

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
            answer.addTimeout(self._timeout, self._clock, _too_late)
            answer.addErrback(_explained, request.url)
            return await answer
        finally:
            self._asked -= 1

    async def _exchange(self, request: _Request) -> Answer:
        response = await self._connected().request(
            request.method,
            request.url,
            headers=Headers({"Accept": ["application/json"], **_listed(request.headers)}),
            data=None if request.form is None else dict(request.form),
            allow_redirects=False,
        )
        body = bytearray()

        def collect(data: bytes) -> None:
            if len(body) + len(data) > MAX_DOCUMENT:
                raise _TooLong(f"more than {MAX_DOCUMENT} bytes")
            body.extend(data)

        await treq.collect(response, collect)
        return Answer(response.code, bytes(body))

    def _connected(self) -> HTTPClient:
        if self._client is None:
            # Not before it is needed: settings are made before there is a reactor.
            # A connection for each request: the server may close one that is kept just as it is
            # used again, and a POST is not repeated.
            self._client = HTTPClient(Agent(self._clock, BrowserLikePolicyForHTTPS(self._root)))
        return self._client


def _good(url: str, answer: Answer) -> bytes:
    if answer.status != 200:
        raise _unavailable(url, f"status {answer.status}")
    return answer.content


def _listed(headers: Mapping[str, str]) -> dict[str, list[str]]:
    return {name: [value] for name, value in headers.items()}


def _too_late(result: object, timeout: float) -> Failure:
    del result  # what a request ends with that is given up
    return Failure(TookTooLong(timeout))


def _explained(failure: Failure, url: str) -> Failure:
    if failure.check(LoginRefused):
        return failure
    return Failure(_unavailable(url, type(failure.value).__name__))


def _unavailable(url: str, why: str) -> LoginRefused:
    return LoginRefused(Refusal(Reason.UNAVAILABLE, f"{url} cannot be asked: {why}"))


def basic(name: bytes, password: bytes) -> dict[str, str]:
    """Return the header with which a client of an OAuth server says who it is."""
    # RFC 6749 section 2.3.1: both are encoded as in a form before they are put together.
    pair = f"{quote_plus(name)}:{quote_plus(password)}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode('ascii')).decode('ascii')}"}


def authorities(context: SourceContext, ca: str) -> object:
    """Return the trust root of a PEM file, relative to the configuration's folder.

    :raises BadOption: the file cannot be read, or holds no certificate.
    """
    path = context.folder / ca
    try:
        content = context.copies.read(path)
        parts = content.decode("ascii").split(_BEGIN)[1:]
        found = [Certificate.loadPEM(f"{_BEGIN}{part}".encode()) for part in parts]
    except OSError as error:
        raise BadOption("ca", f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # OpenSSL has errors of its own
        found = []
    if not found:
        raise BadOption("ca", f"{path} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
    return trustRootFromCertificates(found)
