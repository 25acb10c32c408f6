"""What ends, and what does not: workers, the nursery, the parent, and starts that fail."""

from __future__ import annotations

import os
import re
import signal
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest
import twistd
from metrics import Page
from servers.processes import accepts, free_port
from workers.rig import Files, Running, alive, children, descriptors, strays, until


@pytest.fixture
def running(files: Files, stack: ExitStack) -> Running:
    return stack.enter_context(files.run())


# --- a worker -------------------------------------------------------------------


def test_one_that_is_killed_is_replaced_and_the_others_sessions_live_on(
    running: Running, stack: ExitStack
) -> None:
    """A worker that crashes takes its own sessions along and nobody else's, and there is soon another one."""
    clients = [stack.enter_context(running.greeted()) for _ in range(30)]
    for client in clients:
        assert client.command("a LOGIN alice@example.com wonderland").startswith(b"a OK")
    victim, survivor = running.workers().values()
    served = dict(zip(clients, running.serving(*clients), strict=True))
    running.kill(victim)
    for client in clients:
        if served[client] == survivor:
            assert client.command("b NOOP").startswith(b"b OK")
        else:
            assert client.socket.recv(1) == b""
    lost = [client for client in clients if served[client] == victim]
    running.log.wait_for(
        rf"worker [12] \(process {victim}\) was killed by SIGKILL; connections lost: {len(lost)}; "
        "it is started again at once"
    )
    fresh = [stack.enter_context(running.greeted()) for _ in range(30)]
    assert set(running.serving(*fresh)) == set(running.workers().values()) != {victim, survivor}
    running.stop()


def test_one_that_is_told_to_end_does_so_in_good_order(running: Running, stack: ExitStack) -> None:
    """SIGTERM to a worker replaces it: whoever has not logged in is told, and the program goes on."""
    victim = running.workers()[2]
    clients = [stack.enter_context(running.greeted()) for _ in range(20)]
    served = running.serving(*clients)
    os.kill(victim, signal.SIGTERM)
    for client, pid in zip(clients, served, strict=True):
        if pid == victim:
            assert client.rest().startswith(b"* BYE")
        else:
            assert client.command("a NOOP").startswith(b"a OK")
    running.log.wait_for(rf"worker 2 \(process {victim}\) ended with status 0")
    until("another one", lambda: running.workers()[2] != victim)
    running.stop()


def test_signals_that_are_meant_for_the_parent_end_no_worker(running: Running) -> None:
    """Ctrl-C, the end of a terminal and the rotation of logs are the parent's business."""
    pids = [running.nursery(), *running.workers().values()]
    for pid in pids:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(pid, number)
    os.kill(running.nursery(), signal.SIGTERM)
    for _ in range(10):
        with running.greeted() as client:
            client.command("a LOGIN alice@example.com wonderland")
    assert [running.nursery(), *running.workers().values()] == pids
    assert all(map(alive, pids))
    running.stop()


def test_one_that_cannot_run_is_tried_ever_later_and_nobody_waits_for_it(
    files: Files, running: Running, stack: ExitStack
) -> None:
    """With a table that is none any more a later worker does not start: the other one serves its clients.

    The log says why, and when it is tried again, and the program goes on.
    """
    (files.folder / "users.txt").write_text("alice@example.com nowhere\n")
    os.kill(running.workers()[1], signal.SIGKILL)
    running.log.wait_for(r"worker 1 says: file: .*users\.txt:1: there is no \[backend\.nowhere\]")
    running.log.wait_for(
        r"worker 1 \(process \d+\) ended with status 1 before it was ready; connections lost: 0; "
        r"it is started again in 1 s"
    )
    clients = [stack.enter_context(running.greeted()) for _ in range(30)]
    assert set(running.serving(*clients)) == {running.workers()[2]}
    running.log.wait_for(r"it is started again in 2 s")
    (files.folder / "users.txt").write_text("alice@example.com east\n")
    mark = running.log.mark()
    running.log.wait_for(r"worker 1 is ready", mark)
    clients = [stack.enter_context(running.greeted()) for _ in range(30)]
    assert set(running.serving(*clients)) == set(running.workers().values())
    running.stop()


def test_one_that_is_made_later_knows_the_tables_of_now(files: Files, running: Running) -> None:
    """A worker does not begin with users of long ago: they may have moved."""
    (files.folder / "users.txt").write_text("alice@example.com east\n")
    files.config["route"].pop()
    os.utime(files.folder / "users.txt", (1, 1))
    files.config["backend"]["west"] = files.config["backend"]["east"]
    running.stop()
    with files.run() as again:
        (files.folder / "users.txt").write_text("alice@example.com west\n")
        for pid in list(again.workers().values()):
            again.kill(pid)
        for _ in range(8):
            with again.greeted() as client:
                client.command("a LOGIN alice@example.com wonderland")
        until("all lines", lambda: len(re.findall("ended: user=alice", again.log.text())) == 8)
        assert len(re.findall("ended: user=alice.* backend=west", again.log.text())) == 8
        again.stop()


# --- the nursery ----------------------------------------------------------------


