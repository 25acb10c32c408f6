"""A demo in a process of its own, and clients for it."""

from __future__ import annotations

import contextlib
import imaplib
import ssl
from collections.abc import Iterator
from pathlib import Path

from attrs import astuple
from servers.processes import PATIENCE, free_port
from twistd import Twistd

from mailroute.demo.ports import Ports

OPTIONS = ("starttls", "tls", "pop3", "submission", "smtp")


class Demo:
    """A running demo, and what it has said of itself."""

    def __init__(self, process: Twistd, ports: Ports) -> None:
        self.process = process
        self.ports = ports
        said = process.log.wait_for(r"--cacert (\S+)/cert\.pem")
        self.folder = Path(said[1])

    @property
    def trusted(self) -> ssl.SSLContext:
        """What a client has to know to trust it."""
        return ssl.create_default_context(cafile=str(self.folder / "cert.pem"))

    def starttls(self) -> imaplib.IMAP4:
        """Return a client that has done STARTTLS."""
        client = imaplib.IMAP4("localhost", self.ports.imap, timeout=PATIENCE)
        client.starttls(self.trusted)
        return client

    def tls(self) -> imaplib.IMAP4:
        """Return a client of the port with TLS."""
        return imaplib.IMAP4_SSL("localhost", self.ports.imaps, ssl_context=self.trusted, timeout=PATIENCE)


@contextlib.contextmanager
def running_demo(
    folder: Path, command: list[str] | None = None, env: dict[str, str] | None = None
) -> Iterator[Demo]:
    """Run a demo in a folder, with the tests' own twistd or another one."""
    ports = Ports(*(free_port() for _ in OPTIONS))
    numbers = list(astuple(ports))
    options = [f"--demo-{name}-port={number}" for name, number in zip(OPTIONS, numbers, strict=True)]
    with Twistd(
        "mailroute", "--demo", *options, folder=folder, ports=numbers, command=command, env=env
    ) as process:
        yield Demo(process, ports)
