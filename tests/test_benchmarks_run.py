"""The programs of the benchmark, what it reads off a process, and a run; speed does not matter here."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarking import FOLDER
from servers.processes import wait_until
from servers.programs import REPOSITORY, lacking

import mailroute
from benchmarks import processes, programs
from benchmarks.loads import TINY
from benchmarks.metrics import METRICS

# --- what is read off a process -------------------------------------------------

BURN = "import time\nwhile time.process_time() < 0.1: pass\n"
PARENT = f"""
import subprocess, sys, time
subprocess.run([sys.executable, '-c', {BURN!r}])
print('done', flush=True)
time.sleep(60)
"""


def test_the_clock_of_a_process_counts_its_time() -> None:
    """The CPU clock that is read is the process's own."""
    before, own = processes.cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() < own + 0.02:
        pass
    assert processes.cpu_seconds(os.getpid()) - before >= 0.02


def test_cpu_time_counts_children_that_are_gone(tmp_path: Path) -> None:
    """A proxy that forks for each session pays for each."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with processes.Program([sys.executable, script], tmp_path, "output") as program:
        wait_until("the end of the child", lambda: "done" in program.output.read_text())
        assert program.family() == [program.pid]
        # Of a child that is gone the kernel tells the time in ticks.
        assert program.cpu() >= 0.08


def test_memory_and_family_count_children(tmp_path: Path) -> None:
    """What a proxy costs is what all its processes cost."""
    script = tmp_path / "parent.py"
    child = "import time; block = b'x' * 20_000_000; print('done', flush=True); time.sleep(60)"
    script.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])")
    with processes.Program([sys.executable, script], tmp_path, "output") as program:
        wait_until("the child", lambda: "done" in program.output.read_text())
        assert len(program.family()) == 2
        assert program.memory() > 20_000_000


def test_a_program_that_does_not_start_says_why(tmp_path: Path) -> None:
    """Its own words are in the message."""
    script = tmp_path / "wrong.py"
    script.write_text("raise SystemExit('no such setting: workers')")
    with (
        processes.Program([sys.executable, script], tmp_path, "output") as program,
        pytest.raises(processes.BenchmarkError, match="ended with status 1: no such setting: workers"),
    ):
        program.wait_for(processes.free_port())


# --- the C programs ---------------------------------------------------------------


@pytest.fixture(scope="module")
def built() -> None:
    """Compile the two programs and make the certificate, as a run does."""
    for name in ("gcc", "openssl"):
        if not shutil.which(name):
            lacking(name, f"tools/install-debian-packages {name}")
    if not Path("/usr/include/openssl/ssl.h").exists():
        lacking("OpenSSL's headers", "tools/install-debian-packages libssl-dev")
    programs.make()


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("name", ["backend", "load"])
def test_the_c_programs_compile_without_a_warning(name: str, tmp_path: Path) -> None:
    """Nothing in them needs an excuse."""
    source = str(FOLDER / "c" / f"{name}.c")
    programs.run([*programs.COMPILER, "-Werror", "-o", str(tmp_path / name), source, *programs.LIBRARIES])


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def backend(request: pytest.FixtureRequest, built: None, tmp_path: Path) -> Iterator[tuple[int, bool]]:  # noqa: ARG001
    with programs.Backend(tmp_path, request.param, ()) as running:
        yield running.port, request.param


DIALOG = (
    b"a LOGIN {5}\r\nalice {6+}\r\nsecret\r\n"
    b"b AUTHENTICATE PLAIN\r\nAGEAYg==\r\nc AUTHENTICATE PLAIN AGEAYg==\r\n"
    b"d APPEND INBOX {3+}\r\nabc\r\ne NOOP\r\nf XPOUR 4\r\ng AUTHENTICATE LOGIN\r\nYQ==\r\nYg==\r\n"
    b'h ID ("name" "x")\r\ni LOGIN "u@example.com" "p"\r\nj EXPUNGE\r\nk LOGOUT\r\n'
)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("size", [1, 7, len(DIALOG)])
def test_the_backend_takes_a_dialog_in_any_segments(size: int, tmp_path: Path) -> None:
    """It is a server that no proxy can confuse, whatever the proxy sends at once."""
    with (
        programs.Backend(tmp_path, False, ()) as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=20) as client,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(DIALOG), size):
            client.sendall(DIALOG[start : start + size])
        lines = client.makefile("rb").read().split(b"\r\n")
    assert lines[0].startswith(b"* OK [CAPABILITY IMAP4rev1 ")
    assert [line.split()[:2] for line in lines if line[:1] in b"abcdefghijk" and line[1:2] == b" "] == [
        [tag, b"BAD" if tag == b"j" else b"OK"] for tag in (b"a b c d e f g h i j k").split()
    ]
    assert [line for line in lines if line[:1] == b"+"] == [b"+ OK", b"+ ", b"+ ", b"+ "]
    assert lines[lines.index(b"* 1 FETCH (BODY[] {4}") + 1] == b"abcd)"
    assert b"* BYE Logging out" in lines


def test_the_load_generator_does_what_it_is_told(backend: tuple[int, bool]) -> None:
    """Each command has its units and bytes, and sessions stay until they are closed."""
    port, tls = backend
    with programs.Load(port, tls, ()) as load:
        assert load.do("login 3 10")["units"] == 10
        assert load.do("open 8")["held"] == 8
        assert load.do("open 150")["held"] == 150
        assert load.do("noop 5 50")["units"] == 50
        assert load.do("down 4 4000000")["bytes"] == 4_000_000
        assert load.do("up 4 4000000")["bytes"] == 4_000_000
        assert load.do("pour 2 0.1")["bytes"] > 0
        paced = load.do("pace 20 0.2 200")
        assert 0 < paced["p50_us"] <= paced["p99_us"]
        assert load.do("close")["held"] == 0
        assert load.do("open 2")["held"] == 2


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(("resume", "resumed"), [(False, 0), (True, 10)])
def test_the_load_generator_resumes_when_it_is_told(resume: bool, resumed: int, tmp_path: Path) -> None:
    """A full handshake is the rule, and a ticket the exception."""
    with (
        programs.Backend(tmp_path, True, ()) as running,
        programs.Load(running.port, True, (), resume) as load,
    ):
        load.do("login 2 10")
        assert load.do("login 2 10")["resumed"] == resumed


@pytest.mark.usefixtures("built")
def test_the_load_generator_says_what_went_wrong(tmp_path: Path) -> None:
    """No figure comes from a run in which something else happened than should."""
    with (
        programs.Load(processes.free_port(), False, ()) as load,
        pytest.raises(processes.BenchmarkError, match=r"cannot connect to port \d+: Connection refused"),
    ):
        load.do("login 1 1")
    with programs.Backend(tmp_path, False, ()) as running:
        for order, complaint in (
            ("logon 1 1", "not a command: logon 1 1"),
            ("noop 8 10", "0 sessions are held"),
        ):
            with (
                programs.Load(running.port, False, ()) as load,
                pytest.raises(processes.BenchmarkError, match=complaint),
            ):
                load.do(order)


@pytest.mark.usefixtures("built")
def test_a_session_that_is_cut_off_is_an_error() -> None:
    """A proxy that drops sessions gets no figure for it."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        programs.Load(server.getsockname()[1], False, ()) as load,
    ):
        load.begin("open 1")
        connection, _ = server.accept()
        connection.sendall(b"* OK ready\r\n")
        connection.recv(100)
        connection.close()
        with pytest.raises(processes.BenchmarkError, match="a session was cut off"):
            load.finish()


# --- a whole run --------------------------------------------------------------------


@pytest.mark.usefixtures("built")
def test_a_small_run_measures_mailroute(tmp_path: Path) -> None:
    """Every load gives its figures, the three files are written, and nothing in them names this machine."""
    # Where the tests have mailroute from, there the run has it from too: installed, or the source tree.
    home = str(Path(mailroute.__file__).parents[1])
    path = [] if home == sysconfig.get_path("purelib") else [home]
    choice = ["--tiny", "--peers", "mailroute", "--legs", "plain,tls", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *choice],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "results.json").read_text())
    measured = {(each["metric"], each["leg"]) for each in written["measurements"]}
    assert {(metric, leg) for metric in METRICS for leg in ("plain", "tls") if metric != "resume"} <= measured
    assert all(len(each["rounds"]) == TINY.rounds for each in written["measurements"])
    assert all(each["median"] >= 0 for each in written["measurements"] if "idle" not in each["metric"])
    assert written["failures"] == []
    assert "| login and logout, CPU, µs |" in (tmp_path / "results.md").read_text()
    assert "<svg " in (tmp_path / "results.svg").read_text()
    for file in tmp_path.iterdir():
        text = file.read_text()
        assert str(REPOSITORY) not in text
        assert sys.prefix not in text
