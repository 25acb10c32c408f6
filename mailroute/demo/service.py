"""The demo as a service: two mail servers, a certificate, a configuration, and mailroute."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.mail.smtp import sendmail

from mailroute import config
from mailroute.demo.backend import USERS, DemoBackend
from mailroute.demo.certificate import self_signed
from mailroute.demo.instructions import instructions
from mailroute.demo.ports import Ports
from mailroute.service import service

_CONFIGURATION = """\
[[certificate]]
chain = "cert.pem"
key = "key.pem"

[[listen]]
protocol = "imap"
endpoint = "tcp:{ports.imap}:interface=127.0.0.1"
security = "starttls"

[[listen]]
protocol = "imap"
endpoint = "tcp:{ports.imaps}:interface=127.0.0.1"
security = "tls"

[[listen]]
protocol = "pop3"
endpoint = "tcp:{ports.pop3}:interface=127.0.0.1"
security = "starttls"

[[listen]]
protocol = "submission"
endpoint = "tcp:{ports.submission}:interface=127.0.0.1"
security = "starttls"

[[listen]]
protocol = "smtp"  # delivers mail by its recipients; the servers bring it what is for each other
endpoint = "tcp:{ports.smtp}:interface=127.0.0.1"
security = "none"

{backends}
[[route]]
source = "table"
file = "users.txt"
"""

_BACKEND = """\
[backend.{name}]
imap = "tcp:127.0.0.1:{imap}"
pop3 = "tcp:127.0.0.1:{pop3}"
submission = "tcp:127.0.0.1:{smtp}"
smtp = "tcp:127.0.0.1:{smtp}"
security = "none"  # it does not leave this machine
identity = "none"  # twisted.mail's servers do not ask who is calling

"""


class DemoService(MultiService):
    """Runs the mail servers and mailroute until it is stopped, and leaves nothing behind."""

    def __init__(self, reactor: Any, ports: Ports, say: Callable[[str], object]) -> None:
        super().__init__()
        self._reactor = reactor
        self._ports = ports
        self._say = say
        self._backends: list[IListeningPort] = []
        self._folder: Path | None = None

    def privilegedStartService(self) -> None:
        """Make everything that mailroute is configured with, then start mailroute as configured."""
        self._folder = Path(tempfile.mkdtemp(prefix="mailroute-demo-"))
        try:
            file = self._configure(self._folder)
            service(config.load(file, self._reactor), self._reactor).setServiceParent(self)
            super().privilegedStartService()
        except BaseException:
            for port in self._backends:
                port.stopListening()
            self._clean_up()
            raise

    def startService(self) -> None:
        """Start, and say what to type once that works, and Ctrl-C as well."""
        super().startService()
        self._reactor.callWhenRunning(self._instruct)

    def stopService(self) -> Deferred[None]:
        """Stop mailroute, then the mail servers, and remove every file."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        try:
            await maybeDeferred(super().stopService)
            for port in self._backends:
                await maybeDeferred(port.stopListening)
        finally:
            self._clean_up()

    def _instruct(self) -> None:
        if self._folder is not None:
            self._say(instructions(self._folder, self._ports))

    def _configure(self, folder: Path) -> Path:
        """Write what an operator would write, and return the configuration file."""
        chain, key = self_signed()
        (folder / "cert.pem").write_bytes(chain)
        (folder / "key.pem").touch(mode=0o600)
        (folder / "key.pem").write_bytes(key)
        (folder / "users.txt").write_text("".join(f"{user.name} {user.backend}\n" for user in USERS))
        backends = [self._start_backend(user.backend, folder) for user in USERS]
        file = folder / "mailroute.toml"
        file.write_text(_CONFIGURATION.format(ports=self._ports, backends="".join(backends)))
        return file

    def _start_backend(self, name: str, folder: Path) -> str:
        """Start a mail server, and return its block of the configuration."""
        mail = folder / name
        mail.mkdir()
        backend = DemoBackend(name, mail, self._relay)
        return _BACKEND.format(
            name=name,
            imap=self._listen(backend.imap),
            pop3=self._listen(backend.pop3),
            smtp=self._listen(backend.smtp),
        )

    def _listen(self, factory: IProtocolFactory) -> int:
        port = self._reactor.listenTCP(0, factory, interface="127.0.0.1")
        self._backends.append(port)
        number: int = port.getHost().port
        return number

    def _relay(self, sender: bytes, recipient: bytes, content: bytes) -> Deferred[Any]:
        """Bring a message to mailroute, which knows where its recipient lives."""
        # twisted.mail's client makes CR LF of each LF.
        text = content.replace(b"\r\n", b"\n")
        sent: Deferred[Any] = sendmail(
            "127.0.0.1", sender, [recipient], text, port=self._ports.smtp, reactor=self._reactor
        )
        return sent

    def _clean_up(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def make_demo_service(
    reactor: Any,
    ports: Ports | None = None,
    say: Callable[[str], object] | None = None,
) -> IService:
    """Return a service that runs two mail servers with mailroute in front of them, on the loopback interface.

    :param say: is given the text that tells what to type; it goes to the
        terminal unless something else is wanted.
    """
    return DemoService(reactor, ports or Ports(), say or _to_terminal)


def _to_terminal(text: str) -> None:
    """Write to standard output itself: twistd would put a time in front of each line to be copied."""
    if sys.__stdout__ is not None:
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
