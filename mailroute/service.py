"""From settings to a running service: here the rooms are put together."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from mailroute import config, dialogs
from mailroute.authenticators import AuthenticatorChain, BackendAuthenticator, CheckerAuthenticator, Link
from mailroute.config import Limits, Listener, Settings
from mailroute.delivery import DeliveryDoor, DeliverySession
from mailroute.descriptors import Descriptors
from mailroute.dials import Made, make_backend
from mailroute.envelope import DeliveryTerms
from mailroute.events import (
    DialogTerms,
    Farewell,
    LoginOrder,
    LoginRefused,
    Method,
    Opened,
    Reason,
    Refusal,
    Route,
    Security,
)
from mailroute.failures import FailureTiming
from mailroute.frontend import ProxyServerFactory
from mailroute.gate import Gate
from mailroute.house import Door, House, Join, Parting
from mailroute.interfaces import IBackend, IDeliveryProtocol, IKeyholder, ILoginProtocol
from mailroute.legs import IClientLeg, ISession
from mailroute.listening import Listening
from mailroute.pipe import Joint, Order, SpliceTerms, join
from mailroute.proofs import Proof, needs_binding, proof_of
from mailroute.relayed import RelayedFactory
from mailroute.routers import Chain
from mailroute.session import Session
from mailroute.sockets.endpoints import HubServerEndpoint
from mailroute.sources.hosts import Hosts
from mailroute.tls import KeyPair, ServerTLS
from mailroute.warm import WarmStock

_log = Logger(namespace="mailroute")


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
        left = self.factory.leave(Farewell.SHUTDOWN)
        return gatherResults([left, super().stopService()])


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
    running = assemble(settings, reactor, Share(gate, endpoints, server_contexts(settings)))
    if settings.metrics is not None:
        # Nor above, as it needs a library that only some have.
        from mailroute.metrics.service import of_one_process

        of_one_process(settings.metrics, limits, running, reactor).setServiceParent(running)
    return running


ServerContexts = Sequence[ServerTLS | None]
"""For each listener its side of TLS, or None if it has none."""


def server_contexts(settings: Settings, days: int = 1) -> ServerContexts:
    """Make the listeners' side of TLS.

    :param days: those of `mailroute.tls.ServerTLS`.
    """
    pairs = [
        KeyPair(block.chain.certificates, block.key.private, block.names) for block in settings.certificates
    ]
    # Those that ask for certificates of the same authorities share their contexts, too.
    made: dict[tuple[object, ...], ServerTLS] = {}

    def of(listener: Listener) -> ServerTLS | None:
        if not pairs or listener.security is Security.NONE:
            return None
        authorities = () if listener.client_ca is None else listener.client_ca.certificates
        if authorities not in made:
            made[authorities] = ServerTLS(pairs, days=days, authorities=authorities)
        return made[authorities].speaking(listener.protocol.alpn)

    return tuple(map(of, settings.listeners))


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


def assemble(settings: Settings, reactor: Any, share: Share) -> MailrouteService:
    """Put the rooms together, for this process."""
    authenticator = _authenticators(settings, reactor, share.salt)
    names = settings.user_names
    limits = settings.limits
    make = partial(make_backend, timeout=limits.backend_timeout, reactor=reactor, hosts=Hosts(reactor))
    made = {name: make(name, block) for name, block in settings.backends.items()}
    backends = {name: each.entrance for name, each in made.items()}
    for link in settings.authenticators:
        if isinstance(link.authenticator, BackendAuthenticator):
            link.authenticator.open = partial(_open, backends)
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
            _factory(listener, settings, house, share.gate, tls, descriptors, authenticator(listener)),
            listener.name,
            endpoint,
            announced=share.announced,
        )
        for listener, endpoint, tls in zip(settings.listeners, share.endpoints, share.tls, strict=True)
    ]
    asked = [
        *(link.authenticator for link in settings.authenticators),
        *(each for _, each in settings.routes),
    ]
    running = [each for each in asked if IService.providedBy(each)]
    running += [each.tokens for each in made.values() if each.tokens is not None]
    return MailrouteService(listeners, [descriptors, *running, *_stocks(settings, made)])


def _open(
    backends: Mapping[str, IBackend], backend: str, protocol: str, order: LoginOrder
) -> Deferred[Opened]:
    """Log in with what the client has sent, to see whether that opens anything."""
    found = dialogs.find(protocol)
    if found is None or backends[backend].method is not Method.REPLAY:
        detail = f'at {backend} no password can be tried in {protocol}: it needs login = "replay"'
        return fail(LoginRefused(Refusal(Reason.MISCONFIGURED, detail)))
    return backends[backend].open(found, order)


def _stocks(settings: Settings, made: Mapping[str, Made]) -> Iterator[IService]:
    """Have connections kept ready where that is wanted, for the protocols in which clients log in."""
    spoken = {listener.protocol.name: listener.protocol for listener in settings.listeners}
    for name, block in settings.backends.items():
        for protocol in spoken.values():
            if block.warm and protocol.logins and protocol.name in block.endpoints:
                yield WarmStock(made[name].dialled, protocol, block.warm)


def _authenticators(
    settings: Settings, reactor: Any, salt: bytes | None
) -> Callable[[Listener], IKeyholder | None]:
    """Return what says who checks a listener's logins here, if anybody does."""
    shared = AuthenticatorChain(settings.authenticators, salt) if settings.authenticators else None

    def of(listener: Listener) -> IKeyholder | None:
        if listener.authenticate is None:
            return shared
        checker = CheckerAuthenticator(listener.authenticate, partial(_in_thread, reactor))
        return AuthenticatorChain([Link("authenticate", checker)], salt)

    return of


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


