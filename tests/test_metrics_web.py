"""The page over HTTP: what is answered, what is refused, and what each stranger may take of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from live import Talk, patient
from metrics import GET, Answer, taken_apart
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.logger import capturedLogs

from mailroute.metrics import web
from mailroute.metrics.web import MAX_BODY, MAX_CONNECTIONS, MAX_HEADER, PageFactory

PAGE = b"# HELP one One.\n# TYPE one gauge\none 1.0\n"


class Server:
    """A server of pages, which come when the test says so, if they are not there at once."""

    def __init__(self) -> None:
        self.late: list[Deferred[bytes]] | None = None
        self.asked = 0
        self.factory = PageFactory(self._page, reactor)
        self.port: Any = None

    def _page(self) -> Deferred[bytes]:
        self.asked += 1
        if self.late is None:
            return succeed(PAGE)
        self.late.append(Deferred())
        return self.late[-1]

    async def dial(self) -> Talk:
        where = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        return await connectProtocol(where, Talk())

    async def says(self, request: bytes) -> Answer:
        talk = await self.dial()
        talk.say(request)
        return taken_apart(await talk.end())


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server()
    server.port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(server.factory)
    try:
        yield server
    finally:
        await server.port.stopListening()
        server.factory.abort()
        await patient(lambda: not server.factory.channels)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no connection end because its time is up, unless a test is about that."""
    monkeypatch.setattr(web, "MAX_TIME", 600)


def logged(captured: list[Any]) -> list[Any]:
    """Return what was logged, but for the beginnings and ends of the test's own connections."""
    return [event for event in captured if not event["log_namespace"].endswith(".OneShotFactory")]


@pytest_twisted.ensureDeferred
async def test_the_page_is_got() -> None:
    """GET gets the page, its length and Prometheus' content type, and the connection ends."""
    async with serving() as server:
        answer = await server.says(GET)
        assert (answer.status, answer.body) == (200, PAGE)
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert answer.headers["content-length"] == str(len(PAGE))
        assert answer.headers["connection"] == "close"
        assert "server" not in answer.headers


@pytest_twisted.ensureDeferred
async def test_head_is_get_without_the_page() -> None:
    """HEAD tells the same of the page (RFC 9110 section 9.3.2)."""
    async with serving() as server:
        got, head = await server.says(GET), await server.says(GET.replace(b"GET", b"HEAD"))
        assert head.status == 200
        assert head.body == b""
        assert {**head.headers, "date": ""} == {**got.headers, "date": ""}


@pytest_twisted.ensureDeferred
async def test_a_query_does_not_matter() -> None:
    """What Prometheus may put behind the path (params) is left alone."""
    async with serving() as server:
        assert (await server.says(GET.replace(b"metrics", b"metrics?name%5B%5D=x"))).body == PAGE


@pytest.mark.parametrize("path", [b"/", b"/metrics/", b"/metrics/../x", b"//metrics", b"/%6detrics", b"*"])
@pytest_twisted.ensureDeferred
async def test_there_is_nothing_else(path: bytes) -> None:
    """Any other path is 404, for any method."""
    async with serving() as server:
        for method in b"GET", b"POST", b"OPTIONS":
            answer = await server.says(b"%s %s HTTP/1.1\r\nHost: x\r\n\r\n" % (method, path))
            assert answer.status == 404
            assert answer.body == b"There is only /metrics here.\n"
        assert server.asked == 0


