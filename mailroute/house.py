"""What sessions share: all of them a `House`, those of one listener a `Door`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from attrs import field, frozen
from twisted.internet.interfaces import IReactorTime, ITransport

from mailroute.deadlines import Deadlines, deadlines_of
from mailroute.events import Credentials, DialogTerms, Route
from mailroute.failures import FailureTiming
from mailroute.interfaces import IAuthenticator, IBackend, ILoginProtocol, IRouter
from mailroute.places import Places


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
    authenticator: IAuthenticator | None = None
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
        if credentials.proof.names and not credentials.account and door.authenticator is not None:
            return ""
        return self.normalise(credentials.account)

    @deadlines.default
    def _deadlines(self) -> Deadlines:
        return deadlines_of(self.clock)