def test_without_the_nursery_workers_go_on(running: Running, stack: ExitStack) -> None:
    """Somebody kills the nursery: the workers serve on, and another nursery replaces the next that ends."""
    nursery = running.nursery()
    before = running.workers()
    os.kill(nursery, signal.SIGKILL)
    running.log.wait_for(rf"the nursery \(process {nursery}\) is gone")
    for _ in range(10):
        running.greeted().socket.close()
    assert all(map(alive, before.values()))
    os.kill(before[1], signal.SIGKILL)
    running.log.wait_for(rf"worker 1 \(process {before[1]}\) is gone; connections lost: \d+")
    until("another one", lambda: running.workers()[1] != before[1])
    clients = [stack.enter_context(running.greeted()) for _ in range(30)]
    assert set(running.serving(*clients)) == set(running.workers().values())
    until("the end of the zombie", lambda: nursery not in children(running.pid))
    os.kill(running.pid, signal.SIGTERM)
    until("the end of all", lambda: not strays(running.folder))


# --- the parent -----------------------------------------------------------------


def test_the_end_is_told_and_leaves_nothing(running: Running, stack: ExitStack) -> None:
    """SIGTERM ends all: clients that are not logged in hear BYE, no process is left, and none was killed."""
    waiting = [stack.enter_context(running.greeted()) for _ in range(20)]
    joined = [stack.enter_context(running.greeted()) for _ in range(20)]
    for client in joined:
        client.command("a LOGIN alice@example.com wonderland")
    processes = [running.nursery(), *running.workers().values()]
    running.stop()
    assert not any(map(alive, processes))
    assert all(client.rest().startswith(b"* BYE") for client in waiting)
    assert [client.rest() for client in joined] == [b""] * 20
    ended = r"session \S+ ended: user={} .* reason=shutting down"
    assert len(re.findall(ended.format("-"), running.log.text())) == 20
    assert len(re.findall(ended.format("alice@example.com"), running.log.text())) == 20
    assert "killed" not in running.log.text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_ends_all_in_good_order(files: Files, number: signal.Signals) -> None:
    """Ctrl-C, and a service manager that signals every process, end mailroute in good order."""
    with files.run() as running:
        client = running.greeted()
        processes = [running.pid, running.nursery(), *running.workers().values()]
        for pid in processes:
            os.kill(pid, number)
        assert client.rest().startswith(b"* BYE")
        until("the end of all", lambda: not any(map(alive, processes)))
        assert running.log.find("Server Shut Down")
        assert "Traceback" not in running.log.text()
        assert "killed" not in running.log.text()


def test_workers_do_not_outlive_their_parent(running: Running, stack: ExitStack) -> None:
    """However the parent ends, by a crash for example, its workers and the nursery end as well."""
    client = stack.enter_context(running.greeted())
    processes = [running.pid, running.nursery(), *running.workers().values()]
    os.kill(running.pid, signal.SIGKILL)
    assert client.rest().startswith(b"* BYE")
    until("the end of all", lambda: not any(map(alive, processes)))
    assert not accepts("127.0.0.1", running.port)


def test_a_daemon_has_one_pid_file_and_ends_with_all_its_workers(files: Files) -> None:
    """The process in twistd.pid is the parent; none is in the terminal's session any more."""
    files.write()
    ended = twistd.run("mailroute", "--config", "mailroute.toml", folder=files.folder)
    assert ended.returncode == 0, ended
    pid = int((files.folder / "twistd.pid").read_text())
    try:
        until("twistd's start", lambda: twistd.catches_signals(pid))
        processes = strays(files.folder)
        assert len(processes) == 4
        assert pid in processes
        assert os.getsid(0) not in {os.getsid(process) for process in processes}
        assert accepts("127.0.0.1", files.port)
    finally:
        os.kill(pid, signal.SIGTERM)
        until("the daemon's end", lambda: not (files.folder / "twistd.pid").exists())
    until("the workers' end", lambda: not strays(files.folder))


# --- starts that fail -----------------------------------------------------------

WAYS = pytest.mark.parametrize("way", ["--nodaemon", "--daemon"])

FAULTS = {
    "an import error": (
        "import sys; sys.modules['mailroute.workers.nursery'] = None",
        "the nursery does not start: ModuleNotFoundError: import of mailroute.workers.nursery halted",
    ),
    "bad memory": (
        "import os; os.close(5)",
        r"the nursery does not start: OSError: \[Errno 9\] Bad file descriptor",
    ),
    "an end without a word": (
        "import os; os._exit(3)",
        "the nursery does not start: it has ended without a word",
    ),
    "an error of the workers": (
        "import mailroute.workers.worker as worker\n"
        "def run(*_): raise RuntimeError('no worker today')\n"
        "worker.run = run",
        "worker [12] does not start: RuntimeError: no worker today",
    ),
    "workers that are killed": (
        "import os\nimport mailroute.workers.worker as worker\n"
        "def run(*_): os.kill(os.getpid(), 9)\n"
        "worker.run = run",
        "worker [12] does not start: it was killed by SIGKILL",
    ),
}
"""What goes wrong in the nursery's interpreter, as a site's own module may do it, and what is said."""