@pytest.mark.parametrize(
    "method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"get", b"X"]
)
@pytest_twisted.ensureDeferred
async def test_nothing_can_be_done_to_it(method: bytes) -> None:
    """Any other method is 405, with those that there are; a body is dropped."""
    async with serving() as server:
        for rest in (
            b"\r\n",
            b"Content-Length: 3\r\n\r\na=b",
            b"Transfer-Encoding: chunked\r\n\r\n3\r\na=b\r\n0\r\n\r\n",
            b"Content-Type: multipart/form-data\r\nContent-Length: 3\r\n\r\na=b",
        ):
            answer = await server.says(method + b" /metrics HTTP/1.1\r\nHost: x\r\n" + rest)
            assert (answer.status, answer.headers["allow"]) == (405, "get, head")
        assert server.asked == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nno header\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nX: " + b"x" * MAX_HEADER + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: x\r\n" * MAX_HEADER + b"\r\n",
        b"GET /metrics?" + b"x" * 2 * MAX_HEADER,
    ],
    ids=["TLS", "short", "header", "length", "long header", "many headers", "long line"],
)
@pytest_twisted.ensureDeferred
async def test_garbage_ends_the_connection(garbage: bytes) -> None:
    """Whatever is no request, or too long a one, is refused, and says nothing in the log."""
    async with serving() as server:
        with capturedLogs() as captured:
            talk = await server.dial()
            talk.say(garbage)
            assert (await talk.end())[:12] in (b"", b"HTTP/1.1 400")
        assert server.asked == 0
        assert not logged(captured)


@pytest.mark.parametrize(
    "head", [b"Content-Length: 1000000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3b9aca00\r\n"]
)
@pytest_twisted.ensureDeferred
async def test_a_body_is_neither_kept_nor_waited_for(head: bytes) -> None:
    """Whoever sends more of a body than anybody needs is cut off."""
    async with serving() as server:
        talk = await server.dial()
        talk.say(b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + head + b"x" * (MAX_BODY + 1))
        assert await talk.end() == b""
        assert server.asked == 0


@pytest_twisted.ensureDeferred
async def test_one_request_is_all() -> None:
    """What a client sends behind its first request is not answered: it has to connect again."""
    async with serving() as server:
        answer = await server.says(GET + GET)
        assert answer.body == PAGE
        assert server.asked == 1


@pytest_twisted.ensureDeferred
async def test_connections_are_bounded() -> None:
    """Whoever comes when there are too many is cut off, and as soon as one has left there is room."""
    async with serving() as server:
        idle = [await server.dial() for _ in range(MAX_CONNECTIONS)]
        await patient(lambda: len(server.factory.channels) == MAX_CONNECTIONS)
        assert await (await server.dial()).end() == b""
        idle[0].transport.abortConnection()
        await patient(lambda: len(server.factory.channels) < MAX_CONNECTIONS)
        assert (await server.says(GET)).body == PAGE


@pytest.mark.parametrize("request_", [b"", b"GET /met", GET])
@pytest_twisted.ensureDeferred
async def test_time_is_bounded(request_: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection ends in time, whether its request has come or not, and whether the page is there."""
    monkeypatch.setattr(web, "MAX_TIME", 0.05)
    async with serving() as server:
        server.late = []
        with capturedLogs() as captured:
            talk = await server.dial()
            talk.say(request_)
            assert await talk.end() == b""
        assert not logged(captured)


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_is_not_waited_for() -> None:
    """The page of a client that has gone is given up, without a word in the log."""
    async with serving() as server:
        server.late = []
        with capturedLogs() as captured:
            talk = await server.dial()
            talk.say(GET)
            await patient(lambda: bool(server.late))
            talk.transport.abortConnection()
            await patient(lambda: server.late[0].called)
        assert not logged(captured)


@pytest_twisted.ensureDeferred
async def test_a_page_that_cannot_be_made_is_the_log_s_business() -> None:
    """A fault of ours is a 500 without its text, and in the log with its traceback."""
    async with serving() as server:
        server.late = []
        talk = await server.dial()
        talk.say(GET)
        await patient(lambda: bool(server.late))
        with capturedLogs() as captured:
            server.late[0].errback(ValueError("the secret"))
        answer = taken_apart(await talk.end())
        assert answer.status == 500
        assert b"secret" not in answer.body
        assert [event["log_failure"].type for event in logged(captured)] == [ValueError]
