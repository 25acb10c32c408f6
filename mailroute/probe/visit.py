"""One connection to a backend that is looked at: as every other, with a probe for its login."""

from __future__ import annotations

import secrets
from typing import Any

from attrs import frozen
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.backend import Backend, Dial
from mailroute.dialogs import NoLogin
from mailroute.events import (
    NOBODY,
    Address,
    Client,
    Identity,
    LoginEvent,
    LoginOrder,
    LoginRefused,
    LoginTerms,
    Method,
    Refusal,
)
from mailroute.interfaces import ILogin, IMailProtocol, IProbe, IProbedProtocol
from mailroute.sights import Greeted, Introduced, Offered, Sight
from mailroute.tls import Inspected, Inspector

MAX_HEARD = 512
"""Bytes of a backend's first ones that are kept to tell what it speaks: more than a greeting has."""

LINGER = 1.0
"""Seconds for a backend to take the last words."""

FROM, TO = Address("192.0.2.1", 40000), Address("192.0.2.2", 143)
"""Whom the backend is told about: nobody's addresses (RFC 5737), so that its log shows if it believed us."""


@frozen
class Way:
    """How to come in: with TLS from the first byte or on request, and with what word of the client."""

    tls_first: bool = False
    starttls: bool = True
    identity: Identity = Identity.NATIVE

    @property
    def header(self) -> bool:
        """Whether a PROXY header comes first."""
        return self.identity in (Identity.PROXY_V1, Identity.PROXY_V2)


@frozen
class Place:
    """Where a backend serves one protocol.

    ``verify`` is the name that its certificate has to carry, empty for any;
    ``roots`` are whom to trust, None for the system's authorities.
    """

    protocol: IMailProtocol
    endpoint: IStreamClientEndpoint
    verify: str = ""
    roots: Any = None
    method: Method = Method.REPLAY


@frozen
class Visited:
    """What came of a visit.

    ``seconds`` and ``peer`` tell of connecting, ``error`` why there is no
    connection.  ``refusal`` is why it went no further; None: all was seen.
    ``heard`` are the first bytes that the protocol was given, in the clear or
    inside TLS, ``tls_begun``: there was a handshake, or a try.  ``clear`` and
    ``inside``: what was offered before TLS and inside.
    """

    way: Way
    session: str
    seconds: float | None
    peer: str
    error: BaseException | None
    refusal: Refusal | None
    heard: bytes
    greeting: str
    clear: Offered | None
    inside: Offered | None
    introduced: Introduced | None
    tls_begun: bool
    inspected: Inspected | None

    @property
    def complete(self) -> bool:
        """Whether all was seen that there is to see."""
        return self.refusal is None

    @property
    def offered(self) -> Offered | None:
        """What is offered where a login would be made."""
        return self.inside if self.tls_begun else self.clear


async def visit(place: Place, way: Way, clock: Any, timeout: float) -> Visited:
    """Connect, look, and leave.

    :param timeout: seconds for all of it.
    """
    session = f"probe-{secrets.token_hex(6)}"
    tls = Inspector(place.verify, place.roots) if way.tls_first or way.starttls else None
    dialled, watch = _Dialled(place.endpoint, clock), _Watch(place.protocol, secure=way.tls_first)
    backend = Backend(
        "at this endpoint",
        {place.protocol.name: Dial(dialled, tls)},
        clock,
        tls_first=way.tls_first,
        method=Method.NONE if place.method is Method.NONE else Method.REPLAY,
        identity=way.identity,
        timeout=timeout,
    )
    refusal = None
    try:
        await backend.open(watch, LoginOrder(NOBODY, "", Client(session, FROM, TO)))
    except LoginRefused as refused:
        refusal = refused.refusal
    await dialled.part()
    return Visited(
        way,
        session,
        dialled.seconds,
        dialled.peer,
        dialled.error,
        refusal,
        bytes(watch.heard),
        watch.greeting,
        watch.offered.get(False),
        watch.offered.get(True),
        watch.introduced,
        tls is not None and tls.begun,
        None if tls is None else tls.inspect(),
    )


