"""Where routes lead: the backends, as a route wants them, and which of several to try first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.events import (
    NOBODY,
    Attempt,
    Change,
    Client,
    LoginOrder,
    LoginRefused,
    Method,
    Opened,
    Reason,
    Refusal,
    Route,
)
from mailroute.interfaces import IBackend, IMailProtocol

PATIENCE = 5.0
"""Seconds for a backend to say its first word, if there is another one to try: TCP has sent its first packet
three times by then, and a client waits long enough for a few of them."""

AVOIDED = 10.0
"""Seconds for which a backend that did not answer is tried last, so that not every login waits for it."""

MAX_PLACES = 1024
"""Combinations of backends and changes that are kept; the one used longest ago goes first."""

_log = Logger(namespace="mailroute.places")

Silences = MutableMapping[IBackend, float]
"""Until when backends are tried last."""


class Places:
    """Finds the backend, or those to try in order, that a route leads to."""

    def __init__(self, backends: Mapping[str, IBackend], clock: IReactorTime) -> None:
        self._backends = backends
        self._seconds = clock.seconds
        self._silences: Silences = WeakKeyDictionary()
        self._made = lru_cache(MAX_PLACES)(self._make)

    def find(self, route: Route) -> IBackend:
        """Return where the route leads: for equal routes the same, as long as it is kept.

        :raises LoginRefused: it leads nowhere.
        """
        replays = route.password is not None
        if not (route.others or route.change or replays):
            return self._named(route.backend)
        return self._made((route.backend, *route.others), route.change or Change(), replays)

    def _make(self, names: tuple[str, ...], change: Change, replays: bool) -> IBackend:
        """Make the place of a route.

        :param replays: it has a password of its own, which is used as if the client had sent it.
        """
        if replays:
            change = evolve(change, login=Method.REPLAY)
        found = [_changed(self._named(name), change) for name in dict.fromkeys(names)]
        return found[0] if len(found) == 1 else InOrder(found, self._seconds, self._silences)

    def _named(self, name: str) -> IBackend:
        backend = self._backends.get(name)
        if backend is None:
            raise _nowhere(f"the route leads to {name!r}, which is no backend")
        return backend


def _changed(backend: IBackend, change: Change) -> IBackend:
    if change.login is backend.method:
        change = evolve(change, login=None)
    if change == Change():
        return backend
    try:
        return backend.changed(change)
    except ValueError as error:
        raise _nowhere(f"the route wants backend {backend.name} as it cannot be: {error}") from None


def _nowhere(detail: str) -> LoginRefused:
    return LoginRefused(Refusal(Reason.MISCONFIGURED, detail))


def order_for(route: Route, attempt: Attempt, user: str, client: Client) -> LoginOrder:
    """Return what to log in with where a route leads, for the user who makes this attempt."""
    name = route.name if route.name is not None else user
    return LoginOrder(
        route.credentials(name) or attempt.credentials, name, client, attempt.seam, route.forward
    )


def open_for(
    backend: IBackend, protocol: IMailProtocol, route: Route, attempt: Attempt, user: str, client: Client
) -> Deferred[Opened]:
    """Open the account of the user who makes this attempt, where a route leads (`IBackend.open`)."""
    opening = backend.open(protocol, order_for(route, attempt, user, client))
    # A source may give back the password that it was asked with.
    if route.password not in (None, attempt.credentials.secret):
        opening.addErrback(_about_the_route)
    return opening


def _about_the_route(failure: Failure) -> None:
    """Say what a backend says of a route's password in words that are not about the client's.

    Somebody has checked the client already: it must not be asked for its password again.
    """
    error: Any = failure.value
    failure.trap(LoginRefused)
    refusal: Refusal = error.refusal
    if refusal.reason is Reason.AUTHENTICATION_FAILED:
        detail = f"the backend does not take the password that the route has: {refusal.detail}"
        refusal = evolve(refusal, reason=Reason.MISCONFIGURED, detail=detail)
    raise LoginRefused(evolve(refusal, reply=None, challenge=None))


def lets_in_anybody(route: Route, backend: IBackend, attempt: Attempt) -> bool:
    """Tell whether a backend would not check the user's own password, nor has the route's source."""
    return attempt.credentials is not NOBODY and needs_proof(route, backend.method)


def needs_proof(route: Route, method: Method) -> bool:
    """Tell whether somebody has yet to check the user's own password: a login by this method would not."""
    return not route.proven and (route.password is not None or method is not Method.REPLAY)


@implementer(IBackend)
class InOrder:
    """Several backends as one: the next is tried if one does not answer.

    A backend that has spoken has decided, whatever it said; only one that
    cannot be reached, or says nothing, gives way.

    :param seconds: a clock.
    """

    def __init__(
        self,
        backends: Sequence[IBackend],
        seconds: Callable[[], float],
        silences: Silences,
    ) -> None:
        self.name = "+".join(backend.name for backend in backends)
        self._backends = tuple(backends)
        self._seconds = seconds
        self._silences = silences

    @property
    def method(self) -> Method:
        """How mailroute logs in: as the client does only if that holds for all of them."""
        methods = [backend.method for backend in self._backends]
        return next((method for method in methods if method is not Method.REPLAY), Method.REPLAY)

    def changed(self, change: Change) -> IBackend:
        """Return the same order of changed backends (`IBackend.changed`)."""
        return InOrder([backend.changed(change) for backend in self._backends], self._seconds, self._silences)

    def open(self, protocol: IMailProtocol, order: LoginOrder) -> Deferred[Opened]:
        """Connect and log in at the first that answers (`IBackend.open`)."""
        return Deferred.fromCoroutine(self._open(protocol, order))

    async def _open(self, protocol: IMailProtocol, order: LoginOrder) -> Opened:
        *turn, last = self._by_turn()
        hurried = evolve(order, patience=PATIENCE)
        for backend, following in zip(turn, [*turn[1:], last], strict=True):
            try:
                return await self._at(backend, protocol, hurried)
            except LoginRefused as refused:
                if not refused.refusal.unreached:
                    raise
                _log.warn(
                    "backend {backend} does not answer, trying {following}: {detail}",
                    backend=backend.name,
                    following=following.name,
                    detail=refused.refusal.detail,
                )
        return await self._at(last, protocol, order)

    async def _at(self, backend: IBackend, protocol: IMailProtocol, order: LoginOrder) -> Opened:
        """Log in at one of them, and remember whether it answers."""
        try:
            opened = await backend.open(protocol, order)
        except LoginRefused as refused:
            if refused.refusal.unreached:
                self._silences[backend] = self._seconds() + AVOIDED
            else:
                self._silences.pop(backend, None)
            raise
        self._silences.pop(backend, None)
        return opened

    def _by_turn(self) -> list[IBackend]:
        now = self._seconds()
        return sorted(self._backends, key=lambda backend: self._silences.get(backend, now) > now)
