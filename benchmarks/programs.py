"""The two C programs at both ends of every proxy: compiled here, started and spoken to."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Self, TypedDict

from benchmarks.processes import BenchmarkError, Program, cpu_seconds, wait_until

Say = Callable[[str], None]
"""Tells whoever runs the benchmark how far it is."""

HERE = Path(__file__).parent
BUILD = HERE / ".build"
"""What is made on the spot: the programs, and the certificate that every proxy shows."""

CERTIFICATE, KEY = BUILD / "cert.pem", BUILD / "key.pem"

COMPILER = ["gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra"]
LIBRARIES = ["-lssl", "-lcrypto"]

LONGEST = 300.0
"""Seconds that one command to the load generator may take."""


def make() -> None:
    """Compile the programs and make the certificate, where that has not been done yet.

    :raises BenchmarkError: the compiler or openssl says no.
    """
    BUILD.mkdir(exist_ok=True)
    for name in ("backend", "load"):
        sources = [HERE / "c" / f"{name}.c", HERE / "c" / "wire.h"]
        target = BUILD / name
        if not target.exists() or target.stat().st_mtime < max(each.stat().st_mtime for each in sources):
            run([*COMPILER, "-o", str(target), str(sources[0]), *LIBRARIES])
    if not KEY.exists():
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650"]
        run(["openssl", "req", "-x509", *kind, *names, "-keyout", str(KEY), "-out", str(CERTIFICATE)])


def run(command: list[str], check: bool = True) -> str:
    """Run a command to its end, and return what it says.

    :raises BenchmarkError: it is not there, or it fails and ``check`` is true.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchmarkError(f"cannot run {command[0]}: {error.strerror}") from None
    if done.returncode and check:
        raise BenchmarkError(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout + done.stderr


def openssl_version() -> str:
    """Return the version of the OpenSSL that is installed."""
    return run(["openssl", "version"]).split()[1]


class Backend(Program):
    """The mock IMAP server, with TLS from the first byte or without any."""

    def __init__(self, folder: Path, tls: bool, cores: Collection[int]) -> None:
        options = ["--tls", str(CERTIFICATE), str(KEY)] if tls else []
        name = "backend-tls" if tls else "backend"
        super().__init__([BUILD / "backend", *options], folder, name, cores)
        wait_until("the mock backend listens", lambda: self.output.read_text().endswith("\n"))
        said = self.output.read_text()
        if not said.startswith("port "):
            raise BenchmarkError(f"the mock backend does not start: {said}")
        self.port = int(said.split()[1])


class Reply(TypedDict, total=False):
    """What the load generator says of a command: see c/load.c."""

    command: str
    units: int
    bytes: int
    seconds: float
    held: int
    resumed: int
    p50_us: float
    p99_us: float


class Load:
    """A load generator that carries out one command after the other; use it as a context manager."""

    def __init__(self, port: int, tls: bool, cores: Collection[int], resume: bool = False) -> None:
        options = [*(["--tls"] if tls else []), *(["--resume"] if resume else [])]
        # taskset, and not a function between fork and exec: this one is started often.
        command = [str(BUILD / "load"), *options, str(port)]
        if cores:
            command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        # Without sessions to log out: whoever wants that says "close".
        self._popen.kill()
        self._popen.communicate()

    def begin(self, command: str) -> None:
        """Have a command carried out, whose reply `finish` awaits."""
        assert self._popen.stdin
        try:
            self._popen.stdin.write(command + "\n")
            self._popen.stdin.flush()
        except BrokenPipeError:
            self._failed()

    def finish(self) -> Reply:
        """Return the reply to the command that was begun.

        :raises BenchmarkError: the load generator gave up, or takes too long.
        """
        assert self._popen.stdout
        if not select.select([self._popen.stdout], [], [], LONGEST)[0]:
            raise BenchmarkError(f"the load generator has said nothing for {LONGEST:g} s")
        text = self._popen.stdout.readline()
        if not text:
            self._failed()
        reply: Reply = json.loads(text)
        return reply

    def do(self, command: str) -> Reply:
        """Have a command carried out, and return the reply."""
        self.begin(command)
        return self.finish()

    def cpu(self) -> float:
        """Return the seconds of CPU time that it has used."""
        return cpu_seconds(self._popen.pid)

    def _failed(self) -> None:
        self._popen.wait(5)
        assert self._popen.stderr
        raise BenchmarkError(self._popen.stderr.read().strip() or "the load generator ended")
