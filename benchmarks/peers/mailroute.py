"""mailroute itself, as a user runs it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from benchmarks import programs
from benchmarks.peers.base import Leg, NotHere, Peer, fill_in, new_folder
from benchmarks.processes import BenchmarkError

USERS = 10000
"""The load generator's users: u0@example.com to u9999@example.com."""


class Mailroute(Peer):
    """The mailroute that is installed beside the Python that runs this, in one process or in several."""

    name = "mailroute"
    title = "mailroute"
    binary = "twistd"
    template = "mailroute.toml"

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.loads = ("workers",) if workers > 1 else (*Peer.loads, "workers")
        if workers > 1:
            self.name = f"mailroute-{workers}"
            self.title = f"mailroute, {workers} workers"

    def path(self) -> str:  # noqa: D102
        twistd = Path(sys.executable).with_name(self.binary)
        if not twistd.exists():
            raise NotHere(f"mailroute is not installed beside {sys.executable}: use make bench")
        return str(twistd)

    def version(self) -> str:  # noqa: D102
        self.path()
        version = programs.run([sys.executable, "-P", "-c", _VERSIONS]).strip()
        self._check()
        return version

    def values(self, leg: Leg) -> dict[str, object]:  # noqa: D102
        tls = 'security = "tls"\nverify = "localhost"\nca = "cert.pem"'
        return {
            # One worker is the default, which an older mailroute does not know as a setting.
            "WORKERS": f"workers = {self.workers}" if self.workers > 1 else "",
            "SECURITY": "tls" if leg.in_front else "none",
            "BACKEND_SECURITY": tls if leg.behind else 'security = "none"',
        }

    def command(self, folder: Path) -> list[str]:  # noqa: D102
        options = ["--nodaemon", "--pidfile=", "--logfile=sessions.log"]
        return [self.path(), *options, "mailroute", "--config", str(folder / self.template)]

    @contextlib.contextmanager
    def helpers(  # noqa: D102
        self,
        folder: Path,
        values: Mapping[str, object],  # noqa: ARG002
        cores: Collection[int],  # noqa: ARG002
    ) -> Iterator[None]:
        _write_users(folder)
        yield

    def _check(self) -> None:
        """See that this mailroute takes the configuration.

        :raises NotHere: it does not, and says why.
        """
        with new_folder() as folder:
            _write_users(folder)
            values = self.values(Leg.BOTH) | {"PORT": 1143, "BACKEND": 143}
            written = fill_in(self.template, folder, values)
            try:
                programs.run([sys.executable, "-P", "-m", "mailroute.cli", "check", str(written)])
            except BenchmarkError as refused:
                reason = str(refused).replace(f"{folder}/", "")
                raise NotHere(f"this mailroute does not take the configuration: {reason}") from None


_VERSIONS = """
from importlib.metadata import version
from platform import python_version
from OpenSSL.SSL import OPENSSL_VERSION, OpenSSL_version
try:
    own = version("mailroute")
except ImportError:
    own = "from its source"
ssl = OpenSSL_version(OPENSSL_VERSION).split()[1].decode()
print(f"{own} (Python {python_version()}, Twisted {version('Twisted')}, OpenSSL {ssl} of cryptography)")
"""


def _write_users(folder: Path) -> None:
    lines = (f"u{number}@example.com mock\n" for number in range(USERS))
    (folder / "users.txt").write_text("".join(lines))
