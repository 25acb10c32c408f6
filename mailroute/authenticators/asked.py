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
from mailroute.authenticators.chain import IKeyDecoy
from mailroute.events import Credentials, LoginRefused, Lookup, Reason, Refusal, Route
from mailroute.interfaces import IAuthenticateSource, IKeepingRouter, IKeyholder
from mailroute.proofs import SCRAM, Proof
from mailroute.sources import CHECKED, BadAnswer, BadOption, SourceContext
from mailroute.wire.scram import StoredKeys, base_name

NOWHERE = "-"
"""The backend of answers that are not about where somebody lives."""


_log = Logger(namespace="mailroute.authenticators")


@implementer(IKeyDecoy, IKeyholder)
class AskedAuthenticator(MultiService):
    """Asks a router about the users, and not for the way to their backends.

    It runs the router, if that has to run.  Stored keys among the hashes that
    it keeps do for SCRAM as well.

    :ivar proofs: what it can check.
    """

    offers = frozenset({Proof.PASSWORD})
    """Not SCRAM: whether all have keys could only be told by asking about all."""

    def __init__(self, router: IKeepingRouter, context: SourceContext) -> None:
        super().__init__()
        self._router = router
        self._proves = bool(getattr(router, "proves", False))
        self._context = context
        self.proofs = frozenset({Proof.PASSWORD} if self._proves else {Proof.PASSWORD, *SCRAM})
        self._example: str | None = None
        self._keys: dict[str, StoredKeys] = {}
        if IService.providedBy(router):
            IService(router).setServiceParent(self)

    async def authenticate(self, lookup: Lookup) -> str | None:
        """Return the user's name if what it shows is right (`IAuthenticator.authenticate`)."""
        route, kept = await self._asked(lookup)
        if route is None:
            return None
        if self._proves:
            right, why = route.proven, "wrong password"
        else:
            stored = self._stored(route)
            right, why = await self._is_right(stored, lookup)
            if not right and kept:
                # It may have been changed since: a new password counts at once.
                self._router.forget(lookup)
                route, _ = await self._asked(lookup)
                if route is None:
                    return None
                if self._stored(route) != stored:
                    right, why = await self._is_right(self._stored(route), lookup)
        if not right:
            raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, f"{why} ({self._context.label})"))
        return lookup.user if route.user is None else self._normalised(route.user)

    def _normalised(self, user: str) -> str:
        try:
            return self._context.normalise(user)
        except ValueError as error:
            raise self._nonsense(f"it knows the user by a name that is none: {error}") from None

    async def keys(self, lookup: Lookup) -> StoredKeys | None:
        """Return the user's stored keys (`IKeyholder.keys`); those of one who has none are made up."""
        route, _ = await self._asked(lookup)
        if route is None:
            return None
        mechanism, stored = _shown(lookup).mechanism, self._stored(route)
        found = None if stored.startswith(hashes.LOCKED) else hashes.stored_keys(stored, mechanism)
        if found is None:
            return self.made_up(lookup)
        self._keys[base_name(mechanism)] = found
        return found

    def made_up(self, lookup: Lookup) -> StoredKeys:
        """Return keys like those that were the last to be seen (`IKeyDecoy.made_up`)."""
        return hashes.made_up(lookup.user, self._keys.get(base_name(_shown(lookup).mechanism)), hashes.SECRET)

    async def _asked(self, lookup: Lookup) -> tuple[Route | None, bool]:
        """Return the answer, and whether it is one that was kept."""
        try:
            answer = self._router.route(lookup)
            return (answer, True) if isinstance(answer, Route | None) else (await answer, False)
        except BadAnswer as error:
            # What is in the wrong place may be the hash, or a password as it is typed.
            raise self._nonsense(error.without_values) from None

    def _stored(self, route: Route) -> str:
        """Return what is kept of a password: a hash, or that the account is locked."""
        if route.password is None:
            raise self._nonsense("there is no password, which has to be its hash")
        stored = route.password.decode("utf-8")
        if not stored.startswith(hashes.LOCKED):
            try:
                hashes.check(stored)
            except hashes.BadHash as error:
                raise self._nonsense(f"the password of the user: {error}") from None
        return stored

    async def _is_right(self, stored: str, lookup: Lookup) -> tuple[bool, str]:
        """Tell whether it is right what a client shows, and why not."""
        if stored.startswith(hashes.LOCKED):
            # In the same time and words as a wrong password: a stranger learns nothing of the account.
            await self.pretend(lookup)
            return False, "the account is locked"
        shown = _shown(lookup)
        if shown.proof in SCRAM:
            return hashes.proven(stored, shown), hashes.why_wrong(stored, shown)
        self._example = stored
        return await self._verify(stored, lookup), "wrong password"

    def _nonsense(self, what: str) -> LoginRefused:
        label = self._context.label
        _log.warn("{source} gave an answer that makes no sense: {what}", source=label, what=what)
        return LoginRefused(Refusal(Reason.MISCONFIGURED, f"{label} gave nonsense: {what}"))

    def _verify(self, stored: str, lookup: Lookup) -> Deferred[bool]:
        return self._context.compute(partial(hashes.verify, stored, _shown(lookup).secret))

    async def pretend(self, lookup: Lookup) -> None:
        """Check the password against the hash that was the last to be seen (`IDecoy.pretend`)."""
        if self._example is not None and _shown(lookup).proof is Proof.PASSWORD:
            await self._verify(self._example, lookup)

    def __str__(self) -> str:
        who = "checked" if self._proves else "compared with hashes"
        return f"passwords are {who}: {self._router}"


def _shown(lookup: Lookup) -> Credentials:
    assert lookup.credentials is not None  # noqa: S101 - the chain asks with what a client has shown
    return lookup.credentials


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
        router = routers.source(self.name).router({**CHECKED, **options, "backend": NOWHERE}, known)
        if self._checks and not getattr(router, "proves", False):
            raise BadOption(self._checks[0], "is needed here: without it no password is checked")
        return AskedAuthenticator(IKeepingRouter(router), context)
