"""Programs that are started for a measurement, and what the kernel says of their CPU time and memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Self

PATIENCE = 30.0
"""Seconds that anything may take that takes a moment."""

SESSION_LOG = "sessions.log"
"""Where every proxy logs its sessions, in its folder."""

LISTENERS = range(20000, 30000)
"""Where listeners go: below what Linux gives to outgoing connections, of which there are thousands."""

_TICK = os.sysconf("SC_CLK_TCK")


class BenchmarkError(Exception):
    """Something that a measurement needs is not as it has to be; the text says what."""


def wait_until(what: str, attempt: Callable[[], object], patience: float = PATIENCE) -> None:
    """Repeat an attempt until it returns something true.

    :raises BenchmarkError: it has not for ``patience`` seconds.
    """
    deadline = time.monotonic() + patience
    while not attempt():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"not within {patience:g} s: {what}")
        time.sleep(0.02)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    while True:
        port = random.choice(LISTENERS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def accepts(port: int) -> bool:
    """Tell whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
        return True
    return False


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class Program:
    """A program and its children, in a session of their own; use it as a context manager, or stop it.

    ``cores``: where it may run, if not everywhere.  What it says goes to ``output``.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        folder: Path,
        output: str,
        cores: Collection[int] = (),
    ) -> None:
        self.name = Path(command[0]).name
        self.output = folder / output

        def prepare() -> None:
            # However the benchmark ends, its programs end with it.
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if cores:
                os.sched_setaffinity(0, cores)

        with self.output.open("wb") as sink:
            self._popen = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                preexec_fn=prepare,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The first process's id."""
        return self._popen.pid

    def wait_for(self, port: int) -> None:
        """Wait until it listens.

        :raises BenchmarkError: it ends instead, or takes too long.
        """

        def ready() -> bool:
            if self._popen.poll() is not None:
                said = self.output.read_text(errors="replace").strip()[-1500:]
                raise BenchmarkError(f"{self.name} ended with status {self._popen.returncode}: {said}")
            return accepts(port)

        wait_until(f"{self.name} listens", ready)

    def stop(self) -> None:
        """End it and its children."""
        self._popen.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(5)
        # Whoever does not listen, and children that outlive their parent: the session is one group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def last_words(self) -> list[str]:
        """Return the last lines that it has said and logged."""
        lines = []
        for path in (self.output, self.output.with_name(SESSION_LOG)):
            with contextlib.suppress(OSError):
                lines += path.read_text(errors="replace").splitlines()[-3:]
        return lines

    def family(self) -> list[int]:
        """Return the ids of the program's process and all its descendants that are alive."""
        return descendants(self.pid)

    def cpu(self) -> float:
        """Return the seconds of CPU time that it and its children have used, those that are gone included."""
        return sum(map(cpu_seconds, self.family()))

    def settled_cpu(self) -> float:
        """Return the same once it has nothing left to do, or after a second."""
        before = self.cpu()
        for _ in range(50):
            time.sleep(0.02)
            now = self.cpu()
            if now - before < 0.0001:
                break
            before = now
        return now

    def memory(self) -> int:
        """Return the bytes of its memory: a page that several processes share counts in parts (PSS)."""
        return sum(map(pss, self.family()))


# --- what the kernel knows of a process -----------------------------------------


def _parents() -> Iterator[tuple[int, int]]:
    """Yield each process's id, and its parent's."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), int(_stat(int(entry.name))[1])


def _stat(pid: int) -> list[str]:
    """Return the fields of a process's stat from the third on: the second may contain anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def descendants(pid: int) -> list[int]:
    """Return a process and all that have sprung from it and are alive."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for each in found:
        found += children.get(each, ())
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process: its own exactly, that of children it has waited for by ticks."""
    try:
        # The process's CPU clock, as clock_getcpuclockid(3) would name it.
        own = time.clock_gettime((~pid << 3) | 2)
        reaped = sum(map(int, _stat(pid)[13:15])) / _TICK
    except OSError:
        return 0.0  # it has just ended, and its parent counts it
    return own + reaped


def pss(pid: int) -> int:
    """Return the proportional set size of a process in bytes."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0  # it has just ended
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
