"""The gate that several processes share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twistd import environment

from mailroute.events import Farewell
from mailroute.gate import Gate
from mailroute.workers.counts import (
    FEWEST_CELLS,
    MOST_CELLS,
    ROWS,
    Counts,
    Layout,
    SharedGate,
    layout,
    share,
)

KEY = b"a key of 16 byte"
HOSTS = [None, *(f"192.0.2.{number}" for number in range(4)), "2001:db8::1", "2001:db8::2", "2001:db8:1::1"]


class Workers:
    """Some workers' gates, each with its own view of the memory, as processes have it."""

    def __init__(self, count: int, total: int, per_address: int, plan: Layout | None = None) -> None:
        self.plan = plan or layout(count, total, per_address)
        descriptor = share(self.plan)
        try:
            self.parent = Counts(descriptor, self.plan)
            self.gates = [
                SharedGate(total, per_address, Counts(descriptor, self.plan), number, KEY)
                for number in range(count)
            ]
        finally:
            os.close(descriptor)


# --- as the gate of one process -------------------------------------------------


def test_the_total_holds_for_all_together() -> None:
    """One more than the total is refused, whoever asks, until somebody leaves, wherever."""
    one, other = Workers(2, 2, 0).gates
    assert one.enter("192.0.2.1") is None
    assert other.enter(None) is None
    assert one.enter("192.0.2.2") is Farewell.TOO_MANY
    assert other.enter("192.0.2.2") is Farewell.TOO_MANY
    assert len(one) == len(other) == 2
    other.leave(None)
    assert one.enter("192.0.2.2") is None


def test_the_limit_of_an_address_holds_for_all_together() -> None:
    """One address cannot take a place of its own at each worker; a /64 is one address."""
    one, other = Workers(2, 0, 2).gates
    assert one.enter("192.0.2.1") is None
    assert other.enter("192.0.2.1") is None
    assert one.enter("192.0.2.1") is Farewell.TOO_MANY_FROM_ADDRESS
    assert other.enter("192.0.2.1") is Farewell.TOO_MANY_FROM_ADDRESS
    assert one.enter("2001:db8::1") is None
    assert one.enter("2001:db8::2") is None
    assert other.enter("2001:db8::3") is Farewell.TOO_MANY_FROM_ADDRESS
    one.leave("192.0.2.1")
    assert other.enter("192.0.2.1") is None


def test_limits_may_be_off() -> None:
    """Without limits everybody comes in, and there is no memory for addresses."""
    workers = Workers(3, 0, 0)
    assert workers.plan.cells == 0
    assert all(gate.enter("192.0.2.1") is None for gate in workers.gates * 5)
    assert len(workers.gates[0]) == 15


def test_whoever_is_refused_leaves_nothing_behind() -> None:
    """Connections that were refused count nowhere: nothing of them is in the memory."""
    workers = Workers(2, 5, 1)
    one, other = workers.gates
    assert one.enter("192.0.2.1") is None
    for _ in range(100):
        assert other.enter("192.0.2.1") is Farewell.TOO_MANY_FROM_ADDRESS
    one.leave("192.0.2.1")
    assert not any(workers.parent.totals)
    assert not any(workers.parent.sketch)


ACTIONS = st.tuples(
    st.integers(0, 2), st.sampled_from(["enter", "enter", "leave", "die"]), st.sampled_from(HOSTS)
)


@given(st.lists(ACTIONS, max_size=150), st.integers(0, 8), st.integers(0, 4))
def test_it_counts_as_exactly_as_the_gate_of_one_process(
    actions: list[tuple[int, str, str | None]], total: int, per_address: int
) -> None:
    """Whoever comes, goes or dies in any order: the workers together answer what one gate would.

    It is exact as long as no addresses share all their cells, as these few do not.
    """
    workers, exact = Workers(3, total, per_address), Gate(total, per_address)
    inside: list[list[str | None]] = [[], [], []]
    for number, action, host in actions:
        if action == "enter":
            answer = exact.enter(host)
            assert workers.gates[number].enter(host) is answer
            if answer is None:
                inside[number].append(host)
        elif action == "leave" and inside[number]:
            host = inside[number].pop(0)
            exact.leave(host)
            workers.gates[number].leave(host)
        elif action == "die":
            assert workers.parent.forget(number) == len(inside[number])
            while inside[number]:
                exact.leave(inside[number].pop())
        assert all(len(gate) == len(exact) for gate in workers.gates)
        assert [workers.parent.of(each) for each in range(3)] == [len(each) for each in inside]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 40)), max_size=200), st.integers(1, 5))
