"""The real ``twistd``, in a process of its own, as the tests' own Python has it installed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from servers.processes import PATIENCE, Foreground, Log, ServerProcess, accepts

import mailroute

STOPPED = -signal.SIGTERM
"""How twistd ends when it is told to end: in good order, and then by the signal that told it."""


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which Python finds the mailroute that the tests have."""
    # Where the tests were started on the source tree, its folder has to be named;
    # that of an installed package is there already and may be named again.
    path = [str(Path(mailroute.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", **more}


def catches_signals(pid: int) -> bool:
    """Tell whether a process has got as far as to end in good order when it is told to."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def program(name: str) -> str:
    """Return the path of a program that is installed beside the tests' own Python."""
    return str(Path(sys.executable).with_name(name))


def run(
    *arguments: str, folder: Path, command: list[str] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run ``twistd`` until it ends, as a daemon or because it cannot start."""
    return subprocess.run(
        [*(command or [program("twistd")]), *arguments],
        cwd=folder,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )


class Twistd(Foreground):
    """A ``twistd`` in the foreground that listens on some ports; use it as a context manager."""

    name = "twistd"

    def __init__(
        self,
        *arguments: str,
        folder: Path,
        ports: list[int],
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
        **options: object,
    ) -> None:
        self.folder = folder
        self.log = Log(folder / "output")
        self._ports = ports
        self._command = [*(command or [program("twistd")]), "--nodaemon", *arguments]
        self._env = environment() if env is None else env
        self._options = options

    def _launch(self) -> ServerProcess:
        return ServerProcess(self._command, self.log.path, cwd=self.folder, env=self._env, **self._options)

    def _ready(self) -> bool:
        return catches_signals(self.pid) and all(accepts("127.0.0.1", port) for port in self._ports)

    def stop(self) -> None:
        """Tell it to end, and insist that it does, in good order."""
        assert self._process.running(), self.log.text()
        assert self._process.stop() == STOPPED, self.log.text()
        assert "Server Shut Down" in self.log.text(), self.log.text()
        assert "Traceback" not in self.log.text(), self.log.text()
        assert "Unhandled" not in self.log.text(), self.log.text()
