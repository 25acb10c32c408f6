"""Requests to OAuth servers, to a real one on this machine: bounded, verified, and told when they fail."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from servers.certificates import Authority
from twisted.internet import endpoints, ssl
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from mailroute.events import LoginRefused, Reason
from mailroute.sources import BadOption, SourceContext
from mailroute.sources.trust import tls_for
from mailroute.web import MAX_ANSWER, MAX_DOCUMENT, Web

PACKED = gzip.compress(b" " * 30_000_000)
"""Within the bound on the wire, and a hundred times as much as that once it is unpacked."""


class Server(Resource):
    """Answers by the path; keeps what it is asked."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []
        self.encodings: list[str | None] = []
        self.peers: set[Any] = set()

    def render(self, request: Any) -> Any:
        self.peers.add(request.getClientAddress())
        self.encodings.append(request.getHeader("Accept-Encoding"))
        self.asked.append((request.method, dict(request.args), request.getHeader("Authorization")))
        match request.path:
            case b"/slow":
                return NOT_DONE_YET
            case b"/long":
                return b"x" * (MAX_DOCUMENT + 1)
            case b"/longest":
                return b"x" * MAX_DOCUMENT
            case b"/elsewhere":
                request.redirect(b"/fine")
                return b""
            case b"/packed":
                request.setHeader("Content-Encoding", "gzip")
                return PACKED
            case b"/closed":
                request.transport.abortConnection()
                return NOT_DONE_YET
            case b"/fine":
                return json.dumps({"fine": True}).encode()
        request.setResponseCode(404)
        return b"no such thing"


@pytest.fixture
def server() -> Server:
    return Server()


async def listening(server: Server, tls: Any = None) -> tuple[Any, str]:
    from twisted.internet import reactor

    site = Site(server)
    site.displayTracebacks = False
    site.noisy = False
    port = await endpoints.TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(site)
    if tls is not None:
        await port.stopListening()
        port = reactor.listenSSL(0, site, tls, interface="127.0.0.1")
    return port, f"http{'s' if tls else ''}://localhost:{port.getHost().port}"


def web(folder: Path, ca: str | None = None, timeout: float = 5) -> Web:
    from twisted.internet import reactor

    context = SourceContext(folder, frozenset(), str, reactor, None)
    return Web(reactor, tls_for(context, ca), timeout)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest_twisted.ensureDeferred
async def test_a_document_comes_as_it_is(server: Server, tmp_path: Path) -> None:
    """What the server has is returned, up to the bound; a form reaches it with the client's name."""
    port, url = await listening(server)
    asked = web(tmp_path)
    assert json.loads(await asked.get(f"{url}/fine")) == {"fine": True}
    assert len(await asked.get(f"{url}/longest")) == MAX_DOCUMENT
    await asked.post(f"{url}/fine", {"Authorization": "Basic x"}, {"token": "a&b=c"})
    assert server.asked[-1] == (b"POST", {b"token": [b"a&b=c"]}, "Basic x")
    await asked.get(f"{url}/fine?n\u00e4me=\u00fc")
    assert server.asked[-1][1] == {"n\u00e4me".encode(): ["\u00fc".encode()]}
    await port.stopListening()


