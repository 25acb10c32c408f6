"""The ``hash`` source: users are spread over backends by their names, with nothing to keep anywhere.

The method is rendezvous hashing with weights: every backend draws a score from
its name and the user's, and the highest score wins.  A backend that comes or
goes changes nobody's score at the others, so that none but its own share moves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from attrs import frozen
from zope.interface import implementer

from mailroute.events import Lookup, Route
from mailroute.interfaces import IRouter, IRouteSource
from mailroute.sources import BadOption, SourceContext, only, regex, unknown_backend

_EXAMPLE = 'write for example ["east", "west"], or { east = 2, west = 1 }'

MAX_WEIGHT = 1_000_000
"""Far more than backends differ by, and far less than would make a score infinite."""

# As many bits of the hash as leave a half for between the numbers: a score's logarithm is
# then that of neither 0 nor 1.
_BITS = 52
_STEPS = 1 << _BITS


@frozen
class _Share:
    """What one backend draws its scores from."""

    route: Route
    weight: float
    begun: Any
    """A hash that has taken in the backend's name, and is copied for each user."""

    def score(self, key: bytes) -> float:
        """Draw for a user; with twice the weight twice as many are won."""
        drawn = self.begun.copy()
        drawn.update(key)
        step = int.from_bytes(drawn.digest(), "big") >> (64 - _BITS)
        return -self.weight / math.log((step + 0.5) / _STEPS)


@implementer(IRouter)
class HashRouter:
    """Knows everybody, or those whose whole name matches; the names and weights alone decide who lives where.

    :param weights: for each backend its share of the users, relative to the others.
    :param match: its first group is what is hashed of a user's name; ``None`` for all of it.
    """

    def __init__(self, weights: Mapping[str, float], match: re.Pattern[str] | None = None) -> None:
        self._weights = dict(weights)
        self._match = match
        # The NUL ends the backend's name: neither that nor a user's holds one.
        self._shares = tuple(
            _Share(Route(name), weight, blake2b(name.encode("utf-8") + b"\0", digest_size=8))
            for name, weight in sorted(weights.items())
        )

    def route(self, lookup: Lookup) -> Route | None:
        """Return the backend with the highest score; ``None`` if the name does not match."""
        part = lookup.user
        if self._match is not None:
            match = self._match.fullmatch(part)
            if match is None or not match[1]:
                return None
            part = match[1]
        key = part.encode("utf-8")
        return max(self._shares, key=lambda share: share.score(key)).route

    def __str__(self) -> str:
        who = "users" if self._match is None else f"users who match {self._match.pattern}"
        shares = ", ".join(f"{name} ({weight:g})" for name, weight in self._weights.items())
        return f"{who} are spread over {shares}"


@implementer(IRouteSource)
class HashSource:
    """Makes a `HashRouter` from the keys ``backends`` and, if only a part of a name counts, ``match``."""

    name = "hash"

    def router(self, options: Mapping[str, object], context: object) -> IRouter:
        """Make the router; see `IRouteSource.router`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        only(options, ("backends", "match"))
        return HashRouter(
            _weights(options, context.backends), _pattern(options) if "match" in options else None
        )


def _weights(options: Mapping[str, object], known: frozenset[str]) -> Mapping[str, float]:
    """Return each backend's weight: 1 in a list, the number beside it in a table.

    :raises BadOption: says what is wrong with them.
    """
    if "backends" not in options:
        raise BadOption("backends", f"missing: {_EXAMPLE}")
    given = options["backends"]
    if isinstance(given, list):
        names = [name for name in given if isinstance(name, str)]
        if len(names) != len(given) or len(set(names)) != len(names):
            raise BadOption("backends", f"must be names of backends, each once: {_EXAMPLE}")
        given = dict.fromkeys(names, 1)
    if not isinstance(given, Mapping) or not given:
        raise BadOption("backends", f"must name backends: {_EXAMPLE}")
    for name, weight in given.items():
        if name not in known:
            raise BadOption("backends", unknown_backend(name, known))
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= MAX_WEIGHT:
            raise BadOption(
                "backends",
                f"the weight of {name} must be a number above 0 and at most {MAX_WEIGHT}, "
                f"not {weight!r}; "
                "leave a backend out that shall have nobody",
            )
    return {name: float(weight) for name, weight in given.items()}


def _pattern(options: Mapping[str, object]) -> re.Pattern[str]:
    """Return the pattern.

    :raises BadOption: it is none, or does not say which part of a name counts.
    """
    match = regex(options, "match")
    if match.groups < 1:
        raise BadOption("match", "needs a group for the part that counts, such as '([^@+]+).*'")
    return match
