"""From a ``[backend.…]`` block to a backend that can be dialled, and to what single routes want otherwise."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IStreamClientEndpoint

from mailroute.backend import Backend, Dial
from mailroute.config import Backend as BackendSettings
from mailroute.events import Change, Security
from mailroute.interfaces import IBackend
from mailroute.sockets.endpoints import HubClientEndpoint, suits
from mailroute.tls import ClientTLS, client_context

MAX_CHANGED = 1024
"""Changed copies of a backend that are kept, with their TLS sessions; the one used longest ago goes first."""


def make_backend(name: str, block: BackendSettings, *, timeout: float, reactor: Any) -> Backend:
    """Make the backend that a block describes.

    :param timeout: seconds for dialling and logging in together, 0 for no bound.
    """
    return _Maker(name, block, timeout, reactor).backend


class _Maker:
    """Makes one block's backend, and its changed copies.

    What all of them trust is read once, when the first of them wants TLS.
    """

    def __init__(self, name: str, block: BackendSettings, timeout: float, reactor: Any) -> None:
        self._name = name
        self._block = block
        self._timeout = timeout
        self._reactor = reactor
        self._context: SSL.Context | None = None
        self.backend = self._make(name, block)

    def _changed(self, change: Change) -> IBackend:
        block = self._block.changed(change)
        where = ":".join(str(part) for part in (change.host, change.port) if part is not None)
        return self._make(f"{self._name} ({where})" if where else self._name, block)

    def _make(self, name: str, block: BackendSettings) -> Backend:
        return Backend(
            name,
            {protocol: self._dial(block, protocol) for protocol in block.endpoints},
            self._reactor,
            tls_first=block.security is Security.TLS,
            method=block.login,
            master=block.master,
            identity=block.identity,
            timeout=self._timeout,
            change=lru_cache(MAX_CHANGED)(self._changed),
        )

    def _dial(self, block: BackendSettings, protocol: str) -> Dial:
        tls = None
        if block.security is not Security.NONE:
            self._context = self._context or client_context(block.ca)
            tls = ClientTLS(block.verify_name(protocol), self._context)
        return Dial(_client_endpoint(block, protocol, self._reactor), tls)


def _client_endpoint(block: BackendSettings, protocol: str, reactor: Any) -> IStreamClientEndpoint:
    address = block.literal(protocol)
    if address is None or not suits(reactor):
        return block.client_endpoint(protocol, reactor)
    return HubClientEndpoint(reactor, *address)