def test_a_crowded_sketch_never_lets_too_many_in(arrivals: list[tuple[int, int]], per_address: int) -> None:
    """However many addresses share their cells, none gets more than its limit: mistakes are refusals."""
    workers = Workers(2, 0, per_address, Layout(2, 8))
    inside: dict[str, int] = {}
    for number, last in arrivals:
        host = f"192.0.2.{last}"
        if workers.gates[number].enter(host) is None:
            inside[host] = inside.get(host, 0) + 1
    assert all(count <= per_address for count in inside.values())


def test_addresses_get_in_each_others_way_practically_never() -> None:
    """With every place taken but a few, and each address at its limit, nobody else is refused wrongly."""
    workers = Workers(2, 10000, 10)
    for network in range(990):
        for number in range(10):
            gate = workers.gates[number % 2]
            assert gate.enter(f"10.{network >> 8}.{network & 255}.1") is None
    answers = [workers.gates[0].enter(f"192.0.2.{last}") for last in range(100)]
    assert answers == [None] * 100


CONTENDER = """
import fcntl, sys
from mailroute.workers.counts import Counts, Layout, SharedGate
counts, number, plan = int(sys.argv[1]), int(sys.argv[2]), Layout(2, int(sys.argv[3]))
gate = SharedGate(0, 1, Counts(counts, plan), number, b"key")
entered = 0
with open(sys.argv[4], "w") as lock:
    sys.stdin.read()
    for _ in range(20000):
        if gate.enter("192.0.2.1") is None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entered += 1
            fcntl.flock(lock, fcntl.LOCK_UN)
            gate.leave("192.0.2.1")
print(entered)
"""
"""Takes the only place again and again, and fails if somebody else has it as well."""


def test_two_processes_never_have_the_last_place_at_once(tmp_path: Path) -> None:
    """Workers that race for a place may both be refused, and are never both let in."""
    plan = layout(2, 1024, 1)
    descriptor = share(plan)
    racers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                CONTENDER,
                str(descriptor),
                str(number),
                str(plan.cells),
                tmp_path / "lock",
            ],
            pass_fds=[descriptor],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]
    os.close(descriptor)
    for racer in racers:
        racer.stdin.close()
    for racer in racers:
        with racer:
            said, complaint = racer.stdout.read(), racer.stderr.read()
        assert racer.returncode == 0, complaint.decode()
        assert int(said) > 0


# --- the memory -----------------------------------------------------------------


@pytest.mark.parametrize("total", [0, 1, 1000, 1024, 1025, 10000, 10**9])
def test_a_row_has_four_cells_for_each_connection_within_bounds(total: int) -> None:
    """The memory goes with the limit, and not without end."""
    plan = layout(3, total, 200)
    assert plan.cells & (plan.cells - 1) == 0
    assert FEWEST_CELLS <= plan.cells <= MOST_CELLS
    assert plan.cells >= min(4 * total or MOST_CELLS, MOST_CELLS)
    assert plan.size == 4 * 3 * (1 + ROWS * plan.cells)


def test_a_dead_worker_takes_nobody_elses_places_with_it() -> None:
    """What is forgotten is one worker's, and all of it."""
    workers = Workers(3, 0, 2)
    for gate, host in zip(workers.gates, ["192.0.2.1", "192.0.2.1", "192.0.2.2"], strict=True):
        gate.enter(host)
    assert workers.parent.forget(0) == 1
    assert [workers.parent.of(number) for number in range(3)] == [0, 1, 1]
    assert workers.gates[0].enter("192.0.2.1") is None
    assert workers.gates[0].enter("192.0.2.1") is Farewell.TOO_MANY_FROM_ADDRESS


def test_nobody_can_make_the_memory_smaller() -> None:
    """A worker that has gone mad cannot pull the memory from under the others."""
    descriptor = share(Layout(2, 0))
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 1 << 20)
    finally:
        os.close(descriptor)


def test_memory_of_another_layout_is_refused() -> None:
    """A worker that is given the wrong memory does not start."""
    descriptor = share(Layout(2, 0))
    try:
        with pytest.raises(ValueError, match="size"):
            Counts(descriptor, Layout(3, 0))
    finally:
        os.close(descriptor)
