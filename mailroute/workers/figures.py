"""Metrics of workers: the parent serves the page, and asks each worker for its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client.metrics_core import Metric
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mailroute.computing import Computing
from mailroute.config import Limits, Metrics
from mailroute.metrics.families import packed, unpacked
from mailroute.metrics.figures import Collect, Figures, Process
from mailroute.metrics.service import MetricsService
from mailroute.workers.channel import Channel
from mailroute.workers.process import Worker
from mailroute.workers.questions import FIGURES, reply

_log = Logger(namespace="mailroute.workers")


class Answers:
    """The worker's side: tells its figures, and what its process takes."""

    def __init__(self, service: MultiService, reactor: Any, channel: Channel) -> None:
        self._figures = Figures(service)
        self._process = Process(Computing(reactor, threads=1))
        self._channel = channel

    def __call__(self, number: bytes) -> None:
        """Answer the question of that number."""
        told = self._process.collect()
        told.addCallback(
            lambda process: reply(
                self._channel, FIGURES, number, packed([*self._figures.collect(), *process])
            )
        )
        told.addErrback(lambda failure: _log.failure("the metrics cannot be collected", failure=failure))


def of_workers(
    block: Metrics, limits: Limits, count: int, workers: Mapping[int, Worker], reactor: Any
) -> MetricsService:
    """Make the parent's service.

    :param workers: those that there are at the time, by their numbers from 0.
    """

    async def ask(place: int) -> list[Metric] | None:
        told = await workers[place].figures() if place in workers else None
        return None if told is None else unpacked(told)

    def each(place: int) -> Collect:
        return lambda: Deferred.fromCoroutine(ask(place))

    return MetricsService(block, limits, lambda: {place + 1: each(place) for place in range(count)}, reactor)
