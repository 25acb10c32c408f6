"""Connections that a proxy in front relays: a PROXY header comes first, and says whose they are.

Whoever reads it is the connection's first protocol.  Once the header is there,
or if none is to come, `ProxyServer` goes on as if the client itself had just
connected: so nothing is said, no TLS begun and no session made before.
"""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailroute.arrivals import address, arrival
from mailroute.deadlines import Deadline
from mailroute.events import Client, Farewell
from mailroute.frontend import MAX_TURNED_AWAY, ProxyServer, ProxyServerFactory
from mailroute.networks import Networks
from mailroute.tls import shakes_hands
from mailroute.wire.proxy_reader import BadHeader, Incomplete, ProxyHeader, read_header

HEADER_TIMEOUT = 3.0
"""Seconds from connecting until the header is there, or ``login_timeout`` if that is less.

A proxy has it ready when it connects; it is the first thing that it sends.
"""

_log = Logger(namespace="mailroute.relayed")


class RelayedFactory(ProxyServerFactory):
    """Makes the connections of a listener that has proxies in front of it.

    :param listener: what the log calls it.
    :param proxies: from where connections have to begin with a header; those from elsewhere are clients' own.
    :param terms: those of `ProxyServerFactory`, and ``more`` likewise.
    """

    def __init__(self, listener: str, proxies: Networks, *terms: Any, **more: Any) -> None:
        super().__init__(*terms, **more)
        self.listener = listener
        self.proxies = proxies
        self._waiting: dict[Introduction, bool] = {}

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Make the first protocol of a connection."""
        del addr  # the transport knows
        self.made += 1
        return Introduction(self)

    def leave(self, why: Farewell) -> Deferred[Any]:
        """End all sessions, and what would become one."""
        left = super().leave(why)
        for introduction in list(self._waiting):
            introduction.close()
        return left

    # --- for those whose header has not come ---

    @property
    def patience(self) -> float:
        """Seconds that a header may take."""
        return min(HEADER_TIMEOUT, self.house.login_timeout or HEADER_TIMEOUT)

    def enter(self, introduction: Introduction) -> bool:
        """Count a connection in that has yet to say whose it is; False: there is no place for it.

        Of those that are too many some may stay, as they may afterwards, so
        that their clients get a polite answer.
        """
        counted = self.gate.enter(None) is None
        if not counted:
            if self.turned_away >= MAX_TURNED_AWAY:
                return False
            self.turned_away += 1
        self._waiting[introduction] = counted
        return True

    def waits(self, introduction: Introduction) -> bool:
        """Tell whether a connection is counted in here."""
        return introduction in self._waiting

    def forget(self, introduction: Introduction) -> None:
        """Count a connection out: it is at its end, or about to be counted by its client's address."""
        if self._waiting.pop(introduction):
            self.gate.leave(None)
        else:
            self.turned_away -= 1


class Introduction(Protocol):
    """A connection until it is known whose it is."""

    def __init__(self, factory: RelayedFactory) -> None:
        self.factory: RelayedFactory = factory
        self._client: Client
        self._deadline: Deadline
        self._read = b""

    def connectionMade(self) -> None:
        """Wait for the header, if one has to come."""
        self._client = client = arrival(self.transport)
        if client.source not in self.factory.proxies:
            self._go_on(client, b"")
        elif shakes_hands(self.transport):
            # The configuration does not allow this where it can be seen.
            self._refuse("the endpoint has begun TLS, in front of which it would have to be")
        elif self.factory.enter(self):
            deadlines = self.factory.house.deadlines
            self._deadline = deadlines.after(self.factory.patience, self)
        else:
            self._abort()

    def dataReceived(self, data: bytes) -> None:
        """Take the header, or a part of it."""
        if not self.factory.waits(self):
            return
        self._read += data
        try:
            header, length = read_header(self._read)
        except Incomplete:
            return
        except BadHeader as bad:
            self._refuse(str(bad))
            return
        self._stop()
        self._go_on(_introduced(self._client, header), self._read[length:])

    def time_is_up(self) -> None:
        """The header has not come in time."""
        self._refuse(f"it has not come within {self.factory.patience:g} s")

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """The connection is at its end.

        One that has said nothing was somebody's look at whether the port is open.
        """
        del reason
        if self.factory.waits(self):
            self._stop()
            if self._read:
                self._complain("the connection has ended before its end")
        self.factory.descriptors.left()

    def close(self) -> None:
        """End the connection, because mailroute ends."""
        self._stop()
        self._abort()

    # --- its parts ---

    def _go_on(self, client: Client, rest: bytes) -> None:
        """Give the connection to the client's own protocol."""
        transport: Any = self.transport
        self.transport = None
        transport.protocol = server = ProxyServer(self.factory, client, rest)
        server.makeConnection(transport)

    def _refuse(self, why: str) -> None:
        if self.factory.waits(self):
            self._stop()
        self._complain(why)
        self._abort()

    def _complain(self, why: str) -> None:
        _log.warn(
            'no PROXY header from {client} on "{listener}": {why}; '
            "have one sent (send-proxy-v2), or take that address out of proxy_from",
            client="local" if self._client.source is None else str(self._client.source),
            listener=self.factory.listener,
            why=why,
        )

    def _abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    def _stop(self) -> None:
        """Wait no longer."""
        self.factory.forget(self)
        self._deadline.discard(self)


def _introduced(client: Client, header: ProxyHeader) -> Client:
    """Return what is known of a client, with what the header says."""
    source = None if header.source is None else address(*header.source)
    destination = None if header.destination is None else address(*header.destination)
    # HAProxy's checks with version 1 name the very connection that they come by.
    if not header.relayed or (source is not None and source == client.source):
        return evolve(client, of_proxy=True)
    return evolve(client, source=source, destination=destination, relayed=True)
