"""Routers that ask a slow source, which is spared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from attrs import evolve
from twisted.internet.defer import Deferred
from zope.interface import implementer

from mailroute.events import LoginRefused, Lookup, Route
from mailroute.interfaces import IRouter
from mailroute.sources import BadAnswer, SlowOptions, SourceContext
from mailroute.sources.echo import LEFT_OUT, echoes
from mailroute.sources.faults import Told
from mailroute.sources.guard import Guard

Ask = Callable[[Lookup], Awaitable[Route | None]]


@implementer(IRouter)
class GuardedRouter(Guard[Route]):
    """A router that asks a slow source, and spares it.

    :param ask: asks the source, as `Guard.ask` has it done.
    :param by_password: the answer depends on the credentials of the lookup, which are part of what it is kept
        for, by a keyed hash.
    """

    def __init__(
        self, ask: Ask, options: SlowOptions, context: SourceContext, *, by_password: bool = False
    ) -> None:
        # A password that was changed is to count at once, unless the operator says otherwise.
        keeps = not by_password or "cache_ttl" in options.model_fields_set
        super().__init__(options, context, keeps=keeps)
        self._asks = ask
        self._by_password = by_password

    def route(self, lookup: Lookup) -> Route | Deferred[Route | None] | None:
        """Return the route (`IRouter.route`): at once if it is known."""
        return self.ask(self._key(lookup), partial(self._discreetly, lookup), lookup.note)

    async def _discreetly(self, lookup: Lookup) -> Route | None:
        """Ask the source, and leave out what it says against a login if that repeats the client's secret."""
        try:
            return await self._asks(lookup)
        except LoginRefused as refused:
            if self._echoes(refused.refusal.detail, lookup):
                raise LoginRefused(evolve(refused.refusal, detail=f"{self.label}: {LEFT_OUT}")) from None
            raise
        except (BadAnswer, Told) as error:
            if self._echoes(str(error), lookup):
                raise type(error)(LEFT_OUT) from None
            raise

    @staticmethod
    def _echoes(said: str, lookup: Lookup) -> bool:
        return lookup.credentials is not None and echoes(said, lookup.credentials)

    def _key(self, lookup: Lookup) -> tuple[str, str, bytes]:
        secret = b""
        if self._by_password and lookup.credentials is not None:
            shown = lookup.credentials
            secret = self.hidden(shown.mechanism.encode(), shown.user, shown.authorize_as, shown.secret)
        return lookup.user, lookup.protocol, secret
