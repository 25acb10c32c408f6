"""The registry of route sources: what ``[[route]] source = …`` may say."""

from __future__ import annotations

from collections.abc import Iterator

from twisted.plugin import getPlugins

from mailroute.interfaces import IRouteSource
from mailroute.routers.chain import Chain
from mailroute.routers.default import DefaultSource
from mailroute.routers.hashing import HashSource
from mailroute.routers.pattern import PatternSource
from mailroute.routers.table import TableSource
from mailroute.sources import (
    BadOption,
    Copies,
    InThread,
    SourceContext,
    did_you_mean,
    unknown_backend,
)

__all__ = [
    "BadOption",
    "Chain",
    "Copies",
    "InThread",
    "SourceContext",
    "UnknownSource",
    "did_you_mean",
    "known",
    "source",
    "unknown_backend",
]

_BUILT_IN: tuple[IRouteSource, ...] = (TableSource(), PatternSource(), DefaultSource(), HashSource())


class UnknownSource(LookupError):
    """No route source has that name; the message lists those that there are."""


def source(name: str) -> IRouteSource:
    """Return the route source of that name: mailroute's own first, then the plugins'.

    :raises UnknownSource: there is none.
    """
    for found in _all():
        if found.name == name:
            return found
    raise UnknownSource(f'there is no route source "{name}"{did_you_mean(name, known())}')


def known() -> tuple[str, ...]:
    """Return the names of all route sources, mailroute's own first."""
    return tuple(dict.fromkeys(found.name for found in _all()))


def _all() -> Iterator[IRouteSource]:
    yield from _BUILT_IN
    yield from getPlugins(IRouteSource)
