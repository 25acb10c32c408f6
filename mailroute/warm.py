"""Connections to a backend that are dialled, secured and greeted before anybody wants to log in.

A login then waits for no handshake.  The price is the backend's: it holds
connections that nobody uses, and sees each of them end and be replaced about
once a minute as long as nobody comes.
"""

from __future__ import annotations

from collections import deque

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mailroute.backend import Backend
from mailroute.deadlines import Deadline
from mailroute.events import Opened, Refusal
from mailroute.interfaces import IMailProtocol
from mailroute.proxy_client import ProxyClient

MAX_AGE = 50.0
"""Seconds for which a connection is kept ready: less than the minute after which the strictest of
the usual servers send clients away that do not log in."""

SOONEST_AGAIN = 1.0
"""Seconds until a backend is tried again that could not be reached; doubled each time it fails again."""

LATEST_AGAIN = 60.0
"""Seconds between two tries at the most."""

_log = Logger(namespace="mailroute.warm")


class WarmStock(Service):
    """Keeps a number of connections to one backend ready, for one protocol, as long as it runs.

    Whoever takes one leaves its place to a new one.  If the backend cannot be
    reached, that is logged once, and logins dial for themselves as they would
    without it; it goes on trying at growing intervals.

    :param number: how many to keep.
    """

    def __init__(self, backend: Backend, protocol: IMailProtocol, number: int) -> None:
        self._backend = backend
        self._protocol = protocol
        self._number = number
        self._members: set[_Member] = set()
        self._ready: deque[_Member] = deque()
        self._again: IDelayedCall | None = None
        self._pause = 0.0
        backend.stocks[protocol.name] = self

    def __len__(self) -> int:
        """How many are ready."""
        return len(self._ready)

    def startService(self) -> None:
        """Begin to dial."""
        super().startService()
        self._fill_after(0.0)

    def stopService(self) -> None:
        """Close all of them."""
        super().stopService()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._ready.clear()
        members, self._members = self._members, set()
        for member in members:
            member.give_up()

    def take(self) -> ProxyClient | None:
        """Return the connection that has been ready for longest, and have another one made."""
        if not self._ready:
            return None
        member = self._ready.popleft()
        self._members.discard(member)
        self._all_is_well()
        self._fill_after(0.0)
        return member.leave()

    # --- what its members say ---

    def is_ready(self, member: _Member) -> None:
        """Note that the backend has greeted."""
        self._ready.append(member)
        self._fill_after(0.0)

    def has_ended(self, member: _Member) -> None:
        """Replace a connection that was ready, and has been closed or become too old."""
        self._drop(member)
        self._all_is_well()
        self._fill_after(0.0)

    def has_failed(self, member: _Member, detail: str) -> None:
        """Try later: the backend could not be reached, did not greet, or has greeted and closed at once."""
        self._drop(member)
        if self._pause and self._again is not None:
            return  # another one has said so already
        if not self._pause:
            _log.warn(
                "cannot keep connections to backend {backend} ready: {detail}; logins dial for themselves, "
                "and it is tried again",
                backend=self._backend.name,
                detail=detail,
            )
        self._pause = min(max(self._pause * 2, SOONEST_AGAIN), LATEST_AGAIN)
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._fill_after(self._pause)

    def _all_is_well(self) -> None:
        """Note that a connection has been of use, or could have been."""
        if self._pause:
            self._pause = 0.0
            _log.info("connections to backend {backend} are kept ready again", backend=self._backend.name)

    def _drop(self, member: _Member) -> None:
        self._members.discard(member)
        if member in self._ready:
            self._ready.remove(member)

    # --- filling ---

    def _fill_after(self, seconds: float) -> None:
        """Fill the places that are free, in a while, unless that is to happen already."""
        if self.running and self._again is None:
            self._again = self._backend.clock.callLater(seconds, self._fill)

    def _fill(self) -> None:
        self._again = None
        # While the backend does not answer, one try at a time is enough to notice when it does.
        wanted = self._number if self._ready or not self._pause else 1
        for _ in range(wanted - len(self._members)):
            member = _Member(self, self._backend)
            self._members.add(member)
            member.begin(ProxyClient(self._backend, self._backend.dials[self._protocol.name], self._protocol))
            if member not in self._members:
                return  # it has failed at once


class _Member:
    """One connection: being made, then ready, then taken, ended or too old."""

    __slots__ = ("_backend", "_connection", "_deadline", "_ready_since", "_stock")

    def __init__(self, stock: WarmStock, backend: Backend) -> None:
        self._stock = stock
        self._backend = backend
        self._ready_since: float | None = None
        self._connection: ProxyClient | None = None
        self._deadline: Deadline | None = None

    def begin(self, connection: ProxyClient) -> None:
        """Dial."""
        self._connection = connection
        if self._backend.timeout:
            self._deadline = self._backend.deadlines.after(self._backend.timeout, self)
        connection.get_ready(self)

    def leave(self) -> ProxyClient:
        """Return the connection, which is somebody else's from now on."""
        connection = self._end()
        assert connection is not None  # noqa: S101 (it is ready)
        return connection

    def give_up(self) -> None:
        """Close at once."""
        connection = self._end()
        if connection is not None:
            connection.give_up()

    def _end(self) -> ProxyClient | None:
        if self._deadline is not None:
            self._deadline.discard(self)
            self._deadline = None
        connection, self._connection = self._connection, None
        return connection

    # --- what the connection and the clock say ---

    def ready(self) -> None:
        """The backend has greeted."""
        if self._deadline is not None:
            self._deadline.discard(self)
        self._ready_since = self._backend.clock.seconds()
        self._deadline = self._backend.deadlines.after(MAX_AGE, self)
        self._stock.is_ready(self)

    def opened(self, opened: Opened) -> None:
        """Never: nobody has given an order."""

    def refused(self, refusal: Refusal) -> None:
        """The connection has come to its end."""
        self._end()
        since, now = self._ready_since, self._backend.clock.seconds()
        # One that does not last is of no use to anybody, and would be replaced without a pause.
        if since is not None and now - since >= SOONEST_AGAIN:
            self._stock.has_ended(self)
        else:
            self._stock.has_failed(self, refusal.detail)

    def time_is_up(self) -> None:
        """It took too long, or has become too old."""
        backend, connection = self._backend, self._connection
        doing = "" if connection is None else connection.too_slow()
        self.give_up()
        if self._ready_since is not None:
            self._stock.has_ended(self)
        else:
            detail = f"backend {backend.name} took over {backend.timeout:g} s, at last {doing}"
            self._stock.has_failed(self, detail)
