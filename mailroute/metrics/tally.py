"""What the log tells of sessions, counted: nobody who writes a line has to know that somebody counts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from twisted.logger import ILogObserver, LogEvent
from zope.interface import implementer

from mailroute.events import Reason

_OUTCOMES = {"delivered": "delivered", "delivered in part": "partial", "refused": "refused"}

_UNFINISHED = "unfinished"


@implementer(ILogObserver)
class Tally:
    """An observer of the log that counts sessions, logins that are refused, and messages.

    Only what is known beforehand becomes a label, and is 0 until it happens.

    :param listeners: the names of the listeners whose sessions count.
    """

    def __init__(self, listeners: Iterable[str]) -> None:
        names = list(dict.fromkeys(listeners))
        self._sessions = dict.fromkeys(names, 0)
        self._bytes = dict.fromkeys(product(names, ("in", "out")), 0)
        self._refused = dict.fromkeys(product(names, (reason.value for reason in Reason)), 0)
        self._messages = dict.fromkeys((*_OUTCOMES.values(), _UNFINISHED), 0)

    def __call__(self, event: LogEvent) -> None:
        """Count an event, if it is one of those."""
        namespace = event.get("log_namespace")
        if namespace == "mailroute.session":
            self._count_session(event)
        elif namespace == "mailroute.delivery" and "outcome" in event:
            self._messages[_OUTCOMES.get(event["outcome"], _UNFINISHED)] += 1

    def _count_session(self, event: LogEvent) -> None:
        listener = event.get("listener")
        if listener not in self._sessions:
            return
        if "why" in event:
            self._refused[listener, event["why"]] += 1
        elif "duration" in event:
            self._sessions[listener] += 1
            self._bytes[listener, "in"] += event["bytes_in"]
            self._bytes[listener, "out"] += event["bytes_out"]

    def collect(self) -> list[Metric]:
        """Return what has been counted."""
        sessions = CounterMetricFamily(
            "mailroute_sessions", "Sessions that have ended, with their line in the log.", labels=["listener"]
        )
        for listener, number in self._sessions.items():
            sessions.add_metric([listener], number)
        passed = CounterMetricFamily(
            "mailroute_session_bytes",
            "Bytes from clients (in) and to them (out), of sessions that have ended.",
            labels=["listener", "direction"],
        )
        refused = CounterMetricFamily(
            "mailroute_logins_refused",
            "Logins that have failed, by the reason that the log has.",
            labels=["listener", "why"],
        )
        for family, counted in ((passed, self._bytes), (refused, self._refused)):
            for labels, number in counted.items():
                family.add_metric(labels, number)
        messages = CounterMetricFamily(
            "mailroute_messages",
            "Messages that somebody wanted to deliver, by what became of them.",
            labels=["outcome"],
        )
        for outcome, number in self._messages.items():
            messages.add_metric([outcome], number)
        return [sessions, passed, refused, messages]
