"""TLS that a connection has before anybody here begins it."""

from __future__ import annotations

from typing import Any

from twisted.protocols.tls import TLSMemoryBIOProtocol


def shakes_hands(transport: object) -> bool:
    """Tell of a new connection whether its endpoint (``ssl:``, ``tls:``) has begun TLS.

    Twisted says that such a connection is made before it is safe to say
    anything on it: the handshake's end is told later.
    """
    return isinstance(transport, TLSMemoryBIOProtocol)


def below_tls(transport: Any) -> Any:
    """Return what of a new connection is below the TLS that its endpoint has begun; itself if there is none.

    What is written there, while the protocol is told that the connection is made, goes out before TLS begins.
    """
    while isinstance(transport, TLSMemoryBIOProtocol):
        transport = transport.transport
    return transport
