"""ProxyServer: the client's connection until it is joined, and the factory of a listener."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve
from OpenSSL import SSL
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IOpenSSLServerConnectionCreator,
    IPushProducer,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.arrivals import arrival
from mailroute.descriptors import NOTHING, Descriptors
from mailroute.events import Client, Farewell
from mailroute.gate import Gate
from mailroute.house import House
from mailroute.legs import IClientLeg, IDeparture, ISession
from mailroute.sockets.transport import HubTransport
from mailroute.tls import asked_for_certificate, channel_binding, client_certificate, explain, shakes_hands

LINGER = 5.0
"""Seconds that a client has to take the last words, and to finish its side of TLS's end."""

MAX_TURNED_AWAY = 100
"""Connections over the limits that may be open at once for the sake of a polite answer."""


@implementer(IClientLeg, IHalfCloseableProtocol, IHandshakeListener)
class ProxyServer(Protocol):
    """A client's connection: its bytes go to the session, the session's words to it.

    :param client: who it is, if somebody has found out before; else the transport tells.
    :param first: what has been read of the client's bytes by then.
    """

    def __init__(self, factory: ProxyServerFactory, client: Client | None = None, first: bytes = b"") -> None:
        self.factory: ProxyServerFactory = factory
        self._client = client
        self._first = first
        self._session: ISession | None = None
        self._linger: IDelayedCall | None = None
        self._turned_away: Farewell | None = None
        self._tls_first = False
        self._shaking_hands = False
        self._kept = NOTHING

    # --- what the transport tells it ---

    def connectionMade(self) -> None:
        """Count the client in, and begin."""
        transport = self._transport()
        if self._client is None:
            self._client = arrival(transport)
        self._turned_away = self._admit(transport)
        if self._turned_away is not None:
            if self.factory.turned_away >= MAX_TURNED_AWAY:
                self._client = None
                transport.abortConnection()
                return
            self.factory.turned_away += 1
            # A handshake is no reason to keep somebody who cannot stay.
            self._linger = self.factory.house.clock.callLater(LINGER, transport.abortConnection)
        self._session = self.factory.begin(self)
        self.factory.sessions[self._session] = None
        if self.factory.tls_first:
            self._tls_first = True
            self.start_tls()
            _unread(transport, self._take_first())
        elif shakes_hands(transport):
            self._tls_first = self._shaking_hands = True
        else:
            self._begin()
            # Unless the connection has been handed over meanwhile, and they with it.
            _unread(transport, self._take_first())

    def handshakeCompleted(self) -> None:
        """TLS is on."""
        self._shaking_hands = False
        connection = self._transport().getHandle()
        name = connection.get_servername()
        self._client = evolve(
            self.client(),
            tls=connection.get_protocol_version_name(),
            server_name=name.decode("ascii", "backslashreplace")[:255] if name else None,
            certificate=client_certificate(connection),
            cipher=connection.get_cipher_name(),
            asked=asked_for_certificate(connection),
        )
        if self._tls_first:
            self._tls_first = False
            self._begin()
        elif self._session is not None:
            self._session.secured()

    def dataReceived(self, data: bytes) -> None:
        """Bytes came from the client."""
        if self._session is not None:
            self._session.received(data)

    def readConnectionLost(self) -> None:
        """The client has shut its writing side."""
        if self._session is not None:
            self._session.half_closed()
        elif self.connected:
            self._transport().loseConnection()

    def writeConnectionLost(self) -> None:
        """Our writing side is shut; only the splice does that."""

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """The client, or the network, has ended the connection."""
        self.connected = 0
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        # Counted out before the log says so.
        self._leave()
        if self._session is not None:
            self._session.lost(_explain(reason))

    # --- IClientLeg ---

    def write(self, data: bytes) -> None:
        """Send these bytes to the client."""
        self._transport().write(data)

    def start_tls(self) -> None:
        """Begin the TLS handshake."""
        self._shaking_hands = True
        self._transport().startTLS(self.factory.tls)

    def pause(self) -> None:
        """Stop reading."""
        self._transport().pauseProducing()

    def resume(self) -> None:
        """Read again."""
        self._transport().resumeProducing()

    def watch(self, producer: IPushProducer) -> None:
        """Pause this one while the client does not take what is written."""
        self._transport().registerProducer(producer, True)

    def close(self) -> None:
        """Close once everything is written, or after `LINGER` seconds."""
        self._forget_session()
        if not self.connected:
            return
        transport = self._transport()
        # With one, Twisted's TLS would never close.
        transport.unregisterProducer()
        if self._shaking_hands:
            # There is no way to say anything yet, and nothing to wait for.
            transport.abortConnection()
            return
        # A paused transport would not see the client's answer to the end.
        self.resume()
        transport.loseConnection()
        if self.connected and self._linger is None:
            self._linger = self.factory.house.clock.callLater(LINGER, transport.abortConnection)

    def dialling(self) -> None:
        """Make room for the backend's connection."""
        kept, self._kept = self._kept, NOTHING
        self.factory.descriptors.give_back(kept)

    def client(self) -> Client:
        """Return what is known of the client now."""
        assert self._client is not None  # noqa: S101 (connectionMade sets it)
        return self._client

    def channel_binding(self) -> bytes | None:
        """Return what tells this TLS connection from all others, if it has that."""
        return None if self.client().tls is None else channel_binding(self._transport().getHandle())

    def hand_over(self) -> tuple[ITransport, IDeparture, bytes]:
        """Return the transport for the splice, who counts the client out, and what nobody was told."""
        transport = self._transport()
        departure = _Departure(self.factory, self._host(), self._session)
        self.transport = self._session = self._client = None
        return transport, departure, self._take_first()

    # --- its parts ---

    def _transport(self) -> Any:
        """The transport: an ITransport, IPushProducer and ITLSTransport, which have no common name."""
        assert self.transport is not None  # noqa: S101 (called while connected)
        return self.transport

    def _host(self) -> str | None:
        """The address that counts: not that of a proxy in front, whose limit its clients would share."""
        client = self.client()
        return None if client.source is None or client.of_proxy else client.source.host

    def _take_first(self) -> bytes:
        first, self._first = self._first, b""
        return first

    def _admit(self, transport: Any) -> Farewell | None:
        """Count the client in, or return why it cannot stay."""
        refused = self.factory.gate.enter(self._host())
        if refused is not None:
            return refused
        number = transport.fileno() if hasattr(transport, "fileno") else 0
        kept = self.factory.descriptors.keep(number)
        if kept is None:
            self.factory.gate.leave(self._host())
            return Farewell.NO_DESCRIPTORS
        self._kept = kept
        return None

    def _begin(self) -> None:
        if self._session is None:
            return
        if self._turned_away is not None:
            self._session.leave(self._turned_away)
        else:
            self._session.begin()

    def _forget_session(self) -> None:
        if self._session is not None:
            self.factory.sessions.pop(self._session, None)
            self._session = None

    def _leave(self) -> None:
        """Count the client out, once."""
        self.dialling()
        self.factory.descriptors.left()
        if self._client is None:
            return
        if self._turned_away is None:
            self.factory.gate.leave(self._host())
        else:
            self.factory.turned_away -= 1
        self._client = None


