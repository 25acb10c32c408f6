"""What becomes of workers that end, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import eventAsText, globalLogPublisher

from mailroute.workers.supervisor import (
    FIRST_DELAY,
    LONGEST_DELAY,
    START_TIMEOUT,
    STEADY,
    STOP_TIMEOUT,
    Supervisor,
)


@define(eq=False)
class Fake:
    """A worker that does what the test says."""

    pid: int
    ready: Callable[[], None]
    _ended: Callable[[str], None]
    told: list[tuple[str, int]] = field(factory=list)
    killed: bool = False
    gone: bool = False

    def stop(self) -> None:
        self.told.append(("stop", -1))

    def adopt(self, place: int) -> None:
        self.told.append(("adopt", place))

    def drop(self, place: int) -> None:
        self.told.append(("drop", place))

    def kill(self) -> None:
        self.killed = True

    def end(self, how: str = "ended with status 1") -> None:
        self.gone = True
        self._ended(how)


class Stage:
    """A supervisor, and all workers that it has ever had, by number."""

    def __init__(self, workers: int) -> None:
        self.clock = Clock()
        self.had: list[list[Fake]] = [[] for _ in range(workers)]
        self.forgotten: list[int] = []
        self.failing: OSError | None = None
        self.supervisor = Supervisor(workers, self._spawn, self.clock, self._forget)

    def _spawn(self, number: int, ready: Callable[[], None], ended: Callable[[str], None]) -> Fake:
        if self.failing is not None:
            raise self.failing
        fake = Fake(1000 * number + len(self.had[number]), ready, ended)
        self.had[number].append(fake)
        return fake

    def _forget(self, number: int) -> int:
        self.forgotten.append(number)
        return 7

    def run(self) -> None:
        """Start everything, and let all get ready."""
        self.supervisor.startService()
        for place in self.had:
            place[-1].ready()

    def now(self, number: int) -> Fake:
        """The worker that has that place now."""
        return self.had[number][-1]

    def served(self) -> dict[int, list[int]]:
        """Whose clients each living worker accepts, as it has been told."""
        found = {}
        for number, place in enumerate(self.had):
            if place and not place[-1].gone:
                takes = [number]
                for word, other in place[-1].told:
                    if word == "adopt":
                        takes.append(other)
                    elif word == "drop":
                        takes.remove(other)
                found[number] = sorted(takes)
        return found


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []

    def keep(event: dict[str, object]) -> None:
        lines.append(eventAsText(event, includeTimestamp=False, includeSystem=False))

    globalLogPublisher.addObserver(keep)
    yield lines
    globalLogPublisher.removeObserver(keep)


def test_all_are_started_and_then_are_ready() -> None:
    """It is ready when all workers are, and not before."""
    stage = Stage(3)
    stage.supervisor.startService()
    for place in stage.had:
        assert not stage.supervisor.ready()
        place[0].ready()
    assert stage.supervisor.ready()
    assert [len(place) for place in stage.had] == [1, 1, 1]
    assert not any(place[0].told for place in stage.had)


def test_a_worker_that_has_ended_is_started_again_at_once(said: list[str]) -> None:
    """Its places at the gate are free first; the log names worker, process, end, loss and what follows."""
    stage = Stage(2)
    stage.run()
    stage.now(1).end("was killed by SIGKILL")
    assert stage.forgotten == [1]
    assert said[-1] == (
        "worker 2 (process 1000) was killed by SIGKILL; connections lost: 7; it is started again at once"
    )
    assert not stage.supervisor.ready()
    stage.clock.advance(0)
    assert len(stage.had[1]) == 2
    stage.now(1).ready()
    assert stage.supervisor.ready()
    assert said[-1] == "worker 2 is ready: process 1001"


def test_one_that_ends_again_and_again_is_started_ever_later(said: list[str]) -> None:
    """The delay doubles up to a bound, and each is told."""
    stage = Stage(1)
    stage.run()
    delays = []
    for _ in range(9):
        before = len(stage.had[0])
        stage.now(0).end()
        waited = 0.0
        stage.clock.advance(0)
        while len(stage.had[0]) == before:
            stage.clock.advance(0.5)
            waited += 0.5
        delays.append(waited)
        before_it = "" if len(delays) == 1 else " before it was ready"
        when = f"in {waited:g} s" if waited else "at once"
        assert said[-1].endswith(
            f"ended with status 1{before_it}; connections lost: 7; it is started again {when}"
        )
    assert delays == [0, FIRST_DELAY, 2, 4, 8, 16, LONGEST_DELAY, LONGEST_DELAY, LONGEST_DELAY]


def test_one_that_has_run_for_a_while_is_forgiven() -> None:
    """Only ends that follow each other closely make a delay."""
    stage = Stage(1)
    stage.run()
    for count in range(2, 6):
        stage.clock.advance(STEADY)
        stage.now(0).end()
        stage.clock.advance(0)
        assert len(stage.had[0]) == count
        stage.now(0).ready()


def test_a_delay_is_one_workers_own() -> None:
    """That one cannot run does not keep another from being started again."""
    stage = Stage(2)
    stage.run()
    for _ in range(3):
        stage.now(0).end()
        stage.clock.advance(LONGEST_DELAY)
    stage.now(1).end()
    stage.clock.advance(0)
    assert len(stage.had[1]) == 2


def test_one_that_does_not_get_ready_is_killed(said: list[str]) -> None:
    """A worker that hangs at its start is given up, and another one tried."""
    stage = Stage(1)
    stage.run()
    stage.now(0).end()
    stage.clock.advance(0)
    hanging = stage.now(0)
    stage.clock.advance(START_TIMEOUT - 0.1)
    assert not hanging.killed
    stage.clock.advance(0.1)
    assert hanging.killed
    assert said[-1] == f"worker 1 is not ready after {START_TIMEOUT:g} s, and is killed"
    hanging.end("was killed by SIGKILL")
    stage.clock.advance(LONGEST_DELAY)
    assert stage.now(0) is not hanging


def test_one_that_got_ready_is_not_killed() -> None:
    """The time that a worker has to get ready bounds nothing else."""
    stage = Stage(1)
    stage.run()
    stage.clock.advance(10 * START_TIMEOUT)
    assert not stage.now(0).killed
    assert not stage.clock.getDelayedCalls()


def test_a_start_that_fails_is_tried_again(said: list[str]) -> None:
    """Where no process can be made now, it is tried again, later each time."""
    stage = Stage(1)
    stage.run()
    stage.failing = OSError(11, "Resource temporarily unavailable")
    stage.now(0).end()
    stage.clock.advance(0)
    assert said[-1] == ("worker 1 cannot be started: Resource temporarily unavailable; trying again in 1 s")
    stage.clock.advance(1)
    assert said[-1].endswith("trying again in 2 s")
    stage.failing = None
    stage.clock.advance(2)
    assert len(stage.had[0]) == 2


def test_the_first_start_must_not_fail() -> None:
    """At the program's start, what cannot be started is an error."""
    stage = Stage(2)
    stage.failing = OSError(2, "No such file or directory")
    with pytest.raises(OSError, match="No such file"):
        stage.supervisor.startService()


