"""What sessions share: all of them a `House`, those of one listener a `Door`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from attrs import field, frozen
from twisted.internet.interfaces import IReactorTime, ITransport

from mailroute.deadlines import Deadlines, deadlines_of
from mailroute.events import (
    NOBODY,
    Client,
    Credentials,
    DialogTerms,
    LoginRefused,
    Lookup,
    Reason,
    Refusal,
    Route,
)
from mailroute.failures import FailureTiming
from mailroute.interfaces import IBackend, IDialog, IKeyholder, ILoginProtocol, IRouter
from mailroute.legs import IClientLeg
from mailroute.places import Places
from mailroute.wire.scram import StoredKeys


class Parting(Protocol):
    """Whoever is told how it ends."""

    def parted(self, result: Any) -> None:
        """Both connections are closed; the result is a `mailroute.SpliceResult`."""


class Joined(Protocol):
    """Two connections that are joined: how much has passed so far, and the way to end them."""

    @property
    def bytes_a_to_b(self) -> int:
        """Bytes from the client."""

    @property
    def bytes_b_to_a(self) -> int:
        """Bytes to the client."""

    def cancel(self) -> None:
        """Close both, in good order and soon; nobody is told a result."""


Join = Callable[[ITransport, ITransport, bytes, bytes, Parting], Joined]
"""Takes the client's and the backend's transport, the first bytes for each, and whom to tell the result."""


@frozen
class Door:
    """What the sessions of one listener share.

    ``authenticator`` decides here who gets in; None leaves that to the backend.
    ``route`` is where all of them go; None has the routers asked.
    """

    name: str
    protocol: ILoginProtocol
    terms: DialogTerms
    authenticator: IKeyholder | None = None
    route: Route | None = None


@frozen
class House:
    """What all sessions share; times are seconds, 0 for no bound.

    ``normalise`` turns a user name as it was sent into the one form in which
    it is compared, and raises `ValueError` for what can be no user name.
    """

    router: IRouter
    backends: Mapping[str, IBackend]
    normalise: Callable[[bytes], str]
    join: Join
    failures: FailureTiming
    clock: IReactorTime
    login_timeout: float = 60
    failed_logins: int = 10
    deadlines: Deadlines = field(init=False)
    places: Places = field(init=False)

    @places.default
    def _places(self) -> Places:
        return Places(self.backends, self.clock)

    def name(self, credentials: Credentials, door: Door) -> str:
        """Return the user that a client names; empty if it leaves that to what it shows.

        :raises ValueError: it can be nobody's name.
        """
        checked = door.authenticator is not None
        if credentials is NOBODY and not checked:
            return ""
        if credentials.proof.names and not credentials.account and checked:
            return ""
        return self.normalise(credentials.account)

    async def keys(self, door: Door, lookup: Lookup) -> StoredKeys:
        """Return the stored keys of a user's password.

        :raises LoginRefused: they cannot be had.
        """
        found = None if door.authenticator is None else await door.authenticator.keys(lookup)
        if found is None:
            raise LoginRefused(Refusal(Reason.MISCONFIGURED, "nobody has the keys of passwords"))
        return found

    @staticmethod
    def introduce(dialog: IDialog, leg: IClientLeg, terms: DialogTerms) -> Client:
        """Tell a dialog what its client's connection is good for, and return what is known of the client."""
        client = leg.client()
        if client.certificate is not None:
            dialog.certified()
        binding = leg.channel_binding() if terms.bound else None
        if binding is not None:
            dialog.bound(binding)
        return client

    @deadlines.default
    def _deadlines(self) -> Deadlines:
        return deadlines_of(self.clock)
