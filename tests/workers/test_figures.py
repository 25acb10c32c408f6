"""Metrics of several processes: one page, on which each worker has its own figures."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from metrics import Page
from servers.processes import free_port, wait_until
from workers.rig import Files, Running, until

PROGRAM = f"""#!{sys.executable} -u
import json, sys
for line in sys.stdin:
    print(json.dumps({{"id": json.loads(line)["id"], "backend": "east"}}))
"""
SOURCE = "route[1] (command)"


class Measured:
    """A mailroute with a page of metrics."""

    def __init__(self, running: Running, port: int) -> None:
        self.running = running
        self.port = port

    def glimpse(self) -> Page:
        """Return the page as it comes: a worker that is busy for a second is left out."""
        return Page.at(self.port)

    def page(self) -> Page:
        """Return the page with all workers on it."""

        def whole() -> Page | None:
            page = self.glimpse()
            up = [value for (name, _), value in page.samples.items() if name == "mailroute_worker_up"]
            return page if up and all(up) else None

        return wait_until("an answer of every worker", whole)

    def login(self, user: str) -> None:
        with self.running.greeted() as client:
            assert client.command(f"a LOGIN {user} wonderland").startswith(b"a OK")
            client.command("b LOGOUT")

    def asked(self, outcome: str) -> list[float]:
        page = self.page()
        return [
            page.value("mailroute_source_questions_total", source=SOURCE, outcome=outcome, worker=str(number))
            for number in range(1, 1 + len(page.labels("worker")))
        ]


def measured(files: Files, stack: ExitStack, workers: int = 2, *options: str) -> Measured:
    program = files.folder / "where.py"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    port = free_port()
    files.config |= {
        "workers": workers,
        "route": [{"source": "command", "command": ["./where.py"]}],
        "metrics": {"address": f"127.0.0.1:{port}"},
    }
    return Measured(stack.enter_context(files.run(*options)), port)


def test_one_process_is_worker_1(files: Files, stack: ExitStack) -> None:
    """Whoever goes on to more workers keeps the names and labels of all samples."""
    mailroute = measured(files, stack, workers=1)
    mailroute.login("alice")
    mailroute.login("alice")
    assert mailroute.asked("asked") == [1]
    assert mailroute.asked("cached") == [1]
    assert mailroute.page().value("mailroute_worker_up", worker="1") == 1
    mailroute.running.stop()


def test_each_worker_has_its_own_figures(files: Files, stack: ExitStack) -> None:
    """Logins are counted where they are made, and no login is lost or counted twice."""
    mailroute = measured(files, stack)
    assert mailroute.asked("asked") == [0, 0]
    for _ in range(20):
        mailroute.login("alice")
    asked, cached = mailroute.asked("asked"), mailroute.asked("cached")
    assert sum(asked) + sum(cached) == 20
    assert all(number <= 1 for number in asked)
    page = mailroute.page()
    listener = f"imap tcp:{mailroute.running.port}:interface=127.0.0.1"
    accepted = [
        page.value("mailroute_listener_accepted_total", listener=listener, worker=worker)
        for worker in ("1", "2")
    ]
    assert sum(accepted) >= 20
    assert "alice" not in page.text
    mailroute.running.stop()


def test_what_each_process_takes_is_told(files: Files, stack: ExitStack) -> None:
    """The parent's memory has no label, as any exporter's has; each worker's has its number."""
    mailroute = measured(files, stack)
    page = mailroute.page()
    for labels in ({}, {"worker": "1"}, {"worker": "2"}):
        assert page.value("process_resident_memory_bytes", **labels) > 1e6
        assert page.value("process_open_fds", **labels) > 3
    assert page.value("mailroute_connections_limit") == 10000
    mailroute.running.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up being root")
@pytest.mark.parametrize("workers", [1, 2])
def test_whoever_mailroute_becomes_can_tell(files: Files, stack: ExitStack, workers: int) -> None:
    """What a process takes it can still read about itself once it is another user's, and not dumpable."""
    mailroute = measured(files, stack, workers, "--uid", "65534", "--gid", "65534")
    page = mailroute.page()
    for labels in ({}, *({"worker": str(number + 1)} for number in range(workers) if workers > 1)):
        assert page.value("process_open_fds", **labels) > 3
        assert page.value("process_max_fds", **labels) > 3
    mailroute.running.stop()


def test_a_worker_that_does_not_answer_is_left_out(files: Files, stack: ExitStack) -> None:
    """The page comes without it, and says so; once it answers again, it is there with what it had."""
    mailroute = measured(files, stack)
    mailroute.login("alice")
    before = mailroute.asked("asked")
    stopped = mailroute.running.workers()[2]
    os.kill(stopped, signal.SIGSTOP)
    try:
        for _ in range(3):
            page = mailroute.glimpse()
            assert page.value("mailroute_worker_up", worker="1") == 1
            assert page.value("mailroute_worker_up", worker="2") == 0
            there = {dict(labels).get("worker") for name, labels in page.samples if "_source_" in name}
            assert there == {"1"}
    finally:
        os.kill(stopped, signal.SIGCONT)
    until("the worker's answer", lambda: mailroute.glimpse().value("mailroute_worker_up", worker="2"))
    assert mailroute.asked("asked") == before
    mailroute.running.stop()


def test_a_new_worker_counts_from_the_beginning(files: Files, stack: ExitStack) -> None:
    """A worker that replaces another one begins at 0, as Prometheus expects; the others go on."""
    mailroute = measured(files, stack)
    until("questions to both", lambda: mailroute.login("alice") or all(mailroute.asked("asked")))
    mailroute.running.kill(mailroute.running.workers()[1])
    assert mailroute.asked("asked") == [0, 1]
    assert mailroute.page().value("mailroute_worker_up", worker="1") == 1
    mailroute.running.stop()


def test_figures_that_need_many_messages_arrive(files: Files, stack: ExitStack) -> None:
    """However many sources there are, the page has all of them."""
    program = {"source": "command", "command": ["./where.py"], "on_error": "next"}
    mailroute = measured(files, stack)
    mailroute.running.stop()
    files.config["route"] = [program] * 60
    again = Measured(stack.enter_context(files.run()), mailroute.port)
    page = again.page()
    assert page.labels("source") == {f"route[{number}] (command)" for number in range(1, 61)}
    assert len(page.text) > 4 * 65536
    again.running.stop()


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_changes_nothing(files: Files, stack: ExitStack, workers: int) -> None:
    """A daemon that is sent SIGHUP goes on serving the page, with the figures that it had."""
    mailroute = measured(files, stack, workers)
    mailroute.login("alice")
    before = mailroute.asked("asked")
    mark = mailroute.running.log.mark()
    os.kill(mailroute.running.pid, signal.SIGHUP)
    mailroute.running.log.wait_for("SIGHUP does nothing", mark)
    assert mailroute.asked("asked") == before
    mailroute.running.stop()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_page_that_cannot_be_served_is_told_at_the_start(files: Files, workers: int) -> None:
    """Where the address is taken, mailroute does not start, and nothing of it is left."""
    files.config |= {"workers": workers, "metrics": {"address": f"127.0.0.1:{files.port}"}}
    assert "or change the address in [metrics]" in files.fails()


def test_a_socket_is_gone_after_the_end(files: Files, stack: ExitStack) -> None:
    """A UNIX socket is the parent's: it serves all workers' figures, and is removed in the end."""
    files.config["metrics"] = {"address": "./metrics"}
    running = stack.enter_context(files.run())
    path = Path(files.folder / "metrics")
    assert path.is_socket()
    running.stop()
    assert not path.exists()
