"""Networks of IP addresses, and UNIX sockets, which have none."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from attrs import frozen

from mailroute.events import Address

UNIX = "unix"
"""Stands for all who come over a UNIX socket: who may open it, its permissions say."""

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


@frozen
class Networks:
    """Where connections may come from."""

    ip: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    unix: bool = False

    @classmethod
    def of(cls, words: Iterable[str]) -> Networks:
        """Return the networks that are written so, such as ``10.0.0.0/8``, ``2001:db8::1`` or ``unix``.

        :raises ValueError: one is written as none is.
        """
        words = tuple(words)
        return cls(tuple(_network(word) for word in words if word != UNIX), UNIX in words)

    def __bool__(self) -> bool:
        """Whether anybody can come from there."""
        return self.unix or bool(self.ip)

    def __contains__(self, source: Address | None) -> bool:
        """Whether a client comes from there; one without an address has come over a UNIX socket."""
        if source is None:
            return self.unix
        address = ipaddress.ip_address(source.host)
        return any(address in network for network in self.ip)

    def __str__(self) -> str:
        """Return them as they may be written."""
        return ", ".join([*map(str, self.ip), *([UNIX] if self.unix else [])])


def _network(word: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        if "%" in word:
            raise ValueError
        network = ipaddress.ip_network(word, strict=False)
    except ValueError:
        raise ValueError(
            f'"{word}" is no network: write for example "10.0.0.0/8", "2001:db8::/32" or "{UNIX}"'
        ) from None
    if "/" in word and ipaddress.ip_interface(word).ip != network.network_address:
        raise ValueError(f'"{word}" is an address within a network: write "{network}", or leave out the /')
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        # As a dual-stack socket shows IPv4; clients' addresses are compared as what they are.
        first = network.network_address.ipv4_mapped
        return ipaddress.IPv4Network((int(first or 0), network.prefixlen - 96))
    return network
