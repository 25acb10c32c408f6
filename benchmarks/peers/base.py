"""What all peers have in common: a program, a configuration to fill in, and a folder to run it in."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from benchmarks import programs
from benchmarks.processes import BenchmarkError, Program, free_port


class Leg(Enum):
    """Where TLS is: nowhere, to the client, or to the client and to the backend."""

    PLAIN = "plain"
    TLS = "tls"
    BOTH = "tls-both"

    @property
    def in_front(self) -> bool:
        """Whether clients speak TLS with the proxy."""
        return self is not Leg.PLAIN

    @property
    def behind(self) -> bool:
        """Whether the proxy speaks TLS with the backend."""
        return self is Leg.BOTH


class NotHere(BenchmarkError):
    """A peer cannot be measured on this machine; the text says why."""


@dataclass(frozen=True)
class Cores:
    """Where things run: the proxy has a core that nothing of ours disturbs, if there are two."""

    proxy: tuple[int, ...]
    others: tuple[int, ...]

    @classmethod
    def share_out(cls) -> Cores:
        """Share out the cores that we may use."""
        cores = tuple(sorted(os.sched_getaffinity(0)))
        return cls(cores[:1], cores[1:] or cores)

    @classmethod
    def first(cls, number: int) -> Cores:
        """Have everybody share as many cores as asked for, or all if there are not as many."""
        cores = tuple(sorted(os.sched_getaffinity(0)))[:number]
        return cls(cores, cores)


class Peer:
    """A proxy that can be started as often as somebody wants to measure it.

    ``name`` is for the command line and the results, ``title`` for readers.
    ``share``: the part of a load's units that will do for a peer that takes
    many times longer for each.  ``most_sessions``: how many it is made to
    hold.  ``legs`` and ``loads``: what it can do.  ``workers``: how many
    processes share the work.
    """

    name: str
    title: str
    binary: str
    template: str
    share: float = 1.0
    most_sessions: int = 1_000_000
    legs: Collection[Leg] = tuple(Leg)
    loads: Collection[str] = ("login", "resume", "bulk", "noop", "fairness", "idle")
    workers: int = 1

    def path(self) -> str:
        """Return where the program is.

        :raises NotHere: nowhere.
        """
        # An ordinary user's PATH often lacks the folders where Debian keeps servers.
        places = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
        found = shutil.which(self.binary, path=places)
        if not found:
            raise NotHere(f"there is no {self.binary}: benchmarks/debian-packages.txt says what to install")
        return found

    def version(self) -> str:
        """Return the program's version.

        :raises NotHere: it is not here, or is a version that cannot be used.
        """
        raise NotImplementedError

    def values(self, leg: Leg) -> dict[str, object]:
        """Return what the template's names stand for, besides those that `common` has."""
        raise NotImplementedError

    def command(self, folder: Path) -> list[str]:
        """Return how to start it in the foreground."""
        raise NotImplementedError

    @contextlib.contextmanager
    def helpers(
        self,
        folder: Path,  # noqa: ARG002
        values: Mapping[str, object],  # noqa: ARG002
        cores: Collection[int],  # noqa: ARG002
    ) -> Iterator[None]:
        """Have everything at hand that it needs besides its configuration, and that is not counted.

        ``cores``: where other programs may run.
        """
        yield

    @contextlib.contextmanager
    def run(self, leg: Leg, backend: int, cores: Cores) -> Iterator[tuple[Program, int]]:
        """Have it running in front of the backend on a port; gives the program, and the port it listens on.

        :raises BenchmarkError: it does not start.
        """
        with new_folder() as folder:
            port = free_port()
            values = common(folder, port, backend) | self.values(leg)
            fill_in(self.template, folder, values)
            with (
                self.helpers(folder, values, cores.others),
                Program(self.command(folder), folder, "output", cores.proxy) as program,
            ):
                program.wait_for(port)
                yield program, port


def common(folder: Path, port: int, backend: int) -> dict[str, object]:
    """Return the values that most templates need."""
    return {
        "FOLDER": folder,
        "PORT": port,
        "BACKEND": backend,
        # Each takes as many descriptors as it is allowed to have.
        "DESCRIPTORS": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    }


def fill_in(template: str, folder: Path, values: Mapping[str, object]) -> Path:
    """Write a template with its names replaced into the folder, and return where."""
    text = (Path(__file__).parent / template).read_text(encoding="utf-8")
    text = re.sub(r"@([A-Z_]+)@", lambda name: str(values[name[1]]) if name[1] != "NAME" else name[0], text)
    written = folder / template
    written.write_text(text, encoding="utf-8")
    return written


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    """Have a folder with the certificate in it, which the users may enter that a server becomes."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        for each in (programs.CERTIFICATE, programs.KEY):
            shutil.copy(each, folder)
        yield folder


def said(pattern: str, *command: str) -> str:
    """Return the version that a command tells, which the pattern's group is."""
    # Perdition counts being asked for help as a failure.
    found = re.search(pattern, programs.run([*command], check=False))
    return found[1] if found else "unknown"
