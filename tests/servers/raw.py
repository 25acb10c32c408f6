"""An IMAP client that hides nothing: what a test writes goes out as it stands."""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path
from typing import Self

from servers.processes import PATIENCE


class RawImap:
    """A connection and the bytes that have come in on it; use it as a context manager."""

    def __init__(self, host: str, port: int, source: str | None = None) -> None:
        address = (source, 0) if source else None
        self.socket = socket.create_connection((host, port), timeout=PATIENCE, source_address=address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.socket.close()

    def starttls(self, context: ssl.SSLContext, name: str = "localhost") -> None:
        """Do the STARTTLS command and the handshake."""
        self.command("s STARTTLS")
        self.handshake(context, name)

    def handshake(
        self,
        context: ssl.SSLContext,
        name: str = "localhost",
        session: ssl.SSLSession | None = None,
    ) -> None:
        """Begin TLS, and ask to resume a session of the same context if there is one."""
        assert not self._received, self._received
        self.socket = context.wrap_socket(self.socket, server_hostname=name, session=session)

    def send(self, data: bytes) -> None:
        """Write bytes."""
        self.socket.sendall(data)

    def read(self, pattern: bytes) -> bytes:
        """Return the lines up to and with the first one whose beginning matches, and keep the rest."""
        expression = re.compile(rb"(?m)^" + pattern + rb".*\n")
        while not (match := expression.search(self._received)):
            if not (data := self.socket.recv(65536)):
                raise EOFError(f"closed behind {self._received!r}, before {pattern!r}")
            self._received += data
        lines, self._received = self._received[: match.end()], self._received[match.end() :]
        return lines

    def exactly(self, count: int) -> bytes:
        """Return the next so many bytes."""
        pieces, missing = [self._received], count - len(self._received)
        while missing > 0:
            if not (data := self.socket.recv(65536)):
                raise EOFError(f"closed {missing} bytes before the end")
            pieces.append(data)
            missing -= len(data)
        whole = b"".join(pieces)
        self._received = whole[count:]
        return whole[:count]

    def greeting(self) -> bytes:
        """Return the server's first line."""
        return self.read(rb"\* ")

    def command(self, line: str | bytes) -> bytes:
        """Send a command line, with its tag, and return the answer up to its tagged line."""
        line = line.encode() if isinstance(line, str) else line
        self.send(line + b"\r\n")
        return self.read(re.escape(line.split()[0]) + b" ")

    def rest(self) -> bytes:
        """Return all that comes until the other side closes."""
        with self.socket:
            while data := self.socket.recv(65536):
                self._received += data
        return self._received


class UnixImap(RawImap):
    """The same over a UNIX socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self._received = b""
