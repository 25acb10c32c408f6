"""Authenticators that ask where routes can be asked too: a database, a Dovecot, a program, and others.

A source that checks passwords itself says who is who it says; one that only
keeps them answers with a hash as the ``password``, which is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from attrs import evolve
from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from mailroute import routers
from mailroute.authenticators import hashes
from mailroute.authenticators.chain import IDecoy
from mailroute.events import LoginRefused, Lookup, Reason, Refusal, Route
from mailroute.interfaces import IAuthenticateSource, IRouter
from mailroute.proofs import Proof
from mailroute.sources import BadAnswer, BadOption, SourceContext

NOWHERE = "-"
"""The backend of answers that are not about where somebody lives."""


_log = Logger(namespace="mailroute.authenticators")


@implementer(IDecoy)
class AskedAuthenticator(MultiService):
    """Asks a router about the users, and not for the way to their backends.

    It runs the router, if that has to run.
    """

    proofs = frozenset({Proof.PASSWORD})

    def __init__(self, router: IRouter, context: SourceContext) -> None:
        super().__init__()
        self._router = router
        self._proves = bool(getattr(router, "proves", False))
        self._context = context
        self._example: str | None = None
        if IService.providedBy(router):
            IService(router).setServiceParent(self)

    async def authenticate(self, lookup: Lookup) -> str | None:
        """Return the user's name if its password is right (`IAuthenticator.authenticate`)."""
        try:
            answer = self._router.route(lookup)
            route: Route | None = answer if isinstance(answer, Route | None) else await answer
        except BadAnswer as error:
            raise self._nonsense(str(error)) from None
        if route is None:
            return None
        right = route.proven if self._proves else await self._is_right(route, lookup)
        if not right:
            detail = f"wrong password ({self._context.label})"
            raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, detail))
        return lookup.user if route.user is None else self._normalised(route.user)

    def _normalised(self, user: str) -> str:
        try:
            return self._context.normalise(user)
        except ValueError as error:
            raise self._nonsense(f"it knows the user by a name that is none: {error}") from None

    async def _is_right(self, route: Route, lookup: Lookup) -> bool:
        if route.password is None:
            raise self._nonsense("there is no password, which has to be its hash")
        stored = route.password.decode("utf-8")
        if stored.startswith(hashes.LOCKED):
            # In the same time and words as a wrong password: a stranger learns nothing of the account.
            await self.pretend(lookup)
            detail = f"the account is locked ({self._context.label})"
            raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, detail))
        try:
            hashes.check(stored)
        except hashes.BadHash as error:
            raise self._nonsense(f"the password of the user: {error}") from None
        self._example = stored
        return await self._verify(stored, lookup)

    def _nonsense(self, what: str) -> LoginRefused:
        label = self._context.label
        _log.warn("{source} gave an answer that makes no sense: {what}", source=label, what=what)
        return LoginRefused(Refusal(Reason.MISCONFIGURED, f"{label} gave nonsense: {what}"))

    def _verify(self, stored: str, lookup: Lookup) -> Deferred[bool]:
        assert lookup.credentials is not None  # noqa: S101 - the chain asks with what a client has shown
        return self._context.compute(partial(hashes.verify, stored, lookup.credentials.secret))

    async def pretend(self, lookup: Lookup) -> None:
        """Check the password against the hash that was the last to be seen (`IDecoy.pretend`)."""
        if self._example is not None:
            await self._verify(self._example, lookup)

    def __str__(self) -> str:
        who = "checked" if self._proves else "compared with hashes"
        return f"passwords are {who}: {self._router}"


@implementer(IAuthenticateSource)
class AskedSource:
    """Makes an `AskedAuthenticator` from the keys of a ``[[route]]`` of the same kind.

    :param checks: the keys of those of which it needs one that makes the source check passwords itself; none:
        it keeps hashes.
    """

    def __init__(self, name: str, *checks: str) -> None:
        self.name = name
        self._checks = checks

    def authenticator(self, options: Mapping[str, object], context: object) -> AskedAuthenticator:
        """Make the authenticator; see `IAuthenticateSource.authenticator`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        if "backend" in options:
            raise BadOption("backend", "means nothing here, where nobody is sent anywhere: remove it")
        known = evolve(context, backends=context.backends | {NOWHERE})
        # Unless the operator says otherwise, a password that was changed counts at once.
        fresh = {"cache_ttl": 0, "negative_ttl": 0, **options, "backend": NOWHERE}
        router = routers.source(self.name).router(fresh, known)
        if self._checks and not getattr(router, "proves", False):
            raise BadOption(self._checks[0], "is needed here: without it no password is checked")
        return AskedAuthenticator(router, context)
