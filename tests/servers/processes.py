"""Starting a server, knowing when it is ready, and leaving nothing of it behind."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")

PATIENCE = 20.0
"""How many seconds anything may take that takes a fraction of one on an idle machine."""


class NotInTime(AssertionError):
    """Something awaited did not happen."""


def wait_until(what: str, attempt: Callable[[], T | None], patience: float = PATIENCE) -> T:
    """Repeat an attempt until it returns something, and return that."""
    deadline = time.monotonic() + patience
    while True:
        if result := attempt():
            return result
        if time.monotonic() > deadline:
            raise NotInTime(f"not within {patience:g} s: {what}")
        time.sleep(0.01)


_GIVEN_OUT: set[int] = set()


def _listening_ports() -> range:
    """The ports that the kernel gives to nobody who has not asked for one by its number."""
    first = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]
    return range(10_000, max(int(first), 20_000))


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on now; whoever uses it has to cope with losing the race for it.

    Any connection may take the port that the kernel names for 0 before a server
    listens on it.  These are out of their way, and chosen at random, since
    several processes may run tests at a time.
    """
    while True:
        port = random.choice(_listening_ports())  # noqa: S311 (no secret)
        if port in _GIVEN_OUT:
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((host, port))
            _GIVEN_OUT.add(port)
            return port


def accepts(host: str, port: int) -> bool:
    """Tell whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=PATIENCE):
        return True
    return False


class Log:
    """A log file that a server writes and a test reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def text(self, since: int = 0) -> str:
        """Return what has been logged since a `mark`."""
        try:
            return self.path.read_bytes()[since:].decode("utf-8", "backslashreplace")
        except FileNotFoundError:
            return ""

    def mark(self) -> int:
        """Return the present end, from which to look for what is logged next."""
        return self.path.stat().st_size if self.path.exists() else 0

    def find(self, pattern: str, since: int = 0) -> re.Match[str] | None:
        """Return the first line that matches, if there is one yet."""
        return re.search(pattern, self.text(since), re.MULTILINE)

    def wait_for(self, pattern: str, since: int = 0, patience: float = PATIENCE) -> re.Match[str]:
        """Return the match of the first line that matches, waiting for it to be logged."""
        try:
            return wait_until(f"{pattern!r} in {self.path}", lambda: self.find(pattern, since), patience)
        except NotInTime as late:
            raise NotInTime(f"{late}; there is only:\n{self.text(since)}") from None


def group_is_gone(group: int) -> bool:
    """Tell whether no process of a group is left, zombies of others' children aside."""
    return not any(True for _ in _members(group))


def _members(group: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # The command's name stands in parentheses and may contain anything.
            state, _, of_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                yield int(entry.name)


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _end_with_the_tests() -> None:
    """Have the kernel end this process when the one that started it is gone, however it went."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Watchdog:
    """Ends a process group when the tests are gone, however they went, for one that is not their own child's.

    :param file: has the group's number by then.
    """

    def __init__(self, file: Path) -> None:
        # Its input ends when nobody is left who could write to it.
        script = 'cat; kill -s TERM -- "-$(tr -d " " < "$0")"'
        self._popen = subprocess.Popen(
            ["/bin/sh", "-c", script, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stop(self) -> None:
        """Watch no longer."""
        os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(PATIENCE)
        self._popen.stdin.close()


class ServerProcess:
    """A server and its children: a process group of their own."""

    def __init__(self, command: list[str], output: Path, **options: object) -> None:
        with output.open("ab") as sink:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                preexec_fn=_end_with_the_tests,
                **options,
            )

    @property
    def pid(self) -> int:
        """The first process's id, which is the group's too."""
        return self.popen.pid

    def running(self) -> bool:
        """Tell whether the first process is alive."""
        return self.popen.poll() is None

    def kill(self) -> None:
        """End the whole group at once, as a crash or the loss of a machine would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait(PATIENCE)
        wait_until("the end of the process group", lambda: group_is_gone(self.pid))

    def stop(self) -> int:
        """Ask the first process to end, see that no child stays, and return the exit status."""
        if self.running():
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(PATIENCE)
        finally:
            self.kill()


class Foreground:
    """A server that one command has in the foreground; use it as a context manager.

    A kind of server says how it is launched (`_launch`) and when it is there
    (`_ready`).  What it says meanwhile is in ``log``.
    """

    name = ""
    log: Log
    _process: ServerProcess | None = None

    def __enter__(self) -> Self:
        self._process = self._launch()
        try:
            wait_until(f"{self.name}'s start", self._runs)
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        # Not killed: it is to remove what it has made.
        self._process.stop()

    def _launch(self) -> ServerProcess:
        raise NotImplementedError

    def _ready(self) -> bool:
        raise NotImplementedError

    def _runs(self) -> bool:
        assert self._process.running(), self.log.text()
        return self._ready()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()


class Instance:
    """A server with files of its own, which `stop` removes; use it as a context manager.

    One that has started by half is stopped too.
    """

    def __enter__(self) -> Self:
        try:
            self.set_up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def set_up(self) -> None:
        """Start it for the first time."""
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is there."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it, and remove all that it has written."""
        raise NotImplementedError
