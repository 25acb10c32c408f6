"""The ``dovecot-auth`` source: a Dovecot's own passdbs decide, over its auth service's UNIX sockets."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve
from pydantic import Field
from twisted.internet.defer import Deferred
from zope.interface import implementer

from mailroute.events import LoginRefused, Lookup, Reason, Refusal, Route
from mailroute.interfaces import IRouter, IRouteSource
from mailroute.routers.answers import Answers, text
from mailroute.routers.guard import GuardedRouter
from mailroute.sources import BadOption, SlowOptions, SourceContext, read_options
from mailroute.sources.dovecot import DovecotAuth, DovecotCannotTell, Said, refuse, route_fields


class DovecotOptions(SlowOptions):
    """The keys of the block."""

    socket: str | None = Field(default=None, examples=["/run/dovecot/auth-client"])
    """The socket where passwords are checked, such as ``auth-client``; this or the other is required."""

    master_socket: str | None = Field(default=None, examples=["/run/dovecot/auth-master"])
    """The socket where Dovecot tells of any user without a password, such as ``auth-master``."""


class DovecotRouter(GuardedRouter):
    """Asks one auth service."""

    def __init__(self, options: DovecotOptions, context: SourceContext) -> None:
        self.proves = options.socket is not None
        super().__init__(self._find, options, context, by_password=self.proves, by_client=self.proves)
        self._path = context.folder / (options.socket or options.master_socket or "")
        self._answers = Answers(context.backends, options.backend)
        self._backends = context.backends
        self._server = DovecotAuth(str(self._path), context.clock, masters=not self.proves)

    def stopService(self) -> Deferred[None] | None:
        """Close the connection."""
        super().stopService()
        self._server.close()
        return None

    async def _find(self, lookup: Lookup) -> Route | None:
        if not self.proves:
            return self._found(await self._server.find(lookup), lookup)
        shown = lookup.credentials
        if shown is None or not shown.user or not shown.proof.replayable:
            detail = f"{self._path} checks passwords, and there is none: use master_socket for this"
            raise LoginRefused(Refusal(Reason.MISCONFIGURED, detail))
        try:
            said = await self._server.check(lookup)
        except ValueError:
            detail = "the password is longer than Dovecot takes"
            raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, detail)) from None
        if said.word != "OK":
            refuse(said.fields)
            raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, f"Dovecot refused ({self._path})"))
        route = self._found(said, lookup)
        return None if route is None else evolve(route, proven=True)

    def _found(self, said: Said, lookup: Lookup) -> Route | None:
        if said.word == "NOTFOUND":
            return None
        if said.word == "FAIL":
            refuse(said.fields)
            raise DovecotCannotTell
        answer = dict(route_fields(said.fields, self._backends))
        user = text(said.fields, "user")
        if any(answer.values()) or (self._answers.everywhere and user != lookup.user):
            # What it calls the user is the name there, unless a field says otherwise.
            answer.setdefault("name", user)
        route = self._answers.route(answer)
        return route if route is None or user in (None, lookup.user) else evolve(route, user=user)

    def __str__(self) -> str:
        return f"the Dovecot at {self._path} {'checks passwords and ' * self.proves}knows where users live"


@implementer(IRouteSource)
class DovecotSource:
    """Makes a `DovecotRouter`."""

    name = "dovecot-auth"

    def router(self, options: Mapping[str, object], context: object) -> IRouter:
        """Make the router; see `IRouteSource.router`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        read = read_options(DovecotOptions, options, context)
        if (read.socket is None) is (read.master_socket is None):
            raise BadOption("socket", 'give one of socket = "…" and master_socket = "…"')
        return DovecotRouter(read, context)
