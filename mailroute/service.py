"""From settings to a running service: here the rooms are put together."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IReactorFDSet,
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
from mailroute.dial import Address
from mailroute.events import DialogTerms, Farewell
from mailroute.failures import FailureTiming
from mailroute.frontend import ProxyServerFactory
from mailroute.gate import Gate
from mailroute.house import Door, House
from mailroute.interfaces import IBackend
from mailroute.pipe import SpliceTerms, splice
from mailroute.routers import Chain
from mailroute.tls import ClientTLS, KeyPair, ServerTLS, client_context

_log = Logger(namespace="mailroute")


class StartError(SystemExit, Exception):
    """mailroute cannot start; the text says why.

    As an `Exception` it makes twistd remove its pid file and tell the process
    that started a daemon; as a `SystemExit` it makes the interpreter print the
    text instead of a traceback, and exit with status 1.
    """


class ListenerService(Service):
    """One listener: it listens, or the program does not start."""

    def __init__(self, factory: ProxyServerFactory, listener: Listener, reactor: Any) -> None:
        self.factory = factory
        self._listener = listener
        self._reactor = reactor
        self._listening: Deferred[IListeningPort] | None = None
        self._port: IListeningPort | None = None

    def privilegedStartService(self) -> None:
        """Bind, while the program may still bind low ports.

        :raises StartError: it cannot.
        """
        super().privilegedStartService()
        failed: list[Failure] = []
        self._listening = self._endpoint().listen(self.factory)
        self._listening.addCallbacks(self._listens, failed.append)
        if failed:
            raise StartError(self._cannot(failed[0].value))

    def startService(self) -> None:
        """Begin, and bind if that has not been done (a service that is added late)."""
        super().startService()
        if self._listening is None:
            self.privilegedStartService()

    def stopService(self) -> Deferred[Any]:
        """Stop listening, and end the sessions."""
        super().stopService()
        self.factory.leave(Farewell.SHUTDOWN)
        stopping: Deferred[Any] = Deferred()
        port, self._port, self._listening = self._port, None, None
        if port is None:
            stopping.callback(None)
            return stopping
        stopped = port.stopListening()
        return stopped if isinstance(stopped, Deferred) else stopping

    def _endpoint(self) -> IStreamServerEndpoint:
        try:
            return self._listener.server_endpoint(self._reactor)
        except ValueError as error:
            raise StartError(self._cannot(error)) from None

    def _listens(self, port: IListeningPort) -> None:
        self._port = port
        _log.info("listening: {listener}", listener=self._listener.name)

    def _cannot(self, error: BaseException | None) -> str:
        reason = getattr(error, "socketError", None) or error
        busy = getattr(reason, "errno", None) == errno.EADDRINUSE
        remedy = "stop what uses it, or change the listener's endpoint" if busy else "change its endpoint"
        return f"mailroute: cannot listen on {self._listener.name}: {reason}: {remedy}"


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
    ``examples/mailroute.tac``.

    :param reactor: the reactor to run in; the global one unless given.
    """
    reactor = _reactor(reactor)
    in_thread = partial(_in_thread, reactor)
    names = settings.user_names
    limits = settings.limits
    backends = {name: _backend(name, block, settings, reactor) for name, block in settings.backends.items()}
    house = House(
        router=Chain(settings.routes, frozenset(backends)),
        backends=backends,
        normalise=names.from_wire,
        join=_join(settings, reactor),
        failures=FailureTiming(limits.failure_delay, tuple(backends)),
        clock=reactor,
        login_timeout=limits.login_timeout,
        failed_logins=limits.failed_logins,
    )
    gate = Gate(limits.connections, limits.connections_per_address)
    pairs = [
        KeyPair(block.chain.certificates, block.key.private, block.names) for block in settings.certificates
    ]
    tls = ServerTLS(pairs) if pairs else None
    listeners = [
        ListenerService(_factory(listener, settings, house, gate, tls, in_thread), listener, reactor)
        for listener in settings.listeners
    ]
    running = [router for _, router in settings.routes if IService.providedBy(router)]
    return MailrouteService(listeners, running)


def _reactor(given: Any) -> Any:
    if given is not None:
        return given
    # Importing it installs it, hence only where nobody has chosen one.
    from twisted.internet import reactor

    return reactor


def _in_thread(reactor: Any, function: Callable[[], Any]) -> Deferred[Any]:
    return deferToThreadPool(reactor, reactor.getThreadPool(), function)


def _join(settings: Settings, clock: IReactorTime) -> Callable[..., Deferred[Any]]:
    limits = settings.limits
    terms = SpliceTerms(
        idle_timeout=limits.idle_timeout,
        stall_timeout=limits.stall_timeout,
        lifetime=limits.session_lifetime,
        names=("the client", "the backend"),
    )

    def join(client: Any, backend: Any, to_client: bytes, to_backend: bytes) -> Deferred[Any]:
        return splice(client, backend, first_to_a=to_client, first_to_b=to_backend, terms=terms, clock=clock)

    return join


def _backend(name: str, block: BackendSettings, settings: Settings, reactor: Any) -> IBackend:
    context = None if block.security is Security.NONE else client_context(block.ca)
    dials = {
        protocol: Dial(
            _where(block, protocol, reactor),
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


def _where(block: BackendSettings, protocol: str, reactor: Any) -> Address | IStreamClientEndpoint:
    address = block.address(protocol)
    if address is None or not IReactorFDSet.providedBy(reactor):
        return block.client_endpoint(protocol, reactor)
    return Address(reactor, **address)


def _factory(
    listener: Listener,
    settings: Settings,
    house: House,
    gate: Gate,
    tls: ServerTLS | None,
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
        None if tls is None or listener.security is Security.NONE else tls.speaking(listener.protocol.alpn),
        tls_first=listener.security is Security.TLS,
    )
