"""What is known of a client when its connection has just been made."""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import ITCPTransport

from mailroute.events import Address, Client
from mailroute.sockets.transport import HubTransport


def arrival(transport: Any) -> Client:
    """Return the client behind a transport, with the name of its session."""
    return Client(next(_session_ids), *_ends(transport))


def address(host: str, port: int, *_: int) -> Address:
    """Return an address in the one form that backends, limits and the log want."""
    return Address(_as_it_is(host) if ":" in host else host, port)


def _ends(transport: Any) -> tuple[Address | None, Address | None]:
    """Return the client's address, and the one that it has connected to."""
    if isinstance(transport, HubTransport):
        theirs, ours = transport.sockaddrs()
        # The address of a UNIX socket is a path.
        return (address(*theirs), address(*ours)) if isinstance(ours, tuple) else (None, None)
    if ITCPTransport.providedBy(transport):
        transport.setTcpNoDelay(True)
    peer, host = transport.getPeer(), transport.getHost()
    if not isinstance(host, IPv4Address | IPv6Address):
        return None, None
    return address(peer.host, peer.port), address(host.host, host.port)


@lru_cache(4096)
def _as_it_is(host: str) -> str:
    """Return an IPv6 address without its zone, and an IPv4 address as such.

    A dual-stack listener shows IPv4 clients as IPv6; backends and limits want them as they are.
    """
    host = host.partition("%")[0]
    mapped = ipaddress.IPv6Address(host).ipv4_mapped
    return host if mapped is None else str(mapped)


def _make_session_ids() -> Iterator[str]:
    """Yield random strings of 16 characters, 96 bits each; the system is asked for many at a time."""
    while True:
        block = base64.urlsafe_b64encode(os.urandom(12 * 64)).decode("ascii")
        yield from (block[start : start + 16] for start in range(0, len(block), 16))


_session_ids = _make_session_ids()
