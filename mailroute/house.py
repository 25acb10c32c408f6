"""What sessions share: all of them a `House`, those of one listener a `Door`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, ITransport

from mailroute.deadlines import Deadlines, deadlines_of
from mailroute.events import DialogTerms
from mailroute.failures import FailureTiming
from mailroute.interfaces import IBackend, IMailProtocol, IRouter

Check = Callable[[str, bytes], Deferred[str]]
"""Takes a normalised user name and a password; the Deferred gives the name to route."""

Join = Callable[[ITransport, ITransport, bytes, bytes], Deferred[Any]]
"""Takes both transports and the first bytes for each; the Deferred gives a `mailroute.SpliceResult`."""


@frozen
class Door:
    """What the sessions of one listener share.

    ``check`` proves passwords here; None leaves that to the backend.
    """

    name: str
    protocol: IMailProtocol
    terms: DialogTerms
    check: Check | None = None


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

    @deadlines.default
    def _deadlines(self) -> Deadlines:
        return deadlines_of(self.clock)
