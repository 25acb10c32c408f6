"""Routers that ask a slow source, which is spared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from attrs import evolve
from twisted.internet.defer import Deferred
from zope.interface import implementer

from mailroute.events import Client, LoginRefused, Lookup, Route
from mailroute.interfaces import IKeepingRouter
from mailroute.proofs import Proof
from mailroute.sources import CHECKED, BadAnswer, SlowOptions, SourceContext
from mailroute.sources.context import Unanswered, cut
from mailroute.sources.echo import LEFT_OUT, echoes
from mailroute.sources.guard import Guard

Ask = Callable[[Lookup], Awaitable[Route | None]]


@implementer(IKeepingRouter)
class GuardedRouter(Guard[Route]):
    """A router that asks a slow source, and spares it.

    An answer is kept for the user, the protocol, and what else the source is
    told that it may depend on (`told`), of which a keyed hash is kept.

    :param ask: asks the source, as `Guard.ask` has it done.
    :param by_password: the answer depends on the credentials of the lookup: the source checks them.
    :param by_client: it depends on the client's address as well, unless the options say otherwise.
    """

    def __init__(
        self,
        ask: Ask,
        options: SlowOptions,
        context: SourceContext,
        *,
        by_password: bool = False,
        by_client: bool = False,
    ) -> None:
        super().__init__(options.with_defaults(CHECKED) if by_password else options, context)
        self._asks = ask
        self._by_password = by_password
        self.by_client = by_client if options.per_client is None else options.per_client

    def route(self, lookup: Lookup) -> Route | Deferred[Route | None] | None:
        """Return the route (`IRouter.route`): at once if it is known."""
        return self.ask(self._key(lookup), partial(self._discreetly, lookup), lookup.note)

    def forget(self, lookup: Lookup) -> None:
        """Have the source asked next time (`IKeepingRouter.forget`)."""
        self.drop(self._key(lookup))

    async def _discreetly(self, lookup: Lookup) -> Route | None:
        """Ask the source, and leave out what it says against a login if that repeats the client's secret."""
        try:
            return await self._asks(lookup)
        except LoginRefused as refused:
            detail = refused.refusal.detail
            said = f"{self.label}: {LEFT_OUT}" if self._echoes(detail, lookup) else cut(detail)
            raise LoginRefused(evolve(refused.refusal, detail=said)) from None
        except (BadAnswer, Unanswered) as error:
            if self._echoes(str(error), lookup):
                raise type(error)(LEFT_OUT) from None
            raise

    @staticmethod
    def _echoes(said: str, lookup: Lookup) -> bool:
        return lookup.credentials is not None and echoes(said, lookup.credentials)

    def _key(self, lookup: Lookup) -> tuple[str, str, bytes]:
        told = self.told(lookup)
        return lookup.user, lookup.protocol, self.hidden(*told) if told else b""

    def told(self, lookup: Lookup) -> Sequence[bytes]:
        """Return on what an answer depends besides the user and the protocol.

        :raises LoginRefused: the source cannot be asked about such a login.
        """
        shown = lookup.credentials
        told = [text.encode("utf-8") for text in of_client(lookup.client)] if self.by_client else []
        if self._by_password and shown is not None:
            # A password is the same however it was sent.
            mechanism = "" if shown.proof is Proof.PASSWORD else shown.mechanism
            told += [mechanism.encode(), shown.user, shown.authorize_as, shown.secret]
        return told


def of_client(client: Client) -> tuple[str, ...]:
    """Return what sources are told of a client, but for what is another with each connection."""
    hosts = ("" if end is None else end.host for end in (client.source, client.destination))
    return (*hosts, client.tls or "", client.server_name or "")
