"""Workers that run out of file descriptors: each by itself, and none of them ends of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import twistd
from servers.processes import PATIENCE
from servers.programs import program
from servers.raw import RawImap, UnixImap
from workers.rig import Files, Running, alive, until

LIMIT = 90
LIMITED = ["prlimit", f"--nofile={LIMIT // 2}:{LIMIT}", twistd.program("twistd")]
BYE = rb"\* BYE \[UNAVAILABLE\] Too many connections"


class Crowd:
    """Clients that log in and stay."""

    def __init__(self, running: Running, path: Path, stack: ExitStack) -> None:
        self._running = running
        self._path = path
        self._stack = stack

    def log_in(self, door: str) -> RawImap | None:
        """Connect and log in; None for a client that is told that there are too many."""
        client = UnixImap(self._path) if door == "unix" else self._running.dial()
        self._stack.callback(client.socket.close)
        if re.match(BYE, client.greeting()):
            assert client.rest() == b""
            return None
        assert client.command("a LOGIN bob secret").splitlines()[-1].startswith(b"a OK")
        return client

    def fill(self, door: str) -> list[RawImap]:
        """Log in until it is long since anybody was let in."""
        inside: list[RawImap] = []
        refused = 0
        while refused < 40:
            client = self.log_in(door)
            if client is None:
                refused += 1
            else:
                inside.append(client)
                refused = 0
        return inside


@pytest.fixture
def files_with_two_doors(files: Files) -> Files:
    path = files.folder / "imap.sock"
    files.config["listen"].append({"protocol": "imap", "endpoint": f"unix:{path}", "security": "none"})
    return files


@pytest.mark.parametrize("door", ["tcp", "unix"])
def test_running_out_of_descriptors(files_with_two_doors: Files, stack: ExitStack, door: str) -> None:
    """Sessions go on, whoever comes then hears BYE, and when somebody has left there is room for others."""
    files = files_with_two_doors
    running = stack.enter_context(files.run(command=LIMITED))
    crowd = Crowd(running, files.folder / "imap.sock", stack)
    workers = running.workers()
    inside = crowd.fill(door)
    assert len(inside) >= LIMIT * 0.5
    for client in inside:
        assert client.command("b NOOP").startswith(b"b OK")
    assert running.workers() == workers
    for client in inside[::2]:
        client.socket.close()
    until("room for another", lambda: crowd.log_in(door))
    for client in inside[1::2]:
        assert client.command("c NOOP").startswith(b"c OK")
    assert "Traceback" not in running.log.text(), running.log.text()
    running.stop()


def test_one_that_cannot_help_out(files: Files, stack: ExitStack) -> None:
    """A worker without a descriptor left that is asked to accept for another one says so, and goes on."""
    [listen] = files.config["listen"]
    files.config["listen"] += [{**listen, "endpoint": f"tcp:0:interface=127.0.0.{n}"} for n in range(2, 6)]
    running = stack.enter_context(files.run(command=LIMITED))
    crowd = Crowd(running, files.folder / "imap.sock", stack)
    inside = crowd.fill("tcp")
    first, second = running.workers()[1], running.workers()[2]
    mine = [client for client, pid in zip(inside, running.serving(*inside), strict=True) if pid == first]
    running.kill(second)
    assert running.log.wait_for("worker 1 cannot accept its clients meanwhile: Too many open files; raise")
    for client in mine:
        assert client.command("b NOOP").startswith(b"b OK")
    assert alive(first)
    assert "Traceback" not in running.log.text(), running.log.text()
    running.stop()


def test_too_few_descriptors_to_start(files: Files) -> None:
    """If there are not enough for so many workers, mailroute says what to do, and does not start."""
    files.config["workers"] = 8
    few = ["prlimit", "--nofile=35:35", twistd.program("twistd")]
    said = files.fails(command=few)
    assert re.search(r"cannot start workers with \S+: Too many open files: raise LimitNOFILE=", said), said
    assert "Traceback" not in said


# --- the system's own table ---------------------------------------------------------


@pytest.fixture(scope="module")
def full_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes the system's table of files look full."""
    library = tmp_path_factory.mktemp("full") / "full_table.so"
    source = Path(__file__).parents[1] / "servers" / "full_table.c"
    compiler = program("gcc", "gcc")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=60)
    return library


