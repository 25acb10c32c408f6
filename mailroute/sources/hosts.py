"""Looking up the addresses of backends and of the servers that sources ask, so that nobody else waits for it.

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

from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import ClientFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import directlyProvides, implementer, providedBy

from mailroute.tls.client import is_address

MAX_LOOKING = 256
"""Names that are looked up at once, each of which takes a thread: routes may name any host, and each may take
half a minute where a name server hangs.  Whatever comes on top has no address for now."""

MAX_ADDRESSES = 16
"""Addresses of one name that are tried."""


class Hosts:
    """Makes endpoints of hosts, whose names it looks up: each in a thread of its own, and once at a time.

    To such an endpoint, and to any other of Twisted's that is given it, it is the reactor, but for the names.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.nameResolver = _Names(reactor)
        directlyProvides(self, providedBy(reactor), IReactorPluggableNameResolver)

    def endpoint(self, host: str, port: int, patience: float) -> IStreamClientEndpoint:
        """Return where to connect; connecting takes ``patience`` seconds at most."""
        made: IStreamClientEndpoint = HostnameEndpoint(self, host, port, patience)
        return made

    def connectTCP(  # noqa: N802 - Twisted's name, as the others
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30,
        bindAddress: Any = None,  # noqa: N803
    ) -> Any:
        """Connect (`IReactorTCP.connectTCP`), with `resolve` for the name if it is one."""
        if is_address(host):
            return self._reactor.connectTCP(host, port, factory, timeout, bindAddress)
        connector: Any = tcp.Connector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    def connectSSL(  # noqa: N802
        self,
        host: str,
        port: int,
        factory: ClientFactory,
        contextFactory: Any,  # noqa: N803
        timeout: float = 30,
        bindAddress: Any = None,  # noqa: N803
    ) -> Any:
        """Connect with TLS (`IReactorSSL.connectSSL`)."""
        secured: Any = TLSMemoryBIOFactory(contextFactory, True, factory)
        return self.connectTCP(host, port, secured, timeout, bindAddress)

    def resolve(self, name: str, timeout: Sequence[int] = ()) -> Deferred[str]:
        """Return a name's first address of IPv4 (`IReactorCore.resolve`), as Twisted's "tcp:" dials it."""
        del timeout  # of the connection, which is given up meanwhile
        first = _First(name)
        self.nameResolver.resolveHostName(first, name)
        return first.found

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:  # noqa: N802
        """Do nothing: it keeps its own (`IReactorPluggableNameResolver.installNameResolver`)."""
        del resolver
        return self.nameResolver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IResolutionReceiver)
class _First:
    """Waits for the first address of IPv4 that a name has."""

    def __init__(self, name: str) -> None:
        self._name = name
        # Who gives it up is not told, and does not listen.
        self.found: Deferred[str] = Deferred()

    def resolutionBegan(self, resolution: IHostResolution) -> None:  # noqa: N802
        """Nothing yet."""

    def addressResolved(self, address: IAddress) -> None:  # noqa: N802
        """Take it, if it is the first one."""
        if isinstance(address, IPv4Address) and not self.found.called:
            self.found.callback(address.host)

    def resolutionComplete(self) -> None:  # noqa: N802
        """Fail, if there was none."""
        if not self.found.called:
            self.found.errback(
                DNSLookupError(f"{self._name} has no IPv4 address, or cannot be looked up now")
            )


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
        if is_address(hostName):
            _tell(resolutionReceiver, [str(ipaddress.ip_address(hostName))], portNumber)
        else:
            self._ask(hostName).append((resolutionReceiver, portNumber))
        return resolution

    def _ask(self, name: str) -> list[tuple[IResolutionReceiver, int]]:
        """Return who waits for a name's addresses, which are being looked up."""
        waiting = self._waiting.get(name)
        if waiting is None:
            waiting = self._waiting[name] = []
            try:
                if len(self._waiting) > MAX_LOOKING:
                    raise RuntimeError
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