Begin = Callable[[IClientLeg], ISession]


def _begin(listener: Listener, settings: Settings, house: House, authenticator: IKeyholder | None) -> Begin:
    """Return what makes a listener's sessions: they are of the kind that its protocol wants."""
    protocol = listener.protocol
    if IDeliveryProtocol.providedBy(protocol):
        return _delivering(listener, settings.limits, house)
    doors: dict[frozenset[Proof], Door] = {}

    def begin(leg: IClientLeg) -> ISession:
        # What can succeed may change with the users that a file has.
        offers = frozenset() if authenticator is None else authenticator.offers
        door = doors.get(offers)
        if door is None:
            terms = _terms(listener, settings)
            door = Door(listener.name, ILoginProtocol(protocol), terms, authenticator, _fixed(listener))
            doors[offers] = door
        return Session(house, door, leg)

    return begin


def _terms(listener: Listener, settings: Settings) -> DialogTerms:
    """Return what a listener's dialogs need to know, for what can be checked now."""
    starttls = listener.security is Security.STARTTLS
    proofs, mechanisms = settings.proofs(listener), settings.mechanisms(listener)
    certified = tuple(word for word in mechanisms if proof_of(word) is Proof.CERTIFICATE)
    bound = tuple(filter(needs_binding, mechanisms))
    return DialogTerms(
        tls_offered=starttls,
        login_allowed=not starttls or listener.cleartext_login,
        mechanisms=tuple(word for word in mechanisms if word not in (*certified, *bound)),
        certified=certified,
        bound=bound,
        passwords=proofs is None or Proof.PASSWORD in proofs,
        capabilities=listener.capabilities,
        bad_commands=settings.limits.bad_commands,
        host_name=_host_name(listener),
    )


def _fixed(listener: Listener) -> Route | None:
    return None if listener.backend is None else Route(listener.backend)


def _host_name(listener: Listener) -> str:
    return listener.host_name or socket.gethostname()


def _delivering(listener: Listener, limits: Limits, house: House) -> Begin:
    terms = DeliveryTerms(
        host_name=_host_name(listener),
        tls_offered=listener.security is Security.STARTTLS,
        extensions=listener.capabilities,
        message_size=limits.message_size,
        recipients=limits.recipients,
        messages=limits.messages,
        bad_commands=limits.bad_commands,
    )
    door = DeliveryDoor(
        listener.name,
        IDeliveryProtocol(listener.protocol),
        terms,
        split=listener.split,
        route=_fixed(listener),
        idle_timeout=limits.idle_timeout,
        stall_timeout=limits.stall_timeout,
        lookup_timeout=limits.backend_timeout,
    )
    return partial(DeliverySession, house, door)


def _factory(
    listener: Listener,
    settings: Settings,
    house: House,
    gate: Gate,
    tls: IOpenSSLServerConnectionCreator | None,
    descriptors: Descriptors,
    authenticator: IKeyholder | None,
) -> ProxyServerFactory:
    build = (
        partial(RelayedFactory, listener.name, listener.proxy_from)
        if listener.proxy_from
        else ProxyServerFactory
    )
    return build(
        house,
        _begin(listener, settings, house, authenticator),
        gate,
        tls,
        descriptors,
        tls_first=listener.security is Security.TLS,
    )


def _server_endpoint(listener: Listener, reactor: Any) -> IStreamServerEndpoint:
    return HubServerEndpoint(reactor, listener.server_endpoint(reactor))
