"""A private Redis: a server of Debian's packages in a folder and on ports of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from servers.certificates import Certificate
from servers.processes import PATIENCE, Instance, Log, ServerProcess, free_port, wait_until
from servers.programs import program

PASSWORD = "se cret'\"%:\\ü"
READER_PASSWORD = "reader's;own"


class Redis(Instance):
    """One instance; use it as a context manager.

    It listens at ``port`` and at ``socket`` and, with a certificate, at ``tls_port``.  Its default user has
    a ``password``, if one is given; then there is a user ``reader``, with `READER_PASSWORD`, that may
    read the keys below ``mailroute:`` and nothing else.
    """

    def __init__(self, certificate: Certificate | None = None, password: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mr-redis-"))
        self.socket = self.folder / "redis.sock"
        self.log = Log(self.folder / "output")
        self.port = self.tls_port = 0
        self._certificate = certificate
        self._password = password
        self._binary = program("redis-server", "redis-server")
        self._client = program("redis-cli", "redis-tools")
        self._process: ServerProcess | None = None

    def stop(self) -> None:
        """End it, and remove all that it has written."""
        if self._process is not None:
            # One that is stopped cannot end.
            with contextlib.suppress(ProcessLookupError):
                self.wake()
            self._process.stop()
        shutil.rmtree(self.folder)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def start(self) -> None:
        """Start empty, on the ports of the first time if there was one, and wait until it answers."""
        for _ in range(5):
            if not self.port:
                self.port, self.tls_port = free_port(), free_port() if self._certificate else 0
            path = self.folder / "redis.conf"
            path.write_text(self._configuration(), encoding="utf-8")
            mark = self.log.mark()
            self._process = ServerProcess([self._binary, str(path)], self.log.path)
            wait_until("Redis's start or end", lambda: self._answers() or not self._process.running())
            if self._process.running():
                return
            if not self.log.find("Address already in use", mark):
                break
            self.port = 0
        raise AssertionError(f"Redis does not start:\n{self.log.text()}")

    def _configuration(self) -> str:
        lines = [
            "bind 127.0.0.1 127.0.0.2",
            f"port {self.port}",
            f"unixsocket {self.socket}",
            f"dir {self.folder}",
            "daemonize no",
            'save ""',
            "appendonly no",
        ]
        if self._password:
            lines += [
                f"requirepass {_quoted(self._password)}",
                f"user reader on {_quoted('>' + READER_PASSWORD)} ~mailroute:* -@all +hgetall +get +select",
            ]
        if self._certificate:
            lines += [
                f"tls-port {self.tls_port}",
                f"tls-cert-file {self._certificate.chain}",
                f"tls-key-file {self._certificate.key}",
                "tls-auth-clients no",
            ]
        return "\n".join(lines) + "\n"

    def _answers(self) -> bool:
        with contextlib.suppress(subprocess.CalledProcessError):
            return self("PING") == "PONG"
        return False

    def __call__(self, *words: str | bytes, database: int = 0) -> str:
        """Give a command to the server, with its own client, and return what that prints."""
        return self._run("-n", str(database), *words)

    def type(self, text: str) -> list[str]:
        """Type lines of commands in one session, and return the answers."""
        return self._run(text=text).splitlines()

    def _run(self, *words: str | bytes, text: str = "") -> str:
        env = {**os.environ, "REDISCLI_AUTH": self._password} if self._password else None
        return subprocess.run(
            [self._client, "-e", "-s", str(self.socket), *words],
            env=env,
            input=text.encode(),
            capture_output=True,
            check=True,
            timeout=PATIENCE,
        ).stdout.decode("utf-8", "backslashreplace")[:-1]

    def calls(self, command: str) -> int:
        """Return how often a command has been given to it."""
        for line in self("INFO", "commandstats").splitlines():
            if line.startswith(f"cmdstat_{command}:"):
                return int(line.partition("calls=")[2].partition(",")[0])
        return 0

    def clients(self) -> int:
        """Return how many are connected, whoever asks aside."""
        return len(self("CLIENT", "LIST").splitlines()) - 1

    def kill(self) -> None:
        """End it without a word."""
        self._process.kill()

    def hang(self) -> None:
        """Let it do nothing any more, with its connections open."""
        os.kill(self.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)


def _quoted(text: str) -> str:
    """Return a word as it stands in the configuration."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
