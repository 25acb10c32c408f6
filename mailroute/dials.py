"""From a ``[backend.…]`` block to a backend that can be dialled, and to what single routes want otherwise."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from attrs import frozen
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.threads import deferToThreadPool

from mailroute.backend import Backend, Dial
from mailroute.config import Backend as BackendSettings
from mailroute.config.oauth2 import OAuth2
from mailroute.events import Change, Method, Security
from mailroute.interfaces import IBackend
from mailroute.sockets.endpoints import HubClientEndpoint, suits
from mailroute.sources.hosts import Hosts
from mailroute.sources.trust import trusting
from mailroute.tls import ClientTLS, client_context
from mailroute.tokens.backend import TokenBackend
from mailroute.tokens.cache import Tokens
from mailroute.tokens.files import TokenFiles
from mailroute.tokens.grant import Grant
from mailroute.web import SparedWeb, Web, basic

MAX_CHANGED = 1024
"""Changed copies of a backend that are kept, with their TLS sessions; the one used longest ago goes first."""


@frozen
class Made:
    """A block's backend: ``entrance`` is where logins go, which dials by ``dialled``; its ``tokens``."""

    dialled: Backend
    entrance: IBackend
    tokens: Tokens | None = None


def make_backend(name: str, block: BackendSettings, *, timeout: float, reactor: Any, hosts: Hosts) -> Made:
    """Make the backend that a block describes.

    :param timeout: seconds for dialling and logging in together, 0 for no bound.
    :param hosts: looks up the names of hosts; one for all backends.
    """
    return _Maker(name, block, timeout, reactor, hosts).made


class _Maker:
    """Makes one block's backend, and its changed copies.

    What all of them trust is read once, when the first of them wants TLS.
    """

    def __init__(self, name: str, block: BackendSettings, timeout: float, reactor: Any, hosts: Hosts) -> None:
        self._name = name
        self._block = block
        self._timeout = timeout
        self._reactor = reactor
        self._hosts = hosts
        self._context: SSL.Context | None = None
        # Changed copies have the same users, and so the same tokens.
        self._tokens = None if block.oauth2 is None else _tokens(block.oauth2, reactor)
        backend = self._make(name, block)
        self.made = Made(backend, self._entrance(backend, block), self._tokens)

    def _changed(self, change: Change) -> IBackend:
        block = self._block.changed(change)
        where = ":".join(str(part) for part in (change.host, change.port) if part is not None)
        backend = self._make(f"{self._name} ({where})" if where else self._name, block)
        return self._entrance(backend, block)

    def _entrance(self, backend: Backend, block: BackendSettings) -> IBackend:
        if block.login is not Method.OAUTH2 or self._tokens is None:
            return backend
        return TokenBackend(backend, self._tokens)

    def _make(self, name: str, block: BackendSettings) -> Backend:
        return Backend(
            name,
            {protocol: self._dial(block, protocol) for protocol in block.endpoints},
            self._reactor,
            tls_first=block.security is Security.TLS,
            # To the backend itself, a token of ours is like one that a client has sent.
            method=Method.REPLAY if block.login is Method.OAUTH2 else block.login,
            master=block.master,
            master_separator=block.master_separator,
            identity=block.identity,
            timeout=self._timeout,
            change=lru_cache(MAX_CHANGED)(self._changed),
        )

    def _dial(self, block: BackendSettings, protocol: str) -> Dial:
        tls = None
        if block.security is not Security.NONE:
            self._context = self._context or client_context(block.ca)
            tls = ClientTLS(block.verify_name(protocol), self._context)
        return Dial(self._endpoint(block, protocol), tls, self._probe(block, protocol))

    def _probe(self, block: BackendSettings, protocol: str) -> str:
        """Return what ``mailroute probe`` takes for this: a block's name, or where a route has put it."""
        if block is self._block:
            return self._name
        endpoint = block.endpoints[protocol]
        return f"{endpoint} --protocol {protocol}" if isinstance(endpoint, str) else ""

    def _endpoint(self, block: BackendSettings, protocol: str) -> IStreamClientEndpoint:
        address = block.literal(protocol)
        if address is None or not suits(self._reactor):
            return block.client_endpoint(protocol, self._hosts)
        return HubClientEndpoint(self._reactor, *address)


def _tokens(block: OAuth2, reactor: Any) -> Tokens:
    form = {"scope": block.scope} if block.scope else {}
    headers: dict[str, str] = {}
    if block.client_secret_file is None:
        form["client_id"] = block.client_id
    else:
        headers = basic(block.client_id.encode("utf-8"), block.client_secret_file.value)
    tls = trusting(None if block.ca is None else block.ca.root)
    web = SparedWeb(Web(reactor, tls, block.timeout), block.token_url, reactor.seconds)
    grant = Grant(web, block.token_url, headers, form, block.personal, lambda: reactor.seconds())
    files = None
    if block.token_folder is not None and block.token_key_file is not None:
        files = TokenFiles(block.token_folder, block.token_key_file)
    return Tokens(grant, files, partial(_in_thread, reactor), reactor)


def _in_thread(reactor: Any, function: Callable[[], Any]) -> Deferred[Any]:
    return deferToThreadPool(reactor, reactor.getThreadPool(), function)
