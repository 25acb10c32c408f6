"""What comes of asking a router, for the tests of the sources."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from mailroute.events import LoginRefused, Lookup, Reason, Route
from mailroute.interfaces import IRouter
from mailroute.routers import BadAnswer


async def answered(router: IRouter, question: Lookup) -> Route | Reason | None:
    """Return the route, or why there is none."""
    try:
        answer = router.route(question)
        return await answer if isinstance(answer, Deferred) else answer
    except LoginRefused as refused:
        return refused.refusal.reason


async def explained(router: IRouter, question: Lookup) -> Route | Reason | str | None:
    """Return the route, or why there is none, also where the answer made no sense."""
    try:
        return await answered(router, question)
    except BadAnswer as error:
        return str(error)