@implementer(IStreamClientEndpoint)
class _Dialled(Factory[Protocol]):
    """An endpoint that remembers how connecting went, and knows when the connection is gone.

    It is the factory that it connects with, too: only a factory hears of a
    connection before its protocol does.
    """

    noisy = False

    def __init__(self, inner: IStreamClientEndpoint, clock: Any) -> None:
        self._inner = inner
        self._clock = clock
        self._makes: IProtocolFactory | None = None
        self._begun = 0.0
        self._protocol: Any = None
        self._gone: Deferred[None] = Deferred()
        self.seconds: float | None = None
        self.peer = ""
        self.error: BaseException | None = None

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect as the other endpoint does."""
        self._makes = factory
        self._begun = self._clock.seconds()
        return self._inner.connect(self).addErrback(self._failed)

    def buildProtocol(self, addr: Any) -> Any:
        """Return the protocol for the connection that there is now."""
        self.seconds = self._clock.seconds() - self._begun
        if isinstance(addr, IPv4Address | IPv6Address):
            self.peer = str(Address(addr.host, addr.port))
        assert self._makes is not None  # noqa: S101 (it is asked to connect first)
        self._protocol = protocol = self._makes.buildProtocol(addr)
        lost = self._protocol.connectionLost

        def gone(reason: Failure) -> None:
            lost(reason)
            self._gone.callback(None)

        # Nobody else tells: once it has come to something, a connection's end means nothing to those above.
        self._protocol.connectionLost = gone
        return protocol

    def _failed(self, failure: Failure) -> Failure:
        self.error = failure.value
        return failure

    async def part(self) -> None:
        """Close once the last words are written; whoever does not take them is cut off."""
        if self._protocol is None or self._gone.called:
            return
        transport = self._protocol.transport
        transport.resumeProducing()
        transport.loseConnection()
        cut = self._clock.callLater(LINGER, transport.abortConnection)
        await self._gone
        if cut.active():
            cut.cancel()


@implementer(IMailProtocol, ILogin)
class _Watch:
    """A protocol whose only login is its probe, and that login: keeps what the probe sees."""

    def __init__(self, protocol: IMailProtocol, *, secure: bool) -> None:
        self._protocol = protocol
        self.name = protocol.name
        self.alpn = protocol.alpn
        self.mechanisms = protocol.mechanisms
        self.logins = protocol.logins
        self.password_command = protocol.password_command
        self.starttls = protocol.starttls
        self._half: ILogin = NoLogin()
        self._secure = secure
        self.heard = bytearray()
        self.greeting = ""
        self.offered: dict[bool, Offered] = {}
        self.introduced: Introduced | None = None

    def check_capability(self, word: str) -> None:
        """Pass it on."""
        self._protocol.check_capability(word)

    def login(self, terms: LoginTerms) -> ILogin:
        """Return itself: there is one connection, and never another one."""
        if IProbedProtocol.providedBy(self._protocol):
            self._half = IProbedProtocol(self._protocol).probe(terms)
        return self

    def open(self, order: LoginOrder) -> list[LoginEvent]:
        """Pass it on."""
        return self._half.open(order)

    def start(self) -> list[LoginEvent]:
        """Pass it on."""
        return self._half.start()

    def receive(self, data: bytes) -> list[LoginEvent]:
        """Pass it on, and keep the beginning."""
        if len(self.heard) < MAX_HEARD:
            self.heard += data[: MAX_HEARD - len(self.heard)]
        return self._noted(self._half.receive(data))

    def secured(self) -> list[LoginEvent]:
        """Pass it on."""
        self._secure = True
        return self._noted(self._half.secured())

    def doing(self) -> str:
        """Pass it on."""
        return self._half.doing()

    def _noted(self, events: list[LoginEvent]) -> list[LoginEvent]:
        sights: list[Sight] = IProbe(self._half).seen() if IProbe.providedBy(self._half) else []
        for sight in sights:
            if isinstance(sight, Greeted):
                self.greeting = sight.text
            elif isinstance(sight, Offered):
                self.offered[self._secure] = sight
            else:
                self.introduced = sight
        return events
