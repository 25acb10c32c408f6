"""TLS that a connection has before anybody here begins it."""

from __future__ import annotations

from twisted.protocols.tls import TLSMemoryBIOProtocol


def shakes_hands(transport: object) -> bool:
    """Tell of a new connection whether its endpoint (``ssl:``, ``tls:``) has begun TLS.

    Twisted says that such a connection is made before it is safe to say
    anything on it: the handshake's end is told later.
    """
    return isinstance(transport, TLSMemoryBIOProtocol)