@WAYS
@pytest.mark.parametrize("fault", FAULTS)
def test_workers_that_cannot_start_end_the_start(files: Files, fault: str, way: str) -> None:
    """If a worker cannot run at all, mailroute says why, exits with status 1, and leaves nothing."""
    code, said = FAULTS[fault]
    folder = files.folder / "site"
    folder.mkdir()
    body = "".join(f"    {line}\n" for line in code.splitlines())
    (folder / "sitecustomize.py").write_text(
        f"import sys\nif any(word.endswith('workers/start.py') for word in sys.orig_argv):\n"
        f"    sys.path.append({str(Path(twistd.mailroute.__file__).parents[1])!r})\n{body}"
    )
    path = f"{folder}{os.pathsep}{twistd.environment()['PYTHONPATH']}"
    assert re.search(f"mailroute: {said}", files.fails(way=way, PYTHONPATH=path))


@WAYS
def test_without_an_interpreter_there_is_no_start(files: Files, way: str) -> None:
    """If Python itself cannot be started, the message names it."""
    folder = files.folder / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\nif 'twistd' in sys.orig_argv[1]: sys.executable = '/nowhere/python'\n"
    )
    path = f"{folder}{os.pathsep}{twistd.environment()['PYTHONPATH']}"
    said = files.fails(way=way, PYTHONPATH=path)
    assert "mailroute: cannot start workers with /nowhere/python: No such file or directory" in said
    assert "Traceback" not in said


@WAYS
def test_a_busy_port_is_named(files: Files, way: str) -> None:
    """A port that another mailroute with workers has is as busy as any other."""
    with files.run():
        said = files.fails(way=way)
    assert f"cannot listen on imap tcp:{files.port}" in said
    assert "Address already in use" in said


# --- elsewhere ------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root")
def test_a_chroot_needs_nothing_in_it_but_the_null_device(files: Files) -> None:
    """Where one process needs no file, workers need none either, whenever they are made, and no privilege."""
    jail = files.folder / "jail"
    (jail / "dev").mkdir(parents=True)
    try:
        os.mknod(jail / "dev" / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (jail / "dev" / "null").open("rb").close()
    except PermissionError:
        pytest.skip("no device can be made here")
    (jail / "dev" / "null").chmod(0o666)
    (jail / "etc").mkdir()
    (jail / "etc" / "passwd").write_text("nobody:x:65534:65534:nobody:/:/\n")  # twistd looks for the groups
    files.config["listen"][0]["authenticate"] = "memory:alice@example.com:wonderland"
    files.config["metrics"] = {"address": f"127.0.0.1:{(metrics := free_port())}"}
    options = ("--chroot", str(jail), "--uid", "65534", "--gid", "65534", "--umask", "027")
    with files.run(*options) as running:
        for _ in range(2):
            for pid in running.workers().values():
                assert Path(f"/proc/{pid}/root").readlink() == jail
                status = Path(f"/proc/{pid}/status").read_text()
                assert re.search(r"^Uid:\s65534\s65534\s65534\s65534$", status, re.M)
                assert re.search(r"^Umask:\s0027$", status, re.M)
            assert Path(f"/proc/{running.nursery()}/root").readlink() == jail
            for _ in range(10):
                with running.greeted() as client:
                    assert client.command("a LOGIN alice@example.com wonderland").startswith(b"a OK")
            page = Page.at(metrics)
            assert [page.value("mailroute_worker_up", worker=worker) for worker in "12"] == [1, 1]
            for pid in list(running.workers().values()):
                running.kill(pid)
        running.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up being root")
@pytest.mark.parametrize("euid", [[], ["--euid"]], ids=["uid", "euid"])
def test_no_process_keeps_more_privileges_than_the_parent(files: Files, euid: list[str]) -> None:
    """Nursery and workers are who the parent is; another process of that user cannot look into them."""
    with files.run("--uid", "65534", "--gid", "65534", *euid) as running:

        def who(pid: int) -> list[str]:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
            return [line for line in lines if line.startswith(("Uid:", "Gid:", "Groups:", "CapPrm:"))] + [
                line for line in limits if line.startswith("Max open files")
            ]

        parent = who(running.pid)
        assert "65534" in parent[0]
        for pid in (running.nursery(), *running.workers().values()):
            assert who(pid) == parent
            assert Path(f"/proc/{pid}/environ").stat().st_uid == 0  # it is not dumpable
        running.stop()


def test_what_systemd_opens_does_not_leak(files: Files) -> None:
    """Descriptors that twistd has inherited and that are nobody's listeners do not reach the workers."""
    reading, writing = os.pipe()
    try:
        with files.run(pass_fds=[writing]) as running:
            name = f"pipe:[{os.fstat(writing).st_ino}]"
            for pid in (running.nursery(), *running.workers().values()):
                assert name not in descriptors(pid)
            assert children(running.pid)
            running.stop()
    finally:
        os.close(reading)
        os.close(writing)