# --- helping out ----------------------------------------------------------------


def test_another_one_accepts_meanwhile() -> None:
    """Clients whom the kernel sends to a worker that is not there are taken by another, until it is back."""
    stage = Stage(3)
    stage.run()
    stage.now(0).end()
    assert sorted(chain(*stage.served().values())) == [0, 1, 2]
    stage.clock.advance(0)
    assert sorted(chain(*stage.served().values())) == [0, 0, 1, 2]  # the new one is not ready yet
    stage.now(0).ready()
    assert stage.served() == {0: [0], 1: [1], 2: [2]}


@given(
    st.integers(2, 5),
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["end", "ready", "wait"])), max_size=60),
)
def test_no_clients_are_left_waiting(workers: int, happenings: list[tuple[int, str]]) -> None:
    """As long as any worker is ready, one accepts for each place, and nobody else for those who can."""
    stage = Stage(workers)
    stage.run()
    ready = set(range(workers))
    for number, what in happenings:
        number %= workers
        fake = stage.now(number)
        if what == "end" and not fake.gone:
            fake.end()
            ready.discard(number)
        elif what == "ready" and not fake.gone and number not in ready:
            fake.ready()
            ready.add(number)
        elif what == "wait":
            stage.clock.advance(LONGEST_DELAY)
        serving = {who: takes for who, takes in stage.served().items() if who in ready}
        if ready:
            assert sorted(chain(*serving.values())) == list(range(workers))
        assert all(takes == [who] or not set(takes) & (ready - {who}) for who, takes in serving.items())


# --- the end --------------------------------------------------------------------


def test_it_stops_when_all_have_ended() -> None:
    """Workers are told to end in good order, and the program waits for them."""
    stage = Stage(2)
    stage.run()
    stopped = stage.supervisor.stopService()
    assert [place[0].told[-1] for place in stage.had] == [("stop", -1)] * 2
    stage.now(0).end("ended with status 0")
    assert not stopped.called
    stage.now(1).end("ended with status 0")
    assert stopped.called
    assert not stage.clock.getDelayedCalls()
    assert [len(place) for place in stage.had] == [1, 1]
    assert not any(place[0].killed for place in stage.had)


def test_those_that_do_not_stop_are_killed(said: list[str]) -> None:
    """A worker that does not end in time is killed: the end has a bound."""
    stage = Stage(2)
    stage.run()
    stopped = stage.supervisor.stopService()
    stage.now(0).end("ended with status 0")
    stage.clock.advance(STOP_TIMEOUT)
    assert stage.now(1).killed
    assert not stage.now(0).killed
    assert said[-1] == f"worker 2 has not ended after {STOP_TIMEOUT:g} s, and is killed"
    stage.now(1).end("was killed by SIGKILL")
    assert stopped.called


def test_nobody_is_started_again_once_it_stops() -> None:
    """Neither one that waits for its delay nor one that is just starting outlives the stop."""
    stage = Stage(3)
    stage.run()
    stage.now(0).end()
    stage.clock.advance(0)
    stage.now(0).end()  # now it has to wait
    stage.now(1).end()
    stage.clock.advance(0)  # now it is starting
    stopped = stage.supervisor.stopService()
    assert stage.now(1).killed
    stage.now(1).end("was killed by SIGKILL")
    stage.now(2).end("ended with status 0")
    assert stopped.called
    stage.clock.advance(10 * LONGEST_DELAY)
    assert [len(place) for place in stage.had] == [2, 2, 1]


def test_stopping_without_workers_takes_no_time() -> None:
    """If all are waiting to be started again, there is nobody to wait for."""
    stage = Stage(1)
    stage.run()
    stage.now(0).end()
    stage.clock.advance(0)
    stage.now(0).end()
    assert stage.supervisor.stopService().called
    assert not stage.clock.getDelayedCalls()


def test_a_program_that_does_not_start_takes_its_workers_along() -> None:
    """All are killed, and none is started again."""
    stage = Stage(2)
    stage.supervisor.startService()
    stage.now(0).ready()
    stage.supervisor.abandon()
    assert all(place[0].killed for place in stage.had)
    for place in stage.had:
        place[0].end("was killed by SIGKILL")
    stage.clock.advance(10 * LONGEST_DELAY)
    assert [len(place) for place in stage.had] == [1, 1]
