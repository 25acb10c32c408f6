"""Deadlines that share one timer."""

from __future__ import annotations

import gc
import weakref

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from mailroute.deadlines import _AT_ONCE, Deadlines, deadlines_of


class Turning(Clock):
    """A clock that can go one turn as the reactor does: what a turn schedules waits for the next."""

    def turn(self):
        for call in [call for call in self.calls if call.time <= self.rightNow]:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


class Rig:
    """A clock, its deadlines, and when each owner was called."""

    def __init__(self):
        self.clock = Turning()
        self.deadlines = Deadlines(self.clock)
        self.rung = []

    def owner(self, name, action=lambda: None):
        return Owner(name, self, action)

    def until(self, seconds, step=0.125):
        while self.clock.seconds() < seconds:
            self.clock.advance(step)


class Owner:
    def __init__(self, name, rig, action):
        self.name = name
        self.rig = rig
        self.action = action

    def time_is_up(self):
        self.rig.rung.append((self.name, self.rig.clock.seconds()))
        self.action()


@pytest.fixture
def rig():
    return Rig()


def test_a_deadline_rings_once_and_in_time(rig):
    """On a whole quarter of a second it rings exactly then, otherwise within the quarter that follows."""
    rig.deadlines.after(60, rig.owner("a"))
    rig.deadlines.after(2, rig.owner("b"))
    rig.deadlines.after(0.3, rig.owner("c"))
    rig.until(70)
    assert rig.rung == [("c", 0.5), ("b", 2.0), ("a", 60.0)]
    assert not len(rig.deadlines)
    assert not rig.clock.getDelayedCalls()


def test_never_early(rig):
    """Whatever the time at which it is set, a deadline does not come before its time, nor far behind it."""
    for number in range(200):
        begun = rig.clock.seconds()
        rig.deadlines.after(1.7, rig.owner(number))
        rig.until(begun + 1.69, 0.01)
        assert len(rig.rung) == number
        rig.until(begun + 1.97, 0.01)
        assert len(rig.rung) == number + 1
        rig.clock.advance(0.0371)


def test_cancelled_means_silent(rig):
    """A deadline that its owner has left does not ring; those beside it do."""
    a, b = rig.owner("a"), rig.owner("b")
    deadline = rig.deadlines.after(5, a)
    rig.deadlines.after(5, b)
    deadline.discard(a)
    assert list(rig.deadlines) == [b]
    rig.until(6)
    assert rig.rung == [("b", 5.0)]
    deadline.discard(a)
    deadline.discard(b)


def test_thousands_share_one_timer(rig):
    """However many deadlines are set and cancelled, the clock has one call to make."""
    for number in range(5000):
        owner = rig.owner(number)
        deadline = rig.deadlines.after(30 + number % 7, owner)
        if number % 3:
            deadline.discard(owner)
        assert len(rig.clock.getDelayedCalls()) == 1
    assert len(rig.deadlines) == 1667


def test_nothing_is_kept_of_what_was_cancelled(rig):
    """Once the first one's time has come, no timer and no bucket is left if all are cancelled."""
    for seconds in (5, 60, 1800):
        owner = rig.owner(seconds)
        rig.deadlines.after(seconds, owner).discard(owner)
    rig.until(5)
    assert not rig.clock.getDelayedCalls()
    assert not rig.deadlines._buckets
    assert not rig.rung


def test_the_next_deadline_may_be_set_and_others_cancelled_in_one(rig):
    """An owner that is called may set its deadline anew, and silence one that is due as well."""
    other = rig.owner("other")

    def act():
        later.discard(other)
        if len(rig.rung) < 3:
            rig.deadlines.after(1, first)

    first = rig.owner("first", act)
    rig.deadlines.after(1, first)
    later = rig.deadlines.after(1.25, other)
    rig.clock.advance(1.5)
    rig.until(9)
    assert rig.rung == [("first", 1.5), ("first", 2.5), ("first", 3.5)]


def test_many_at_once_do_not_hold_up_the_reactor(rig):
    """Of those that fall due together, a bounded number is called in one turn; all are called in the end."""
    for number in range(2 * _AT_ONCE + 1):
        rig.deadlines.after(1, rig.owner(number))
    rig.clock.rightNow = 1.0
    rig.clock.turn()
    assert len(rig.rung) == _AT_ONCE
    rig.clock.turn()
    assert len(rig.rung) == 2 * _AT_ONCE
    rig.clock.turn()
    assert len({name for name, _ in rig.rung}) == 2 * _AT_ONCE + 1
    assert not rig.clock.getDelayedCalls()


def test_an_owner_that_asks_for_no_time_at_all_does_not_stop_the_world(rig):
    """Who sets a deadline of 0 seconds again and again is called again and again, and the reactor turns."""

    def again():
        rig.deadlines.after(0, owner)

    owner = rig.owner("again", again)
    rig.deadlines.after(0, owner)
    rig.clock.turn()
    assert 0 < len(rig.rung) <= _AT_ONCE


def test_one_that_fails_does_not_silence_the_others(rig):
    """An owner's exception is logged, and the other deadlines ring all the same."""
    seen = []
    globalLogPublisher.addObserver(seen.append)

    def fail():
        raise RuntimeError("broken")

    rig.deadlines.after(1, rig.owner("bad", fail))
    rig.deadlines.after(1.25, rig.owner("good"))
    rig.until(2)
    globalLogPublisher.removeObserver(seen.append)
    assert [name for name, _ in rig.rung] == ["bad", "good"]
    assert [event["log_failure"].type for event in seen] == [RuntimeError]


def test_a_clock_has_its_own_deadlines_and_both_go_when_nobody_needs_them():
    """All who ask by one clock share its deadlines; nothing keeps a clock that is no longer used."""
    clock = Turning()
    deadlines = deadlines_of(clock)
    assert deadlines_of(clock) is deadlines
    assert deadlines_of(Turning()) is not deadlines
    rig = Rig()
    deadlines.after(5, rig.owner("never"))
    gone = weakref.ref(clock)
    del clock, deadlines
    gc.collect()
    assert gone() is None