@pytest.fixture(params=[1, 2])
def full(request: pytest.FixtureRequest, files: Files, full_table: Path) -> Iterator[tuple[Running, Path]]:
    """A mailroute on a system whose table of files is full whenever there is that file."""
    switch = files.folder / "full"
    files.config["workers"] = request.param
    command = ["env", f"LD_PRELOAD={full_table}", f"FULL_TABLE={switch}", twistd.program("twistd")]
    with files.run(command=command) as running:
        yield running, switch
        assert "Traceback" not in running.log.text(), running.log.text()
        running.stop()


def test_the_whole_system_runs_out_of_files(full: tuple[Running, Path], stack: ExitStack) -> None:
    """Sessions go on, who comes waits in the queue, a login is answered, nobody spins; then all is well."""
    running, switch = full
    inside = [stack.enter_context(running.greeted()) for _ in range(6)]
    early = inside.pop()
    for client in inside:
        assert client.command("a LOGIN bob secret").startswith(b"a OK")
    switch.touch()
    before = sum(map(cpu, processes(running)))
    late = [stack.enter_context(running.dial()) for _ in range(6)]
    assert running.log.wait_for(
        r"no descriptor is left: new clients have to wait \(the whole system .*\); raise .* fs\.file-max"
    )
    for client in inside:
        assert client.command("b NOOP").startswith(b"b OK")
    assert early.command("a LOGIN bob secret").startswith(b"a NO [UNAVAILABLE]")
    assert running.log.wait_for(
        "cannot connect to backend east: .*Too many open files in system.*fs.file-max"
    )
    late[0].socket.settimeout(1)
    with pytest.raises(TimeoutError):
        late[0].greeting()
    late[0].socket.settimeout(PATIENCE)
    assert sum(map(cpu, processes(running))) - before < 1
    switch.unlink()
    for client in late:
        assert client.greeting().startswith(b"* OK")
    for client in [*late, early]:
        assert client.command("b LOGIN bob secret").startswith(b"b OK")


def test_a_worker_is_replaced_once_there_are_files_again(files: Files, full_table: Path) -> None:
    """While the system's table of files is full no worker can be made, and the other one carries on."""
    switch = files.folder / "full"
    command = ["env", f"LD_PRELOAD={full_table}", f"FULL_TABLE={switch}", twistd.program("twistd")]
    with ExitStack() as stack:
        running = stack.enter_context(files.run(command=command))
        inside = [stack.enter_context(running.greeted()) for _ in range(8)]
        for client in inside:
            assert client.command("a LOGIN bob secret").startswith(b"a OK")
        lost = running.workers()[2]
        serving = running.serving(*inside)
        switch.touch()
        os.kill(lost, signal.SIGKILL)
        running.log.wait_for("worker 2 cannot be started: Too many open files in system; trying again in")
        for client, pid in zip(inside, serving, strict=True):
            assert pid == lost or client.command("b NOOP").startswith(b"b OK")
        mark = running.log.mark()
        switch.unlink()
        running.log.wait_for("worker 2 is ready", mark)
        for _ in range(8):
            assert stack.enter_context(running.greeted()).command("c LOGIN bob secret").startswith(b"c OK")
        assert "Traceback" not in running.log.text(), running.log.text()
        running.stop()


def processes(running: Running) -> list[int]:
    """All that there are, but for the nursery."""
    return [running.pid, *running.workers().values()]


def cpu(pid: int) -> float:
    """How many seconds of processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
