"""An auth server as somebody writes it for nginx, with nothing but Python's own HTTP server."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from servers.certificates import Certificate

Answer = Callable[[Mapping[str, str], bytes], tuple[int, Mapping[str, str], bytes]]


class AuthServer:
    """Answers each request as it is told, and keeps what was asked.

    :param answer: takes the headers and the body of a request, returns the status, headers and body.
    :param keeps: whether connections are kept (HTTP/1.1).
    """

    def __init__(self, answer: Answer, *, certificate: Certificate | None = None, keeps: bool = True) -> None:
        self.asked: list[Mapping[str, str]] = []
        self.connections = 0
        self.port = 0
        self._answer = answer
        self._tls = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate.chain, certificate.key)
        self._keeps = keeps

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"{'http' if self._tls is None else 'https'}://localhost:{self.port}/auth"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, on the port that it had."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1" if outer._keeps else "HTTP/1.0"
            timeout = 10

            def setup(self) -> None:
                super().setup()
                outer.connections += 1

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                outer.asked.append(dict(self.headers.items()))
                status, headers, body = outer._answer(self.headers, self.rfile.read(length))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if outer._keeps:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - the library's name

            def log_message(self, *_args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256
            open: list[Any]

            def process_request(self, request: Any, client_address: Any) -> None:
                self.open.append(request)
                super().process_request(request, client_address)

            def handle_error(self, *_args: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", self.port), Handler)
        self._server.open = []
        self.port = self._server.server_port
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, and the connections that it has kept."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for connection in self._server.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
