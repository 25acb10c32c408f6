"""A mailroute of the test's own: a real ``twistd`` in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import mailroute
from servers.accounts import ALICE, BOB, SPARE
from servers.processes import Log, ServerProcess, accepts, free_port, wait_until

# The soft limit first: it may not be above the hard one.
_LIMITED = 'ulimit -S -n {}; ulimit -H -n {}; exec "$@"'


class DoesNotStart(AssertionError):
    """It ended instead of listening."""


class Mailroute:
    """One instance; use it as a context manager, or stop it.

    ``listen`` has the ``[[listen]]`` blocks by the names that the test gives
    them, less protocol and endpoint: each gets a free port, which ``ports``
    then tells, unless the test gives it an endpoint.  ``config`` is the rest of
    the configuration, as its file would be read, and ``files`` are what to put
    beside that file.  ``open_files`` are the soft and the hard limit of
    descriptors that it starts with.
    """

    def __init__(
        self,
        listen: Mapping[str, Mapping[str, object]],
        config: Mapping[str, object],
        files: Mapping[str, str] | None = None,
        open_files: tuple[int, int] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mailroute-"))
        self.log = Log(self.folder / "log")
        self.ports: dict[str, int] = {}
        self._listen = listen
        self._config = config
        self._limited = [] if open_files is None else ["sh", "-c", _LIMITED.format(*open_files), "sh"]
        self._process: ServerProcess | None = None
        for name, text in (files or {}).items():
            (self.folder / name).write_text(text)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            if self._process:
                self._process.kill()
            shutil.rmtree(self.folder)
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it listens."""
        for _ in range(5):
            mark = self.log.mark()
            self._write_configuration()
            self._process = self._run()
            if wait_until("mailroute's start", self._state) == "listens":
                return
            if not self.log.find("in use", mark):
                break
        raise DoesNotStart(self.log.text())

    def _write_configuration(self) -> None:
        self.ports = {name: free_port() for name, keys in self._listen.items() if "endpoint" not in keys}
        endpoints = {name: f"tcp:{port}:interface=127.0.0.1" for name, port in self.ports.items()}
        blocks = [
            {"protocol": "imap", "endpoint": endpoints.get(name)} | dict(keys)
            for name, keys in self._listen.items()
        ]
        (self.folder / "mailroute.toml").write_text(toml({**self._config, "listen": blocks}))

    def _run(self) -> ServerProcess:
        twistd = [sys.executable, str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile="]
        # Where the tests have mailroute from, there it has it from too: installed, or the source tree.
        home = str(Path(mailroute.__file__).parents[1])
        path = [] if home == sysconfig.get_path("purelib") else [home]
        path += filter(None, [os.environ.get("PYTHONPATH")])
        return ServerProcess(
            [*self._limited, *twistd, "mailroute", "--config", "mailroute.toml"],
            self.log.path,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"},
        )

    def _state(self) -> str:
        if not self._process.running():
            return "ended"
        return "listens" if all(accepts("127.0.0.1", port) for port in self.ports.values()) else ""

    def stop(self) -> None:
        """Stop it, remove its files, and insist that it ended as it should."""
        log = self.log.text()
        try:
            ended_before = not self._process.running()
            status = self._process.stop()
            log = self.log.text()
        finally:
            shutil.rmtree(self.folder)
        assert not ended_before, f"mailroute ended before it was told to (status {status}):\n{log}"
        # Twisted shuts down in order, and then ends of the signal, so that whoever sent it can tell.
        assert status == -signal.SIGTERM, f"mailroute ended with status {status}:\n{log}"
        assert "Traceback" not in log, log
        assert "Unhandled" not in log, log
        for password in {account.password for account in (ALICE, BOB, *SPARE)}:
            assert password not in log, log

    # --- what it uses -------------------------------------------------------

    def descriptors(self) -> list[str]:
        """Return what its open file descriptors stand for."""
        names = []
        for entry in Path(f"/proc/{self._process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since the folder was listed
                names.append(str(entry.readlink()))
        return sorted(names)

    def sockets(self) -> int:
        """Return how many sockets it has open."""
        return sum(1 for name in self.descriptors() if name.startswith("socket:"))

    def idle(self) -> bool:
        """Tell whether its listeners are the only sockets it has."""
        return self.sockets() == len(self.ports)

    def cpu(self) -> float:
        """Return how many seconds of the processor it has taken."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def open_files(self) -> tuple[int, int]:
        """Return its soft and hard limit of descriptors."""
        limits = Path(f"/proc/{self._process.pid}/limits").read_text()
        soft, hard = re.search(r"^Max open files\s+(\d+)\s+(\d+)", limits, re.MULTILINE).groups()
        return int(soft), int(hard)

    def memory(self) -> int:
        """Return how many bytes of memory are resident."""
        return int(self._status("VmRSS").split()[0]) * 1024

    def threads(self) -> int:
        """Return how many threads it has."""
        return int(self._status("Threads"))

    def _status(self, key: str) -> str:
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return value.strip()
        raise KeyError(key)


def toml(config: Mapping[str, object], prefix: str = "") -> str:
    """Return a configuration as TOML: simple values first, then tables, then arrays of tables."""
    simple, tables = [], []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            tables.append(f"\n[{name}]\n" + toml(value, f"{name}."))
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            tables += [f"\n[[{name}]]\n" + toml(block, f"{name}.") for block in value]
        else:
            # A JSON string, number, boolean or list of those is a TOML one.
            simple.append(f"{key} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join([*simple, *tables])
