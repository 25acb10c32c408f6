"""The routes in order: the first that knows a user wins."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.events import LoginRefused, Lookup, Reason, Refusal, Route
from mailroute.interfaces import IRouter


@implementer(IRouter)
class Chain:
    """Asks routers in order until one knows the user.

    A router that fails ends the search: the next one might know the user by
    another backend, and mail would be split over two accounts.

    :param routers: pairs of a label for the log, such as ``route[1] (table)``, and a router.
    :param backends: the names of the backends that there are.
    """

    _log = Logger()

    def __init__(self, routers: Sequence[tuple[str, IRouter]], backends: frozenset[str]) -> None:
        self._routers = tuple(routers)
        self._backends = backends

    def route(self, lookup: Lookup) -> Route | Deferred[Route | None] | None:
        """Return the first route, ``None`` if nobody knows the user, or a Deferred of either.

        No Deferred is made as long as the routers answer at once.

        :raises LoginRefused: (or fails with it) a router refused, failed or named an unknown backend.
        """
        return self._ask_from(0, lookup)

    def _ask_from(self, first: int, lookup: Lookup) -> Route | Deferred[Route | None] | None:
        for index in range(first, len(self._routers)):
            label, router = self._routers[index]
            try:
                answer: object = router.route(lookup)
            except LoginRefused:
                raise
            except Exception:
                raise self._broken(label, Failure()) from None
            if answer is None:
                continue
            # Nearly all are routes, and to see whether something is a coroutine takes long.
            if not isinstance(answer, Route):
                if isinstance(answer, Coroutine):
                    answer = Deferred.fromCoroutine(answer)
                if isinstance(answer, Deferred):
                    return self._later(answer, index, lookup)
            return self._checked(label, answer)
        return None

    def _later(self, answer: Deferred[object], index: int, lookup: Lookup) -> Deferred[Route | None]:
        label, _ = self._routers[index]

        def answered(route: object) -> Route | Deferred[Route | None] | None:
            return self._ask_from(index + 1, lookup) if route is None else self._checked(label, route)

        def failed(failure: Failure) -> Failure:
            # Cancelled: the client has gone or its time is up, which is not the router's fault.
            if failure.check(LoginRefused, CancelledError):
                return failure
            return Failure(self._broken(label, failure))

        return answer.addCallbacks(answered, failed)

    def _checked(self, label: str, answer: object) -> Route:
        if not isinstance(answer, Route):
            detail = f"{label} answered with {type(answer).__name__} instead of a Route"
        elif answer.backend not in self._backends:
            detail = f'{label} names the backend "{answer.backend}", which does not exist'
        else:
            return answer
        raise LoginRefused(Refusal(Reason.MISCONFIGURED, detail))

    def _broken(self, label: str, failure: Failure) -> LoginRefused:
        self._log.failure("{source} failed", failure=failure, source=label)
        return LoginRefused(Refusal(Reason.UNAVAILABLE, f"{label} failed: {type(failure.value).__name__}"))
