"""Several servers for one purpose: who is asked first."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mailroute.sources.context import Unanswered
from mailroute.sources.faults import cause

AVOIDED = 30.0
"""Seconds for which a server that has failed comes after all the others."""

_log = Logger(namespace="mailroute.routers")


class ServersFail(Unanswered):
    """None of the servers has answered; the text says of each why."""


_Server = TypeVar("_Server", bound=Hashable)


class Turns(Generic[_Server]):
    """Servers in the order in which they are to be asked; the log gets ``str`` of one that fails."""

    def __init__(self, servers: Iterable[_Server], clock: IReactorTime, label: str) -> None:
        self._servers = list(servers)
        self._clock = clock
        self._label = label
        self._avoided: dict[_Server, float] = {}

    def __len__(self) -> int:
        return len(self._servers)

    def __iter__(self) -> Iterator[_Server]:
        now = self._clock.seconds()
        return iter(sorted(self._servers, key=lambda server: self._avoided.get(server, now) > now))

    def failed(self, server: _Server, error: Exception) -> None:
        """Let this one be asked last for a while."""
        if len(self._servers) > 1 and server not in self._avoided:
            _log.warn(
                "{source}: {server} fails ({why})", source=self._label, server=str(server), why=cause(error)
            )
        self._avoided[server] = self._clock.seconds() + AVOIDED

    def answered(self, server: _Server) -> None:
        """Let this one be asked in its turn."""
        if self._avoided.pop(server, None) is not None and len(self._servers) > 1:
            _log.info("{source}: {server} answers again", source=self._label, server=str(server))


def all_failed(failures: Sequence[tuple[object, Exception]]) -> Exception:
    """Return what is raised when no server has answered: each server, and what it did."""
    if all(isinstance(error, TookTooLong) for _, error in failures) or len(failures) == 1:
        return failures[-1][1]
    return ServersFail("; ".join(f"{server}: {cause(error)}" for server, error in failures))
