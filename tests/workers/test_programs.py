"""Workers in programs of the user's own: Tac files, and services that are added while the reactor runs."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest_twisted
import twistd
from servers.raw import RawImap
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent
from workers.rig import Files, Running, alive, children, until

import mailroute

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_tac_file_has_workers_too(files: Files, stack: ExitStack) -> None:
    """A Tac file that loads a configuration with workers runs with workers, beside its other services."""
    files.write()
    tac = files.folder / "mailroute.tac"
    tac.write_text((EXAMPLES / "mailroute.tac").read_text())
    running = stack.enter_context(
        Running("--pidfile=", "-y", str(tac), folder=files.folder, ports=[files.port])
    )
    clients = [stack.enter_context(running.greeted()) for _ in range(40)]
    assert set(running.serving(*clients)) == set(running.workers().values())
    running.stop()


OWN = """
from twisted.application.service import Application
from twisted.internet import reactor
from zope.interface import implementer
import mailroute
from mailroute.config import build
from mailroute.interfaces import IRouter

@implementer(IRouter)
class Mine:
    def route(self, lookup):
        return None

try:
    settings = build(
        reactor,
        workers=2,
        listen=[{"protocol": "imap", "endpoint": "tcp:0:interface=127.0.0.1", "security": "none"}],
        backend={"east": {"imap": "tcp:127.0.0.1:1", "security": "none"}},
        route=[Mine()],
    )
except mailroute.ConfigError as error:
    raise SystemExit(str(error))
"""


def test_a_router_of_ones_own_needs_one_worker(tmp_path: Path) -> None:
    """Who gives a router of their own and asks for workers is told that they do not go together, and why."""
    (tmp_path / "own.tac").write_text(OWN)
    ended = twistd.run("--pidfile=", "-ny", "own.tac", folder=tmp_path)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1
    assert "route[1]: a Mine of this program cannot be handed to workers: let them load a plugin" in said
    assert "Traceback" not in said


def test_one_worker_needs_nothing_of_the_others(files: Files) -> None:
    """A program with one worker does not even import what several need."""
    files.config["workers"] = 1
    files.write()
    code = (
        "import sys, mailroute; mailroute.service(mailroute.load('mailroute.toml'));"
        "sys.exit(any(name.startswith('mailroute.workers') for name in sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=files.folder, env=twistd.environment(), check=False
    )
    assert ended.returncode == 0


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest_twisted.ensureDeferred
async def test_a_service_that_is_added_later_holds_nobody_up(files: Files) -> None:
    """In a program whose reactor runs, the workers start meanwhile; once stopped, nothing of them is left."""
    files.write()
    await deferToThread(lambda: None)  # so that the threads' descriptors are there already
    before = open_descriptors()
    assert reactor.running
    service = mailroute.service(mailroute.load(files.folder / "mailroute.toml"))
    with capturedLogs() as logged:
        service.privilegedStartService()
        service.startService()
        assert not any("is ready" in formatEvent(event) for event in logged)

        def login() -> bytes:
            with RawImap("127.0.0.1", files.port) as client:
                client.greeting()
                return client.command("a LOGIN alice@example.com wonderland")

        # Connections wait in the queue until the workers are there.
        for _ in range(5):
            assert (await deferToThread(login)).startswith(b"a OK")
        nursery = children(os.getpid())
        assert nursery
        await maybeDeferred(service.stopService)
    said = [formatEvent(event) for event in logged]
    assert sum("is ready" in line for line in said) == 2
    assert not any("killed" in line or "says" in line for line in said), said
    await deferToThread(until, "the nursery's end", lambda: not any(map(alive, nursery)))
    assert open_descriptors() == before
