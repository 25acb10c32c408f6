"""The routes in order: the first that knows a user wins."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence

from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.events import LoginRefused, Lookup, Reason, Refusal, Route
from mailroute.interfaces import IRouter
from mailroute.sources.context import BadAnswer
from mailroute.sources.faults import fault


@implementer(IRouter)
class Forgiving(MultiService):
    """A router that does not know a user when it cannot tell (``on_error = "next"``).

    It runs the router, if that has to run.

    :param label: what the log calls the router.
    """

    _log = Logger()

    def __init__(self, label: str, router: IRouter) -> None:
        super().__init__()
        self._label = label
        self._router = router
        self.proves = getattr(router, "proves", False)
        if IService.providedBy(router):
            router.setServiceParent(self)

    def route(self, lookup: Lookup) -> Route | Deferred[Route | None] | None:
        """Return the router's answer (`IRouter.route`), and ``None`` if it fails or says "later"."""
        try:
            answer: object = self._router.route(lookup)
        except Exception:
            self._forgive(Failure())
            return None
        if isinstance(answer, Coroutine):
            answer = Deferred.fromCoroutine(answer)
        if isinstance(answer, Deferred):
            answer.addErrback(self._forgive)
        return answer  # type: ignore[return-value]  # the chain looks at it

    def _forgive(self, failure: Failure) -> None:
        error = failure.value
        definite = isinstance(error, LoginRefused) and error.refusal.reason is not Reason.UNAVAILABLE
        if definite or failure.check(BadAnswer, CancelledError):
            failure.raiseException()
        why = error.refusal.detail if isinstance(error, LoginRefused) else fault(failure)
        self._log.warn("{source} is passed over: {why}", source=self._label, why=why)

    def __str__(self) -> str:
        return f"{self._router}; when it fails, the next is asked"


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
                raise self._failed(label, Failure()) from None
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
            return Failure(self._failed(label, failure))

        return answer.addCallbacks(answered, failed)

    def _checked(self, label: str, answer: object) -> Route:
        if not isinstance(answer, Route):
            raise self._nonsense(label, f"{type(answer).__name__} instead of a Route")
        if answer.backend not in self._backends:
            raise self._nonsense(label, f'the backend "{answer.backend}" does not exist')
        return answer

    def _nonsense(self, label: str, what: str) -> LoginRefused:
        """Log an answer that makes no sense, which is the operator's to mend."""
        self._log.warn("{source} gave an answer that makes no sense: {what}", source=label, what=what)
        return LoginRefused(Refusal(Reason.MISCONFIGURED, f"{label} gave nonsense: {what}"))

    def _failed(self, label: str, failure: Failure) -> LoginRefused:
        if isinstance(failure.value, BadAnswer):
            return self._nonsense(label, str(failure.value))
        self._log.error("{source} failed: {fault}", source=label, fault=fault(failure))
        return LoginRefused(Refusal(Reason.UNAVAILABLE, f"{label} failed: {type(failure.value).__name__}"))
