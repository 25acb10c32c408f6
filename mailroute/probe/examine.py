"""Looking at one protocol of a backend: as it is configured, and if that does not work, in the other ways."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, gatherResults

from mailroute.config import Security
from mailroute.events import Identity
from mailroute.interfaces import IProbedProtocol
from mailroute.probe import certificate, judge
from mailroute.probe.advice import configuration
from mailroute.probe.judge import Examined, security_of
from mailroute.probe.report import (
    IdentityReport,
    Report,
    ServiceReport,
    TlsReport,
    harmless,
)
from mailroute.probe.target import Service, Target
from mailroute.probe.visit import Visited, Way, visit
from mailroute.sights import Offered


async def examine(target: Target, clock: Any, timeout: float) -> tuple[Examined, ...]:
    """Look at all protocols, one after the other.

    :param timeout: seconds for each connection.
    """
    return tuple([await _examine(service, clock, timeout) for service in target.services])


async def _examine(service: Service, clock: Any, timeout: float) -> Examined:
    first = await visit(service.place, service.way, clock, timeout)
    if _sound(first):
        if not service.way.tls_first and not service.way.starttls and first.clear and first.clear.starttls:
            return await _look_inside(service, first, clock, timeout)
        return Examined(service, first, first)
    asked = IProbedProtocol.providedBy(service.place.protocol)
    # Who has greeted does not wait for a PROXY header, whatever it says behind one.
    others = [way for way in _others(service) if not (first.greeting and way.header)]
    if not asked or first.error is not None:
        others = []
    # All at once: each may have to wait for a server that says nothing.
    visits = [Deferred.fromCoroutine(visit(service.place, way, clock, timeout)) for way in others]
    found = [visited for visited in await gatherResults(visits) if _sound(visited)]
    return Examined(service, first, found[0] if found else first)


async def _look_inside(service: Service, first: Visited, clock: Any, timeout: float) -> Examined:
    """Look at the TLS that a backend offers, though it is not wanted."""
    best = await visit(service.place, evolve(service.way, starttls=True), clock, timeout)
    if best.complete:
        return Examined(service, first, best)
    assert best.refusal is not None  # noqa: S101 (it is not complete)
    return Examined(
        service, first, first, (f"it offers STARTTLS, which fails: {harmless(best.refusal.detail)}",)
    )


def _sound(visited: Visited) -> bool:
    """Whether all was seen, and nothing looks as if a PROXY header had been taken for a command."""
    confused = visited.way.header and visited.offered is not None and not visited.offered.capabilities
    return visited.complete and not confused


def _others(service: Service) -> Iterator[Way]:
    """Yield the other ways to come in, the likeliest first."""
    way = service.way
    tls = evolve(way, tls_first=not way.tls_first, starttls=way.tls_first)
    header = evolve(way, identity=Identity.NATIVE if way.header else Identity.PROXY_V2)
    yield tls
    yield header
    yield evolve(tls, identity=header.identity)


def describe(target: Target, examined: Examined, now: datetime.datetime) -> ServiceReport:
    """Say what was found out about a protocol.

    :param now: the time, with its zone.
    """
    best, service = examined.best, examined.service
    inspected, offered = best.inspected, best.offered
    seen = None
    if inspected is not None:
        seen = certificate.report(inspected, service.place.verify, target.authorities, now)
    tls = None
    if inspected is not None:
        begun_by = Security.TLS if best.way.tls_first else Security.STARTTLS
        tls = TlsReport(
            begun_by=begun_by,
            version=inspected.version,
            cipher=inspected.cipher,
            certificate=seen,
        )
    return ServiceReport(
        protocol=service.place.protocol.name,
        endpoint=service.endpoint,
        peer=best.peer,
        connected_in=best.seconds,
        greeting=harmless(best.greeting),
        security=security_of(best),
        tls=tls,
        capabilities_in_clear=_listed(best.clear),
        capabilities_in_tls=_listed(best.inside),
        mechanisms=() if offered is None else tuple(map(harmless, offered.mechanisms)),
        password_command=offered is not None and offered.passwords,
        identity=_identity(best),
        findings=tuple(judge.findings(target, examined, seen)),
        notes=(*examined.notes, *judge.notes(target, examined, seen)),
    )


def report(target: Target, examined: Sequence[Examined], now: datetime.datetime) -> Report:
    """Say all that was found out, and what to make of it.

    :param now: the time, with its zone.
    """
    services = tuple(describe(target, each, now) for each in examined)
    return Report(
        backend=harmless(target.name),
        configured=target.configured,
        services=services,
        configuration=configuration(target, examined, services),
    )


def _listed(offered: Offered | None) -> tuple[str, ...] | None:
    return None if offered is None else tuple(map(harmless, offered.capabilities))


def _identity(best: Visited) -> IdentityReport | None:
    introduced = best.introduced
    if introduced is not None:
        return IdentityReport(
            how=Identity.NATIVE,
            taken=introduced.taken,
            detail=harmless(introduced.detail),
            remedy=harmless(introduced.remedy),
            attributes=tuple(map(harmless, introduced.attributes)),
        )
    if best.way.header and best.greeting:
        detail = "it greets behind a PROXY header"
        return IdentityReport(
            how=best.way.identity, taken=best.complete, detail=detail, remedy="", attributes=()
        )
    return None
