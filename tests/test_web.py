"""Requests to OAuth servers, to a real one on this machine: bounded, verified, and told when they fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from servers.certificates import Authority
from twisted.internet import endpoints, ssl
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from mailroute.events import LoginRefused, Reason
from mailroute.sources import BadOption, SourceContext
from mailroute.web import MAX_DOCUMENT, Web, authorities


class Server(Resource):
    """Answers by the path; keeps what it is asked."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def render(self, request: Any) -> Any:
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
    return Web(reactor, None if ca is None else authorities(context, ca), timeout)


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
    await port.stopListening()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/none", "status 404"),
        ("/elsewhere", "status 302"),
        ("/long", "_TooLong"),
        ("/slow", "TimeoutError"),
        ("/closed", "ResponseNeverReceived"),
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
