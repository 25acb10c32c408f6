"""A real mailroute with workers, a mail server in the test's own process, and who serves whom."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import twistd
from servers.processes import PATIENCE, Log, free_port, wait_until
from servers.proxy import toml
from servers.raw import RawImap

STOPPED = twistd.STOPPED


class _Session(socketserver.StreamRequestHandler):
    """One IMAP session: every password is right, and every command is."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(b"* OK [CAPABILITY IMAP4rev1] ready.\r\n")
            for line in self.rfile:
                tag, _, command = line.strip().partition(b" ")
                self.wfile.write(tag + b" OK [CAPABILITY IMAP4rev1] " + command.split()[0] + b"\r\n")
                if command == b"LOGOUT":
                    break


class MailServer(socketserver.ThreadingTCPServer):
    """A mail server on a free port of the loopback interface; use it as a context manager."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1000

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        super().__exit__(*exc)


class Files:
    """A folder with a configuration of two workers, to be changed by a test."""

    def __init__(self, folder: Path, backend: int) -> None:
        self.folder = folder
        self.port = free_port()
        (folder / "users.txt").write_text("alice@example.com east\n")
        self.config: dict[str, Any] = {
            "workers": 2,
            "listen": [
                {
                    "protocol": "imap",
                    "endpoint": f"tcp:{self.port}:interface=127.0.0.1",
                    "security": "none",
                }
            ],
            "backend": {"east": {"imap": f"tcp:127.0.0.1:{backend}", "security": "none", "identity": "none"}},
            "route": [
                {"source": "table", "file": "users.txt"},
                {"source": "default", "backend": "east"},
            ],
            "limits": {"failure_delay": 0, "connections_per_address": 0},
        }

    def write(self) -> None:
        """Write the configuration as it is now."""
        (self.folder / "mailroute.toml").write_text(toml(self.config))

    def fails(
        self, *arguments: str, way: str = "--nodaemon", command: list[str] | None = None, **env: str
    ) -> str:
        """Run twistd, insist that it does not start, and return what it says; then nothing is left of it."""
        self.write()
        before = strays(self.folder)
        log = "--logfile=twistd.log" if way == "--daemon" else "--logfile=-"
        options = [way, log] if way == "--nodaemon" else [log]
        ended = twistd.run(
            *options,
            "mailroute",
            "--config",
            "mailroute.toml",
            *arguments,
            folder=self.folder,
            command=command,
            **env,
        )
        wait_until("the removal of the pid file", lambda: not (self.folder / "twistd.pid").exists())
        # A daemon says why it ends when all else is done.
        wait_until("the workers' end", lambda: set(strays(self.folder)) <= set(before))
        said = ended.stdout + ended.stderr + Log(self.folder / "twistd.log").text()
        assert ended.returncode == 1, said
        return said

    def run(self, *options: str, arguments: tuple[str, ...] = (), **more: Any) -> Running:
        """Run it in the foreground: use what is returned as a context manager."""
        self.write()
        return Running(
            "--pidfile=",
            *options,
            "mailroute",
            "--config",
            "mailroute.toml",
            *arguments,
            folder=self.folder,
            ports=[self.port],
            **more,
        )


class Running(twistd.Twistd):
    """A mailroute with workers."""

    @property
    def port(self) -> int:
        """Its port."""
        return self._ports[0]

    def workers(self) -> dict[int, int]:
        """The process ids of the workers that serve now, by their numbers."""
        return dict(_workers(self.log.text()))

    def nursery(self) -> int:
        """The process id of the one that makes them."""
        [nursery] = children(self.pid)
        return nursery

    def dial(self, source: str = "127.0.0.1") -> RawImap:
        """Connect."""
        return RawImap("127.0.0.1", self.port, source)

    def greeted(self, source: str = "127.0.0.1") -> RawImap:
        """Connect, and read the greeting."""
        client = self.dial(source)
        assert client.greeting().startswith(b"* OK"), self.log.text()
        return client

    def refused(self, source: str = "127.0.0.1") -> bytes:
        """Connect, and insist that this is one connection too many; returns what is said."""
        with self.dial(source) as client:
            said = client.rest()
        assert said.startswith(b"* BYE"), said
        return said

    def serving(self, *clients: RawImap) -> list[int]:
        """Return the ids of the processes that have the other ends of the clients' connections."""
        inodes = {}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, *_, inode = line.split()[:10]
            inodes[int(local.split(":")[1], 16), int(remote.split(":")[1], 16)] = inode
        owners = {inode: pid for pid in self.workers().values() for inode in sockets(pid)}
        ends = [(each.socket.getpeername()[1], each.socket.getsockname()[1]) for each in clients]
        return [owners[inodes[end]] for end in ends]

    def kill(self, pid: int) -> None:
        """Kill a worker as a crash would, and wait until there is another one."""
        [number] = [number for number, each in self.workers().items() if each == pid]
        mark = self.log.mark()
        os.kill(pid, signal.SIGKILL)
        self.log.wait_for(rf"worker {number} is ready", mark)


def _workers(text: str) -> Iterator[tuple[int, int]]:
    for found in re.finditer(r"worker (\d+) is ready: process (\d+)", text):
        yield int(found[1]), int(found[2])


def sockets(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    matches = [re.fullmatch(r"socket:\[(\d+)\]", name) for name in descriptors(pid)]
    return {match[1] for match in matches if match}


def descriptors(pid: int) -> list[str]:
    """What a process's descriptors stand for."""
    found = []
    with contextlib.suppress(FileNotFoundError):  # it is gone
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(str(entry.readlink()))
    return found


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are there."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Tell whether there is such a process, zombies aside."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def strays(folder: Path) -> list[int]:
    """The processes that run in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink() == folder and alive(int(entry.name)):
                    found.append(int(entry.name))
    return found


def until(what: str, condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    wait_until(what, condition, PATIENCE)


def without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a mapping less one key."""
    return {name: value for name, value in mapping.items() if name != key}
