"""What a session and its client's connection are to each other."""

# Interfaces declare methods without "self", as zope.interface wants it.
# ruff: noqa: N805

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, ITransport
from zope.interface import Interface

from mailroute.events import Client, Farewell


class ISession(Interface):
    """What carries one client's connection, as that sees it."""

    def begin() -> None:
        """The connection is ready, TLS from the first byte included: greet."""

    def received(data: bytes) -> None:
        """Bytes came from the client."""

    def half_closed() -> None:
        """The client will send no more, and may still read."""

    def secured() -> None:
        """TLS that was asked for is on."""

    def lost(why: str) -> None:
        """The client's connection is gone."""

    def leave(why: Farewell) -> Deferred[None] | None:
        """End the connection; a Deferred that fires when that is done, if it cannot be at once."""


class IClientLeg(Interface):
    """A client's connection, as its session sees it."""

    def write(data: bytes) -> None:
        """Send these bytes to the client."""

    def start_tls() -> None:
        """Begin the TLS handshake; the session's ``secured`` is called at its end."""

    def pause() -> None:
        """Stop reading; what has been read already may still arrive."""

    def resume() -> None:
        """Read again; if the client has shut its writing side, say so again."""

    def watch(producer: IPushProducer) -> None:
        """Pause this one while the client does not take what is written, and resume it then."""

    def close() -> None:
        """Close once everything is written, or soon in any case."""

    def dialling() -> None:
        """Make room for the backend's connection: it is dialled now."""

    def client() -> Client:
        """Return what is known of the client now."""

    def channel_binding() -> bytes | None:
        """Return what tells this TLS connection from all others (tls-exporter, RFC 9266), if it has that."""

    def hand_over() -> tuple[ITransport, IDeparture, bytes]:
        """Return the transport for the splice, what takes the leg's place, and bytes for the backend.

        These were read with a header in front of them, and the session has not been told.  The leg is
        not used again.
        """


class IDeparture(Interface):
    """What is left of a client's connection that has been spliced."""

    def close() -> None:
        """Count the client out: the splice has ended."""
