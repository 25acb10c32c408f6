"""What waits for its time in the reactor, for tests of what is left."""

from __future__ import annotations

from twisted.internet import reactor

from mailroute.deadlines import Deadlines, deadlines_of


def waiting() -> int:
    """Return how many wait; the one timer of all deadlines does not count, which may ring for nobody."""
    calls = [getattr(call.func, "__self__", None) for call in reactor.getDelayedCalls()]
    return sum(not isinstance(one, Deadlines) for one in calls) + len(deadlines_of(reactor))
