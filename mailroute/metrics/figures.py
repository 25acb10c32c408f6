"""The figures of this process, collected when somebody asks: the parts that have them only count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client import PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from twisted.application.service import IService, IServiceCollection, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

from mailroute.metrics.tally import Tally
from mailroute.service import ListenerService
from mailroute.sources import InThread
from mailroute.sources.counts import Durations
from mailroute.sources.guard import Guard

Collect = Callable[[], Deferred[list[Metric] | None]]
"""Collects the families of whoever carries mail; None if there is nobody at the moment."""


class Figures(Service):
    """What is told of what runs below a service: sources that are asked elsewhere, listeners and sessions.

    From now on the sources also measure how long they are waited for; sessions are counted while it runs.

    :param service: becomes its parent.
    """

    def __init__(self, service: MultiService) -> None:
        found = list(_all(service))
        self._guards = [each for each in found if isinstance(each, Guard)]
        self._listeners = [each for each in found if isinstance(each, ListenerService)]
        for guard in self._guards:
            guard.durations = Durations()
        self._tally = Tally(each.listener for each in self._listeners)
        self.setServiceParent(service)

    def startService(self) -> None:
        """Begin to count."""
        super().startService()
        globalLogPublisher.addObserver(self._tally)

    def stopService(self) -> None:
        """Count no longer."""
        super().stopService()
        globalLogPublisher.removeObserver(self._tally)

    def collect(self) -> list[Metric]:
        """Return them as they are now."""
        return [*_of_sources(self._guards), *_of_listeners(self._listeners), *self._tally.collect()]


def _all(service: IService) -> Iterator[IService]:
    yield service
    if IServiceCollection.providedBy(service):
        for child in service:
            yield from _all(child)


def _of_sources(guards: list[Guard[Any]]) -> list[Metric]:
    name, labels = "mailroute_source_", ["source"]
    questions = CounterMetricFamily(
        f"{name}questions",
        "Questions for the source: answered from the cache (cached), by an answer that was under way "
        "(shared), asked of the source itself (asked), or not, because it had failed too often or had too "
        "many questions (not_asked).",
        labels=["source", "outcome"],
    )
    failures = CounterMetricFamily(
        f"{name}failures",
        "Questions that the source was asked and did not answer, in time (timeout) or at all (error).",
        labels=["source", "reason"],
    )
    stale = CounterMetricFamily(
        f"{name}stale_answers",
        "Old answers that were given because the source could not be asked.",
        labels=labels,
    )
    seconds = HistogramMetricFamily(
        f"{name}answer_seconds",
        "How long the source took when it was asked, failures included.",
        labels=labels,
    )
    under_way = GaugeMetricFamily(
        f"{name}questions_under_way", "Questions that the source has not answered yet.", labels=labels
    )
    breaker = GaugeMetricFamily(
        f"{name}breaker_open",
        "1 while the source is left alone because it has failed too often in a row.",
        labels=labels,
    )
    entries = GaugeMetricFamily(
        f"{name}cache_entries",
        "Answers that are kept, old ones among them: routes (route), or that there is none, or a refusal "
        "(other).",
        labels=["source", "answer"],
    )
    for guard in guards:
        source, counts = guard.label, guard.counts
        for outcome, number in (
            ("cached", counts.cached),
            ("shared", counts.joined),
            ("asked", counts.asked),
            ("not_asked", counts.spared),
        ):
            questions.add_metric([source, outcome], number)
        failures.add_metric([source, "timeout"], counts.slow)
        failures.add_metric([source, "error"], counts.failed - counts.slow)
        stale.add_metric([source], counts.stale)
        if guard.durations is not None:
            bounds = [("+Inf" if le == float("inf") else str(le), n) for le, n in guard.durations.up_to()]
            seconds.add_metric([source], bounds, guard.durations.total)
        under_way.add_metric([source], guard.under_way)
        breaker.add_metric([source], guard.left_alone)
        for answer, number in zip(("route", "other"), guard.known, strict=True):
            entries.add_metric([source, answer], number)
    return [questions, failures, stale, seconds, under_way, breaker, entries]


def _of_listeners(listeners: list[ListenerService]) -> list[Metric]:
    name, labels = "mailroute_listener_", ["listener"]
    now = GaugeMetricFamily(f"{name}connections", "Clients that are connected.", labels=labels)
    ever = CounterMetricFamily(f"{name}accepted", "Clients that have connected.", labels=labels)
    # Two may have the same name, if the system chooses their ports: their figures are one.
    for label in dict.fromkeys(each.listener for each in listeners):
        factories = [each.factory for each in listeners if each.listener == label]
        now.add_metric([label], sum(len(factory.sessions) for factory in factories))
        ever.add_metric([label], sum(factory.made for factory in factories))
    return [now, ever]


class _Collector(ProcessCollector):
    """The library's, where there is nothing in ``/proc`` but processes (ProcSubset= of systemd), too."""

    def _boot_time(self) -> float:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class Process:
    """What this process takes of the machine: memory, time, descriptors.

    They are read in a thread: to count 20 000 descriptors takes 40 ms.
    """

    def __init__(self, thread: InThread, proc: str = "/proc") -> None:
        self._thread = thread
        self._collector = _Collector(proc=proc, registry=None)

    def collect(self) -> Deferred[list[Metric]]:
        """Return it as it is now; nothing where there is no ``/proc``."""
        return self._thread(lambda: list(self._collector.collect()))


def about_program() -> list[Metric]:
    """Return what does not change while the program runs: its version, and Python's."""
    build = GaugeMetricFamily("mailroute_build_info", "1; the label has the version.", labels=["version"])
    try:
        build.add_metric([version("mailroute")], 1)
    except PackageNotFoundError:
        build.add_metric(["unknown"], 1)
    return [build, *PlatformCollector(registry=None).collect()]