ENDED = "the server ended the connection before its answer; look at the server's log"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/none", "status 404"),
        ("/elsewhere", "status 302"),
        ("/long", f"more than {MAX_DOCUMENT} bytes"),
        ("/slow", "no answer in time; see why the server is slow, or raise timeout"),
        ("/closed", f"ResponseNeverReceived: {ENDED}"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_answer_is_told(server: Server, tmp_path: Path, path: str, why: str) -> None:
    """An answer that is wrong, too long or too late is none: the log has the address and the reason."""
    port, url = await listening(server)
    asked = web(tmp_path, timeout=0.3)
    with pytest.raises(LoginRefused) as error:
        await asked.get(f"{url}{path}")
    assert error.value.refusal.reason is Reason.UNAVAILABLE
    assert error.value.refusal.detail == f"{url}{path} cannot be asked: {why}"
    await port.stopListening()


class EndlessHeaders(Protocol):
    """Begins an answer whose headers do not end."""

    chunk = b"X-Header: x\r\n" * 3000
    sent = 0

    def __init__(self) -> None:
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        del data
        if not self.sent:
            self.transport.write(b"HTTP/1.1 200 OK\r\n")
            self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        self.sent += len(self.chunk)
        self.transport.write(self.chunk)

    def stopProducing(self) -> None:
        self.transport.unregisterProducer()

    def connectionLost(self, reason: Failure) -> None:
        del reason
        self.lost.callback(None)


@pytest_twisted.ensureDeferred
async def test_headers_without_end_are_cut_off(tmp_path: Path) -> None:
    """The bound is on all that comes over the wire: the server is cut off there, before its time is over."""
    from twisted.internet import reactor

    endless = EndlessHeaders()
    factory = Factory.forProtocol(lambda: endless)
    factory.noisy = False
    port = await endpoints.TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
    url = f"http://localhost:{port.getHost().port}/"
    with pytest.raises(LoginRefused) as error:
        await web(tmp_path, timeout=10).get(url)
    assert error.value.refusal.reason is Reason.UNAVAILABLE
    assert error.value.refusal.detail == (
        f"{url} cannot be asked: more than {MAX_ANSWER} bytes with its headers"
    )
    await endless.lost
    await port.stopListening()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest_twisted.ensureDeferred
async def test_nothing_is_unpacked(server: Server, tmp_path: Path, method: str) -> None:
    """No compression is asked for: what is packed all the same is no answer, and takes no more memory."""
    port, url = await listening(server)
    asked = web(tmp_path)
    assert len(PACKED) < MAX_DOCUMENT
    tracemalloc.start()
    try:
        with pytest.raises(LoginRefused) as error:
            await (asked.get(f"{url}/packed") if method == "GET" else asked.submit(f"{url}/packed", {}, {}))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.value.refusal.reason is Reason.UNAVAILABLE
    assert error.value.refusal.detail == (
        f"{url}/packed cannot be asked: it is encoded (Content-Encoding), which it was not asked for"
    )
    assert peak < 10 * MAX_DOCUMENT
    # RFC 9110 section 12.5.3: without the header any coding would do.
    assert server.encodings == ["identity"]
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_form_is_sent_once(server: Server, tmp_path: Path) -> None:
    """A server that closes instead of an answer may have done what the form asks: it is not asked again."""
    port, url = await listening(server)
    with pytest.raises(LoginRefused, match="ResponseNeverReceived"):
        await web(tmp_path).submit(f"{url}/closed", {}, {"token": "x"})
    assert [method for method, _, _ in server.asked] == [b"POST"]
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_each_request_has_a_connection_of_its_own(server: Server, tmp_path: Path) -> None:
    """None is kept, which the server might close just as a form is sent."""
    port, url = await listening(server)
    asked = web(tmp_path)
    for _ in range(3):
        await asked.get(f"{url}/fine")
    assert len(server.peers) == 3
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_nobody_there_is_told(server: Server, tmp_path: Path) -> None:
    """A server that does not run is away, which is no refusal of the client's."""
    port, url = await listening(server)
    await port.stopListening()
    with pytest.raises(LoginRefused) as error:
        await web(tmp_path).get(f"{url}/fine")
    assert error.value.refusal.reason is Reason.UNAVAILABLE


@pytest_twisted.ensureDeferred
async def test_the_server_proves_its_name(server: Server, tmp_path: Path, authority: Authority) -> None:
    """A certificate of the authority that was named is good, and any other is not."""
    issued = authority.issue("localhost")
    tls = ssl.DefaultOpenSSLContextFactory(str(issued.key), str(issued.chain))
    port, url = await listening(server, tls)
    (tmp_path / "ca.pem").write_bytes(authority.file.read_bytes())
    trusting, other = web(tmp_path, "ca.pem"), web(tmp_path)
    assert json.loads(await trusting.get(f"{url}/fine")) == {"fine": True}
    with pytest.raises(LoginRefused):
        await other.get(f"{url}/fine")
    assert len(server.asked) == 1
    await port.stopListening()


def test_a_file_without_a_certificate_is_told(tmp_path: Path) -> None:
    """The key, the file and the reason are in the message."""
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(BadOption, match=r"ca: .*ca\.pem holds no certificate"):
        web(tmp_path, "ca.pem")


@pytest_twisted.ensureDeferred
async def test_requests_at_once_are_bounded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound nobody is asked; those that leave make room."""
    monkeypatch.setattr("mailroute.web.MAX_ASKED", 2)
    port, url = await listening(server)
    asked = web(tmp_path)
    waiting = [Deferred.fromCoroutine(asked.get(f"{url}/slow")) for _ in range(2)]
    with pytest.raises(LoginRefused, match="too many"):
        await asked.get(f"{url}/fine")
    for each in waiting:
        each.addErrback(lambda _: None)
        each.cancel()
    assert await asked.get(f"{url}/fine")
    await port.stopListening()
