"""From settings to a running service: here the rooms are put together."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailroute import config
from mailroute.backend import Backend, Dial
from mailroute.checkers import check_with
from mailroute.config import Backend as BackendSettings
from mailroute.config import Listener, Security, Settings
from mailroute.descriptors import Descriptors, remedy
from mailroute.events import DialogTerms, Farewell
from mailroute.failures import FailureTiming
from mailroute.frontend import ProxyServerFactory
from mailroute.gate import Gate
from mailroute.house import Door, House, Join, Parting
from mailroute.interfaces import IBackend
from mailroute.pipe import Joint, Order, SpliceTerms, join
from mailroute.routers import Chain
from mailroute.sockets.endpoints import HubClientEndpoint, HubServerEndpoint, suits
from mailroute.tls import ClientTLS, KeyPair, ServerTLS, client_context

_log = Logger(namespace="mailroute")


class StartError(SystemExit, Exception):
    """mailroute cannot start; the text says why.

    As an `Exception` it makes twistd remove its pid file and tell the process
    that started a daemon; as a `SystemExit` it makes the interpreter print the
    text instead of a traceback, and exit with status 1.
    """


class Listening(Service):
    """A listener's port: it is bound, or the program does not start.

    :param name: what the log calls the listener.
    :param endpoint: returns what to listen on, or raises `ValueError`.
    :param announced: the log has it already that there is this listener.
    """

    def __init__(
        self,
        factory: IProtocolFactory,
        name: str,
        endpoint: Callable[[], IStreamServerEndpoint],
        *,
        announced: bool = False,
    ) -> None:
        self._announced = announced
        self._accepting = factory
        self._listener = name
        self._endpoint = endpoint
        self._listening: Deferred[IListeningPort] | None = None
        self._port: IListeningPort | None = None

    def privilegedStartService(self) -> None:
        """Bind, while the program may still bind low ports.

        :raises StartError: it cannot.
        """
        super().privilegedStartService()
        failed: list[Failure] = []
        try:
            self._listening = self._endpoint().listen(self._accepting)
        except ValueError as error:
            raise StartError(self._cannot(error)) from None
        self._listening.addCallbacks(self._listens, failed.append)
        if failed:
            raise StartError(self._cannot(failed[0].value))

    def startService(self) -> None:
        """Begin, and bind if that has not been done (a service that is added late)."""
        super().startService()
        if self._listening is None:
            self.privilegedStartService()

    def stopService(self) -> Deferred[Any]:
        """Stop listening."""
        super().stopService()
        port, self._port, self._listening = self._port, None, None
        return succeed(None) if port is None else maybeDeferred(port.stopListening)

    def _listens(self, port: IListeningPort) -> None:
        self._port = port
        if not self._announced:
            _log.info("listening: {listener}", listener=self._listener)

    def _cannot(self, error: BaseException | None) -> str:
        reason = getattr(error, "socketError", None) or error
        busy = getattr(reason, "errno", None) == errno.EADDRINUSE
        advice = "stop what uses it, or change the listener's endpoint" if busy else "change its endpoint"
        advice = remedy(reason).removeprefix("; ") or advice
        return f"mailroute: cannot listen on {self._listener}: {reason}: {advice}"


class ListenerService(Listening):
    """One listener, and the sessions of those who come there."""

    def __init__(
        self,
        factory: ProxyServerFactory,
        name: str,
        endpoint: Callable[[], IStreamServerEndpoint],
        *,
        announced: bool = False,
    ) -> None:
        super().__init__(factory, name, endpoint, announced=announced)
        self.factory = factory

    def _listens(self, port: IListeningPort) -> None:
        super()._listens(port)
        factory = self.factory
        # A worker's listener may have several ports, and get more.
        for_each = getattr(port, "for_each", lambda do: do(port))
        for_each(lambda one: factory.descriptors.watch(one, lambda: factory.made))

    def stopService(self) -> Deferred[Any]:
        """Stop listening, and end the sessions."""
        self.factory.leave(Farewell.SHUTDOWN)
        return super().stopService()


class MailrouteService(MultiService):
    """All listeners, and the routers that need to run."""

    def __init__(self, listeners: Iterable[ListenerService], helpers: Iterable[IService]) -> None:
        super().__init__()
        # Those that answer start before those that ask.
        for child in (*helpers, *listeners):
            child.setServiceParent(self)


def load(path: str | Path, reactor: Any = None) -> Settings:
    """Read a configuration file.

    :param reactor: the reactor that will run it; the global one unless given.
    :raises mailroute.config.ConfigError: says everything that is wrong, each with its line.
    """
    return config.load(Path(path), _reactor(reactor))


def service(settings: Settings, reactor: Any = None) -> IService:
    """Make the service that does what the settings say.

    Put it beside other services under one application, as in
    ``examples/mailroute.tac``.  If the settings ask for workers, it starts
    them, and carries no mail itself.

    :param reactor: the reactor to run in; the global one unless given.
    """
    reactor = _reactor(reactor)
    if settings.worker_count > 1:
        # Not above: one process needs nothing of it.
        from mailroute.workers.parent import WorkersService

        return WorkersService(settings, reactor)
    limits = settings.limits
    gate = Gate(limits.connections, limits.connections_per_address)
    endpoints = [partial(_server_endpoint, listener, reactor) for listener in settings.listeners]
    return assemble(settings, reactor, Share(gate, endpoints, server_contexts(settings)))


ServerContexts = Sequence[ServerTLS | None]
"""For each listener its side of TLS, or None if it has none."""


def server_contexts(settings: Settings, days: int = 1) -> ServerContexts:
    """Make the listeners' side of TLS.

    :param days: those of `mailroute.tls.ServerTLS`.
    """
    pairs = [
        KeyPair(block.chain.certificates, block.key.private, block.names) for block in settings.certificates
    ]
    tls = ServerTLS(pairs, days=days) if pairs else None
    return tuple(
        None if tls is None or listener.security is Security.NONE else tls.speaking(listener.protocol.alpn)
        for listener in settings.listeners
    )


@frozen
class Share:
    """What the processes that carry the mail have in common, as one of them sees it.

    ``endpoints`` return what each listener listens on, or raise `ValueError`;
    ``salt`` is that of `FailureTiming`; ``announced``: somebody else has
    said already that there are these listeners.
    """

    gate: Gate
    endpoints: Sequence[Callable[[], IStreamServerEndpoint]]
    tls: ServerContexts
    salt: bytes | None = None
    announced: bool = False


def assemble(settings: Settings, reactor: Any, share: Share) -> IService:
    """Put the rooms together, for this process."""
    in_thread = partial(_in_thread, reactor)
    names = settings.user_names
    limits = settings.limits
    backends = {name: _backend(name, block, settings, reactor) for name, block in settings.backends.items()}
    house = House(
        router=Chain(settings.routes, frozenset(backends)),
        backends=backends,
        normalise=names.from_wire,
        join=_join(settings, reactor),
        failures=FailureTiming(limits.failure_delay, tuple(backends), salt=share.salt),
        clock=reactor,
        login_timeout=limits.login_timeout,
        failed_logins=limits.failed_logins,
    )
    descriptors = Descriptors(reactor, limits.connections)
    listeners = [
        ListenerService(
            _factory(listener, settings, house, share.gate, tls, descriptors, in_thread),
            listener.name,
            endpoint,
            announced=share.announced,
        )
        for listener, endpoint, tls in zip(settings.listeners, share.endpoints, share.tls, strict=True)
    ]
    running = [router for _, router in settings.routes if IService.providedBy(router)]
    return MailrouteService(listeners, [descriptors, *running])


def _reactor(given: Any) -> Any:
    if given is not None:
        return given
    # Importing it installs it, hence only where nobody has chosen one.
    from twisted.internet import reactor

    return reactor


def _in_thread(reactor: Any, function: Callable[[], Any]) -> Deferred[Any]:
    return deferToThreadPool(reactor, reactor.getThreadPool(), function)


def _join(settings: Settings, clock: IReactorTime) -> Join:
    limits = settings.limits
    terms = SpliceTerms(
        idle_timeout=limits.idle_timeout,
        stall_timeout=limits.stall_timeout,
        lifetime=limits.session_lifetime,
        names=("the client", "the backend"),
    )

    def joined(client: Any, backend: Any, to_client: bytes, to_backend: bytes, session: Parting) -> Joint:
        return join(Order(client, backend, to_client, to_backend, terms, clock), session)

    return joined


def _backend(name: str, block: BackendSettings, settings: Settings, reactor: Any) -> IBackend:
    context = None if block.security is Security.NONE else client_context(block.ca)
    dials = {
        protocol: Dial(
            _client_endpoint(block, protocol, reactor),
            None if context is None else ClientTLS(block.verify_name(protocol), context),
        )
        for protocol in block.endpoints
    }
    return Backend(
        name,
        dials,
        reactor,
        tls_first=block.security is Security.TLS,
        method=block.login,
        master=block.master,
        identity=block.identity,
        timeout=settings.limits.backend_timeout,
    )


def _factory(
    listener: Listener,
    settings: Settings,
    house: House,
    gate: Gate,
    tls: IOpenSSLServerConnectionCreator | None,
    descriptors: Descriptors,
    in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
) -> ProxyServerFactory:
    starttls = listener.security is Security.STARTTLS
    terms = DialogTerms(
        tls_offered=starttls,
        login_allowed=not starttls or listener.cleartext_login,
        mechanisms=listener.mechanisms,
        capabilities=listener.capabilities,
        bad_commands=settings.limits.bad_commands,
    )
    check = None if listener.authenticate is None else check_with(listener.authenticate, in_thread)
    return ProxyServerFactory(
        house,
        Door(listener.name, listener.protocol, terms, check),
        gate,
        tls,
        descriptors,
        tls_first=listener.security is Security.TLS,
    )


def _client_endpoint(block: BackendSettings, protocol: str, reactor: Any) -> IStreamClientEndpoint:
    address = block.literal(protocol)
    if address is None or not suits(reactor):
        return block.client_endpoint(protocol, reactor)
    return HubClientEndpoint(reactor, *address)


def _server_endpoint(listener: Listener, reactor: Any) -> IStreamServerEndpoint:
    return HubServerEndpoint(reactor, listener.server_endpoint(reactor))
