"""The ``default`` source: everybody else lives at one backend."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen
from zope.interface import implementer

from mailroute.events import Lookup, Route
from mailroute.interfaces import IRouter, IRouteSource
from mailroute.sources import SourceContext, only


@implementer(IRouter)
@frozen
class DefaultRouter:
    """Knows every user."""

    answer: Route

    def route(self, lookup: Lookup) -> Route:  # noqa: ARG002 - the question does not matter
        """Return the one route."""
        return self.answer

    def __str__(self) -> str:
        return f"everybody lives at {self.answer.backend}"


@implementer(IRouteSource)
class DefaultSource:
    """Makes a `DefaultRouter` from the key ``backend``."""

    name = "default"

    def router(self, options: Mapping[str, object], context: object) -> IRouter:
        """Make the router; see `IRouteSource.router`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        only(options, ("backend",))
        return DefaultRouter(Route(context.backend(options)))
