"""A demo in a process of its own, and clients for it."""

from __future__ import annotations

import contextlib
import imaplib
import ssl
from collections.abc import Iterator
from pathlib import Path

from servers.processes import PATIENCE, free_port
from twistd import Twistd


class Demo:
    """A running demo, and what it has said of itself."""

    def __init__(self, process: Twistd, starttls_port: int, tls_port: int) -> None:
        self.process = process
        self.ports = (starttls_port, tls_port)
        said = process.log.wait_for(r"--cacert (\S+)/cert\.pem")
        self.folder = Path(said[1])

    @property
    def trusted(self) -> ssl.SSLContext:
        """What a client has to know to trust it."""
        return ssl.create_default_context(cafile=str(self.folder / "cert.pem"))

    def starttls(self) -> imaplib.IMAP4:
        """Return a client that has done STARTTLS."""
        client = imaplib.IMAP4("localhost", self.ports[0], timeout=PATIENCE)
        client.starttls(self.trusted)
        return client

    def tls(self) -> imaplib.IMAP4:
        """Return a client of the port with TLS."""
        return imaplib.IMAP4_SSL("localhost", self.ports[1], ssl_context=self.trusted, timeout=PATIENCE)


@contextlib.contextmanager
def running_demo(
    folder: Path, command: list[str] | None = None, env: dict[str, str] | None = None
) -> Iterator[Demo]:
    """Run a demo in a folder, with the tests' own twistd or another one."""
    ports = free_port(), free_port()
    options = ["--demo-starttls-port", str(ports[0]), "--demo-tls-port", str(ports[1])]
    with Twistd(
        "mailroute", "--demo", *options, folder=folder, ports=list(ports), command=command, env=env
    ) as process:
        yield Demo(process, *ports)
