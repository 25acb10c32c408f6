"""How many connections there may be at once: in all, and from one address."""

from __future__ import annotations

import ipaddress
from collections import Counter

from mailroute.events import Farewell


def network_of(host: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 that an IPv6 address is in.

    One customer commonly gets a whole /64, so that counting single IPv6
    addresses would bound nothing.
    """
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


class Gate:
    """Counts the connections of all listeners.

    :param total: how many there may be at once, 0 for any number.
    :param per_address: how many from one address, 0 for any number.
    """

    def __init__(self, total: int, per_address: int) -> None:
        self._total = total
        self._per_address = per_address
        self._count = 0
        self._by_network: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many connections there are."""
        return self._count

    def enter(self, host: str | None) -> Farewell | None:
        """Count a connection in, or return why it is one too many and not counted.

        :param host: the client's IP address; None for a UNIX socket, which is
            not counted by address.
        """
        if self._total and self._count >= self._total:
            return Farewell.TOO_MANY
        if host is not None:
            network = network_of(host)
            if self._per_address and self._by_network[network] >= self._per_address:
                return Farewell.TOO_MANY_FROM_ADDRESS
            self._by_network[network] += 1
        self._count += 1
        return None

    def leave(self, host: str | None) -> None:
        """Count a connection out that was counted in."""
        self._count -= 1
        if host is not None:
            network = network_of(host)
            self._by_network[network] -= 1
            if not self._by_network[network]:
                del self._by_network[network]
