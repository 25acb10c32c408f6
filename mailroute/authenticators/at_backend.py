"""The ``backend`` source: a password is right if a mail server lets its user in with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from mailroute.events import LoginOrder, LoginRefused, Lookup, Opened, Reason, Refusal
from mailroute.interfaces import IAuthenticateSource, IAuthenticator
from mailroute.proofs import Proof
from mailroute.sources import SourceContext, only, text

LINGER = 2.0
"""Seconds that a server has to finish its side of the end of a trial."""

Open = Callable[[str, str, LoginOrder], Deferred[Opened]]
"""Logs in: takes the backend's name, the protocol's and the order."""


@implementer(IAuthenticator)
class BackendAuthenticator:
    """Knows users by whether a backend lets them in with what they have sent.

    :ivar open: logs in at backends; whoever puts the program together gives it.
    """

    proofs = frozenset({Proof.PASSWORD})

    def __init__(self, backend: str, protocol: str, clock: IReactorTime) -> None:
        self.open: Open | None = None
        self._backend = backend
        self._protocol = protocol
        self._clock = clock

    async def authenticate(self, lookup: Lookup) -> str:
        """Return the user's name if the backend lets it in (`IAuthenticator.authenticate`)."""
        if self.open is None or lookup.credentials is None:
            raise LoginRefused(Refusal(Reason.MISCONFIGURED, "there is no backend to log in at"))
        order = LoginOrder(lookup.credentials, lookup.user, lookup.client)
        opened = await self.open(self._backend, self._protocol, order)
        # Later: whoever has opened it has a last look at it.
        self._clock.callLater(0, self._part, opened.transport)
        return lookup.user

    def _part(self, transport: Any) -> None:
        transport.resumeProducing()
        transport.loseConnection()
        self._clock.callLater(LINGER, _cut, transport)

    def __str__(self) -> str:
        return f"passwords are tried at {self._backend}, in {self._protocol}"


def _cut(transport: Any) -> None:
    if getattr(transport, "connected", False):
        transport.abortConnection()


@implementer(IAuthenticateSource)
class BackendSource:
    """Makes a `BackendAuthenticator` from the keys ``backend`` and ``protocol``."""

    name = "backend"

    def authenticator(self, options: Mapping[str, object], context: object) -> BackendAuthenticator:
        """Make the authenticator; see `IAuthenticateSource.authenticator`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        only(options, ("backend", "protocol"))
        protocol = text(options, "protocol") if "protocol" in options else "imap"
        return BackendAuthenticator(context.backend(options), protocol, context.clock)
