"""SIGHUP: what a closed terminal does, and what somebody gets who expects a reload."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import twistd
from servers.processes import PATIENCE, Log, free_port, wait_until
from servers.proxy import toml
from servers.raw import RawImap

WORKERS = pytest.mark.parametrize("workers", [1, 2], ids=["alone", "workers"])

LINE = "SIGHUP does nothing: the configuration is read at the start alone; restart mailroute"


class Files:
    """A folder with a configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()

    def write(self, workers: int) -> None:
        where = f"tcp:{self.port}:interface=127.0.0.1"
        config = {
            "workers": workers,
            "listen": [{"protocol": "imap", "endpoint": where, "security": "none"}],
            "backend": {"east": {"imap": f"tcp:127.0.0.1:{free_port()}", "security": "none"}},
            "route": [{"source": "default", "backend": "east"}],
        }
        (self.folder / "mailroute.toml").write_text(toml(config))

    def run(self, workers: int, *before: str) -> twistd.Twistd:
        """Run it in the foreground, by these words."""
        self.write(workers)
        return twistd.Twistd(
            *("--pidfile=", "mailroute", "--config", "mailroute.toml"),
            folder=self.folder,
            ports=[self.port],
            command=[*before, twistd.program("twistd")],
        )

    def client(self) -> RawImap:
        client = RawImap("127.0.0.1", self.port)
        client.greeting()
        return client


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


class Screen:
    """A terminal that can be closed."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.name = os.ttyname(slave)
        self._slave = slave

    def close(self) -> None:
        for descriptor in (self._slave, self._master):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def words(self, shown: bool) -> list[str]:
        """Return what makes it the terminal of a command, which writes there or not.

        A process that leads a session gets the first terminal that it opens.
        """
        output = f">{self.name} 2>&1" if shown else ""
        return ["sh", "-c", f'exec "$@" <{self.name} {output}', "sh"]


@pytest.fixture
def screen() -> Iterator[Screen]:
    screen = Screen()
    yield screen
    screen.close()


@WORKERS
def test_without_a_terminal_it_does_nothing_but_say_so(files: Files, workers: int) -> None:
    """Who expects a reload, as of other servers, loses no session, and reads in the log what to do."""
    with files.run(workers) as running, files.client() as client:
        for count in (1, 2):
            mark = running.log.mark()
            os.kill(running.pid, signal.SIGHUP)
            running.log.wait_for(LINE, mark)
            assert client.command(f"a{count} NOOP").startswith(b"a%d OK" % count)
        files.client().socket.close()
        running.stop()


def test_a_daemon_has_no_terminal(files: Files) -> None:
    """A daemon goes on, and says so in its log."""
    files.write(1)
    log = Log(files.folder / "twistd.log")
    line = ["--logfile=twistd.log", "mailroute", "--config", "mailroute.toml"]
    ended = twistd.run(*line, folder=files.folder)
    assert ended.returncode == 0, ended
    pid = int((files.folder / "twistd.pid").read_text())
    try:
        wait_until("the daemon's start", lambda: twistd.catches_signals(pid))
        os.kill(pid, signal.SIGHUP)
        log.wait_for(LINE)
        files.client().socket.close()
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until("the daemon's end", lambda: not (files.folder / "twistd.pid").exists())


@pytest.mark.parametrize("shown", [False, True], ids=["quiet", "on-screen"])
@WORKERS
def test_it_ends_in_good_order_with_its_terminal(
    files: Files, screen: Screen, workers: int, shown: bool
) -> None:
    """When its terminal is closed, clients hear a goodbye, even if the log went to that terminal."""
    with files.run(workers, *screen.words(shown)) as running, files.client() as client:
        if workers > 1 and not shown:
            running.log.wait_for("worker 2 is ready")
        screen.close()
        ended = running._process.popen.poll

        def tell_again() -> bool:
            # A shell that ends as well tells its jobs once more, whenever it gets to that.
            if ended() is None:
                os.kill(running.pid, signal.SIGHUP)
            return ended() is not None

        wait_until("the end", tell_again)
        assert client.rest().startswith(b"* BYE")
        assert ended() == 0
        with pytest.raises(OSError):  # noqa: PT011
            socket.create_connection(("127.0.0.1", files.port), timeout=PATIENCE)
        if not shown:
            assert "SIGHUP: the terminal is gone, and mailroute ends" in running.log.text()
            assert "Traceback" not in running.log.text()


@WORKERS
def test_nohup_is_left_alone(files: Files, screen: Screen, workers: int) -> None:
    """With SIGHUP ignored from the start, the end of the terminal is nothing to it."""
    with files.run(workers, "sh", "-c", 'trap "" HUP; exec "$@"', "sh", *screen.words(False)) as running:
        with files.client() as client:
            screen.close()
            os.kill(running.pid, signal.SIGHUP)
            assert client.command("a NOOP").startswith(b"a OK")
        assert "SIGHUP" not in running.log.text()
        running.stop()
