"""Looking up the addresses of the servers that sources ask, so that nobody else waits for that.

The system's own look-up cannot be given up, and may take half a minute where
no name server answers.  Twisted does it in the reactor's threads, of which
there are ten for everybody: a few questions to one server would take them all.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from threading import Thread
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from zope.interface import implementer

MAX_ADDRESSES = 16
"""Addresses of one name that are tried."""


@implementer(IReactorPluggableNameResolver)
class Hosts:
    """Makes endpoints of hosts, whose names it looks up: each in a thread of its own, and once at a time.

    To such an endpoint it is the reactor, but for the names.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.nameResolver = _Names(reactor)

    def endpoint(self, host: str, port: int, patience: float) -> IStreamClientEndpoint:
        """Return where to connect; connecting takes ``patience`` seconds at most."""
        made: IStreamClientEndpoint = HostnameEndpoint(self, host, port, patience)
        return made

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:  # noqa: N802
        """Do nothing: it keeps its own (`IReactorPluggableNameResolver.installNameResolver`)."""
        del resolver
        return self.nameResolver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IHostResolution)
class _Resolution:
    """A look-up; who has cancelled it is told all the same, and does not listen."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """Do nothing: the system cannot be told to stop."""


@implementer(IHostnameResolver)
class _Names:
    """Looks names up."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._waiting: dict[str, list[tuple[IResolutionReceiver, int]]] = {}

    def resolveHostName(  # noqa: N802
        self,
        resolutionReceiver: IResolutionReceiver,  # noqa: N803 - all of them are Twisted's names
        hostName: str,  # noqa: N803
        portNumber: int = 0,  # noqa: N803
        addressTypes: Sequence[type[IAddress]] | None = None,  # noqa: N803
        transportSemantics: str = "TCP",  # noqa: N803
    ) -> IHostResolution:
        """Look a name up (`IHostnameResolver.resolveHostName`)."""
        del addressTypes, transportSemantics  # whatever there is, over TCP
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        try:
            found = [str(ipaddress.ip_address(hostName))]
        except ValueError:
            self._ask(hostName).append((resolutionReceiver, portNumber))
        else:
            _tell(resolutionReceiver, found, portNumber)
        return resolution

    def _ask(self, name: str) -> list[tuple[IResolutionReceiver, int]]:
        """Return who waits for a name's addresses, which are being looked up."""
        waiting = self._waiting.get(name)
        if waiting is None:
            waiting = self._waiting[name] = []
            try:
                Thread(target=self._look, args=(name,), name="host", daemon=True).start()
            except RuntimeError:  # there is no thread left
                self._reactor.callLater(0, self._found, name, [])
        return waiting

    def _look(self, name: str) -> None:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            found = []
        addresses = [str(each[4][0]) for each in found if each[0] in (socket.AF_INET, socket.AF_INET6)]
        self._reactor.callFromThread(self._found, name, addresses)

    def _found(self, name: str, addresses: Sequence[str]) -> None:
        for receiver, port in self._waiting.pop(name):
            _tell(receiver, addresses[:MAX_ADDRESSES], port)


def _tell(receiver: IResolutionReceiver, addresses: Sequence[str], port: int) -> None:
    for address in addresses:
        kind = IPv6Address if ":" in address else IPv4Address
        receiver.addressResolved(kind("TCP", address, port))
    receiver.resolutionComplete()
