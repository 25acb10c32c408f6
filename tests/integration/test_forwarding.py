"""A real web server behind a real mailroute that forwards TCP, and curl in front."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import twistd
from servers.certificates import Authority, Certificate
from servers.nginx import Nginx
from servers.processes import PATIENCE, free_port
from servers.programs import program
from servers.proxy import toml

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Nginx]:
    with Nginx(tmp_path_factory.mktemp("web") / "nginx", certificate) as server:
        (server.folder / "files" / "large").write_bytes(os.urandom(1 << 20) * 16)
        yield server


def connected(url: str) -> socket.socket:
    """Connect to a port by its URL."""
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=PATIENCE)


def curl(*arguments: str) -> bytes:
    """Run curl, insist that it succeeds, and return what it got."""
    ended = subprocess.run(
        [program("curl", "curl"), "-sS", "--max-time", str(PATIENCE), *arguments],
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@contextlib.contextmanager
def one_liner(folder: Path, to: str, *more: str) -> Iterator[tuple[str, twistd.Twistd]]:
    """Run mailroute without a file; yields the URL of its port."""
    port = free_port()
    arguments = ["--pidfile=", "mailroute", "--listen", f"tcp:{port}", "--to", to, *more]
    with twistd.Twistd(*arguments, folder=folder, ports=[port]) as running:
        yield f"http://127.0.0.1:{port}", running


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]], ids=["alone", "workers"])
def test_the_one_liner(tmp_path: Path, nginx: Nginx, workers: list[str]) -> None:
    """``twistd -n mailroute --listen … --to …`` is a whole port forwarder, with workers as well."""
    to = f"tcp:127.0.0.1:{nginx.ports['plain']}"
    with one_liner(tmp_path, to, *workers) as (url, running):
        if workers:
            running.log.wait_for("worker 2 is ready")
        assert curl(f"{url}/hello").startswith(b"GET /hello from 127.0.0.1, ")
        assert curl(f"{url}/files/large") == (nginx.folder / "files" / "large").read_bytes()
        # Two requests on one connection, and an upload.
        again = curl(f"{url}/a", f"{url}/b", "-o", "-", "-o", "-")
        assert again.count(b"from 127.0.0.1, ") == 2
        assert curl("--data", "x" * 100_000, f"{url}/up").startswith(b"POST /up ")
        line = running.log.wait_for(r"session \S+ ended: user=- client=127\.0\.0\.1:\d+ .*")[0]
        assert re.search(r'listener="tcp tcp:\d+" backend=to tls=none .* reason=the ', line), line
        running.stop()


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2"])
def test_the_one_liner_tells_who_is_calling(tmp_path: Path, nginx: Nginx, identity: str) -> None:
    """With --identity, a server that takes PROXY headers sees the client's own address."""
    to = f"tcp:127.0.0.1:{nginx.ports['proxy']}"
    with one_liner(tmp_path, to, "--identity", identity) as (url, _):
        assert curl("--interface", "127.0.0.9", f"{url}/").startswith(b"GET / from 127.0.0.9, ")


def test_hundreds_of_visitors_from_one_address(tmp_path: Path, nginx: Nginx) -> None:
    """The one-liner sets no bound on one address: a load balancer's connections all come from there."""
    to = f"tcp:127.0.0.1:{nginx.ports['plain']}"
    with one_liner(tmp_path, to) as (url, running):
        with contextlib.ExitStack() as crowd:
            visitors = [crowd.enter_context(connected(url)) for _ in range(300)]
            for visitor in visitors:
                visitor.sendall(b"GET /there HTTP/1.0\r\n\r\n")
            for visitor in visitors:
                assert b"GET /there from" in visitor.makefile("rb").read()
        running.stop()


@pytest.mark.parametrize("behind", ["plain", "tls", "proxy", "tls-proxy"])
@pytest.mark.parametrize("front", ["none", "tls"])
def test_every_way_of_wrapping(
    tmp_path: Path, nginx: Nginx, authority: Authority, certificate: Certificate, front: str, behind: str
) -> None:
    """TLS in front, TLS behind, a PROXY header behind: each goes with each."""
    port = free_port()
    backend = {"tcp": f"tcp:127.0.0.1:{nginx.ports[behind]}"}
    if "tls" in behind:
        backend |= {"security": "tls", "verify": "localhost", "ca": str(authority.file)}
    if "proxy" in behind:
        backend["identity"] = "proxy-v2"
    config = {
        "listen": [{"protocol": "tcp", "endpoint": f"tcp:{port}", "security": front, "backend": "east"}],
        "certificate": [{"chain": str(certificate.chain), "key": str(certificate.key)}],
        "backend": {"east": backend},
    }
    (tmp_path / "mailroute.toml").write_text(toml(config))
    arguments = ["--pidfile=", "mailroute", "--config", "mailroute.toml"]
    with twistd.Twistd(*arguments, folder=tmp_path, ports=[port]) as running:
        scheme = "https" if front == "tls" else "http"
        url = f"{scheme}://localhost:{port}"
        trust = ["--cacert", str(authority.file), "--interface", "127.0.0.9"]
        said = curl(*trust, f"{url}/hello").decode()
        client = "127.0.0.9" if "proxy" in behind else "127.0.0.1"
        version = "TLSv1.3" if "tls" in behind else ""
        assert said == f"GET /hello from {client}, {version}\n"
        large = curl(*trust, f"{url}/files/large")
        assert large == (nginx.folder / "files" / "large").read_bytes()
        running.stop()


def test_a_server_that_is_not_there_is_told_as_haproxy_tells_it(tmp_path: Path) -> None:
    """A refused backend closes the client's connection in good order: curl calls it an empty reply."""
    to = f"tcp:127.0.0.1:{free_port()}"
    with one_liner(tmp_path, to) as (url, running):
        ended = subprocess.run([program("curl", "curl"), "-sS", url], capture_output=True, check=False)
        assert ended.returncode == 52, ended
        running.log.wait_for(
            "login refused: user=- .* why=backend unavailable detail=cannot connect to backend"
        )
        running.stop()


def test_a_server_that_dies_takes_its_visitors_along(tmp_path: Path, certificate: Certificate) -> None:
    """When the backend is killed, the client's connection is at its end."""
    with Nginx(tmp_path / "nginx", certificate) as server, contextlib.ExitStack() as ends:
        to = f"tcp:127.0.0.1:{server.ports['plain']}"
        url, running = ends.enter_context(one_liner(tmp_path, to))
        visitor = ends.enter_context(connected(url))
        visitor.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert visitor.recv(65536)
        server.kill()
        assert visitor.recv(1) == b""
        visitor.close()
        running.log.wait_for("reason=the backend ")
        running.stop()
