"""The service that serves the page: collects from whoever carries the mail, here or in workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailroute.computing import Computing
from mailroute.config import Limits, Metrics
from mailroute.config.endpoints import server_endpoint
from mailroute.listening import Listening
from mailroute.metrics.families import text, together
from mailroute.metrics.figures import Collect, Figures, Process, about_program
from mailroute.metrics.web import PageFactory

ANSWER_TIMEOUT = 1.0
"""Seconds that each worker has to tell its figures; the page comes without those of one that does not."""

_log = Logger(namespace="mailroute.metrics")


Workers = Callable[[], Mapping[int, Collect]]
"""Returns what asks each worker, by its number from 1."""


class MetricsService(Listening):
    """Serves the page to anybody who can reach its address.

    :param workers: whom to ask for the figures of those who carry the mail.
    """

    def __init__(self, block: Metrics, limits: Limits, workers: Workers, reactor: Any) -> None:
        self._pages = PageFactory(self._page, reactor)
        address = block.address
        super().__init__(
            self._pages,
            f"metrics {address}",
            lambda: server_endpoint(address.endpoint, reactor),
            key="the address in [metrics]",
        )
        self._address = address
        self._limits = limits
        self._workers = workers
        self._reactor = reactor
        # One of its own: whatever occupies the reactor's is what somebody wants to see here.
        self._thread = Computing(reactor, threads=1)
        self._process = Process(self._thread)
        self._about = about_program()

    def startService(self) -> None:
        """Begin, and say so if strangers might read along."""
        super().startService()
        if not self._address.private:
            _log.warn(
                "metrics are for whoever can reach {address}, as they have no authentication: use an address "
                "of the loopback interface, or keep strangers away from it",
                address=str(self._address),
            )

    def stopService(self) -> Deferred[Any]:
        """Stop listening, and end what is under way."""
        return maybeDeferred(super().stopService).addBoth(self._end)

    def _end(self, result: Any) -> Any:
        self._pages.abort()
        return result

    def _page(self) -> Deferred[bytes]:
        return Deferred.fromCoroutine(self._collected())

    async def _collected(self) -> bytes:
        asked = {number: self._ask(collect) for number, collect in self._workers().items()}
        told = dict(zip(asked, await gatherResults(asked.values(), consumeErrors=True), strict=True))
        up = GaugeMetricFamily(
            "mailroute_worker_up",
            "1 if the worker has told its figures; 0 if the others are without them.",
            labels=["worker"],
        )
        for number, families in told.items():
            up.add_metric([str(number)], families is not None)
        parts: list[tuple[Mapping[str, str], list[Metric]]] = [
            ({}, [*self._about, up, *self._limit(), *await self._process.collect()]),
            *(({"worker": str(number)}, families or []) for number, families in told.items()),
        ]
        # Thirty sources of sixteen workers are 0.1 s of text, in which the reactor has its turns.
        return await self._thread(lambda: text(together(parts)))

    def _ask(self, collect: Collect) -> Deferred[list[Metric] | None]:
        return collect().addTimeout(ANSWER_TIMEOUT, self._reactor).addErrback(_too_late)

    def _limit(self) -> list[Metric]:
        if not self._limits.connections:
            return []
        return [
            GaugeMetricFamily(
                "mailroute_connections_limit",
                "Clients that may be connected at once, to all listeners and workers together.",
                value=self._limits.connections,
            )
        ]


def _too_late(failure: Failure) -> None:
    failure.trap(TookTooLong)


def of_one_process(block: Metrics, limits: Limits, root: MultiService, reactor: Any) -> MetricsService:
    """Make the service of a mailroute that carries the mail in this process.

    :param root: what runs here.
    """
    figures = Figures(root)
    return MetricsService(block, limits, lambda: {1: lambda: succeed(figures.collect())}, reactor)