def _unread(transport: Any, data: bytes) -> None:
    """Have a transport tell bytes once more, to whoever is to have them now: TLS, if that has begun."""
    if not data:
        return
    if isinstance(transport, HubTransport):
        transport.unread(data)
    elif transport.connected and not transport.disconnecting:
        # What Twisted's transports have for TLS is their protocol.
        transport.protocol.dataReceived(data)


@implementer(IDeparture)
class _Departure:
    """What is left of a `ProxyServer` once its transport is spliced: thousands of these may be held."""

    __slots__ = ("_factory", "_host", "_session")

    def __init__(self, factory: ProxyServerFactory, host: str | None, session: ISession | None) -> None:
        self._factory = factory
        self._host = host
        self._session = session

    def close(self) -> None:
        """Count the client out."""
        factory, session = self._factory, self._session
        if session is not None:
            self._session = None
            factory.sessions.pop(session, None)
            factory.gate.leave(self._host)
            factory.descriptors.left()


def _explain(reason: Failure) -> str:
    if reason.check(ConnectionDone):
        return "the client closed the connection"
    if reason.check(SSL.Error):
        why = explain(reason)
        if "wrong version number" in why:
            # OpenSSL's words for a first byte that is none of TLS.
            why += (
                ": it did not begin with TLS; "
                "if it is a proxy that sends a PROXY header, name it in this listener's proxy_from"
            )
        return f"TLS with the client failed ({why})"
    if reason.check(ConnectionLost):
        return "the client's connection was lost"
    return f"the client's connection broke ({type(reason.value).__name__})"


class ProxyServerFactory(Factory[Protocol]):
    """Makes the connections of one listener.

    :param begin: makes the session of one connection, which is of the protocol's kind.
    :param tls: makes the server's side of TLS; None where there is none.
    :param tls_first: TLS begins with the first byte.
    """

    noisy = False

    def __init__(
        self,
        house: House,
        begin: Callable[[IClientLeg], ISession],
        gate: Gate,
        tls: IOpenSSLServerConnectionCreator | None,
        descriptors: Descriptors,
        *,
        tls_first: bool,
    ) -> None:
        self.house = house
        self.begin = begin
        self.gate = gate
        self.tls = tls
        self.descriptors = descriptors
        self.tls_first = tls_first
        # Not a set, which grows fourfold at once and so takes twice the memory.
        self.sessions: dict[ISession, None] = {}
        self.turned_away = 0
        self.made = 0

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Make the protocol of a client's connection."""
        del addr  # the transport knows both
        self.made += 1
        return ProxyServer(self)

    def leave(self, why: Farewell) -> Deferred[Any]:
        """End all sessions; fires when the last of them has ended."""
        left = [session.leave(why) for session in list(self.sessions)]
        return DeferredList([each for each in left if each is not None])
