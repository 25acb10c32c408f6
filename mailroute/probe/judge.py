"""What is not as it was configured, why, and what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from attrs import frozen
from twisted.internet import error as errors
from twisted.internet.defer import CancelledError
from twisted.python.reflect import safe_str

from mailroute import dialogs
from mailroute.config import Security
from mailroute.events import Identity, LoginTerms, Method, Refused
from mailroute.interfaces import IProbedProtocol
from mailroute.probe import certificate
from mailroute.probe.report import CertificateReport, Finding, harmless
from mailroute.probe.target import Service, Target
from mailroute.probe.visit import Visited
from mailroute.sights import Offered

MAX_SHOWN = 80
"""Characters that are shown of what is no greeting."""

_PASSWORDS = frozenset({"PLAIN", "LOGIN"})


@frozen
class Examined:
    """What was found out about one protocol.

    ``first`` came of the way that was to be tried, ``best`` of the one that
    worked, if any did.
    """

    service: Service
    first: Visited
    best: Visited
    notes: tuple[str, ...] = ()


def security_of(visited: Visited) -> Security | None:
    """Return how the connection was protected; None if it came to nothing."""
    if not visited.complete:
        return None
    if visited.way.tls_first:
        return Security.TLS
    return Security.STARTTLS if visited.tls_begun else Security.NONE


def logs_in(offered: Offered | None) -> bool:
    """Whether a client's password can be replayed."""
    return offered is not None and (offered.passwords or bool(_PASSWORDS & set(offered.mechanisms)))


def findings(target: Target, examined: Examined, seen: CertificateReport | None) -> Iterator[Finding]:
    """Yield what does not work, or is not as configured.

    :param seen: the certificate.
    """
    service, best = examined.service, examined.best
    if not best.complete:
        yield _failure(examined)
    if best.inspected is not None and service.security is not Security.NONE:
        yield from certificate.findings(best.inspected, seen)
    if not (target.configured and best.complete):
        return
    yield from _other_way(service, best)
    if not IProbedProtocol.providedBy(service.place.protocol):
        return
    if service.security is Security.STARTTLS and not (best.tls_begun or best.way.tls_first):
        yield Finding(
            what='security = "starttls"',
            reason="the backend does not offer STARTTLS",
            remedy="give it a certificate and have it offer STARTTLS; "
            'with security = "none" passwords travel in the clear',
        )
    yield from _login(target, service, best)
    yield from _identity(service, best)


def notes(target: Target, examined: Examined, seen: CertificateReport | None) -> Iterator[str]:
    """Yield what else should be known."""
    service, best = examined.service, examined.best
    protocol = service.place.protocol
    if not IProbedProtocol.providedBy(protocol):
        yield f"backends cannot be asked anything in {protocol.name}: only the connection and TLS were seen"
        return
    if seen is not None and 0 <= seen.days_left < certificate.SOON:
        yield f"its certificate expires {certificate.when(seen.days_left)}: renew it"
    if service.security is Security.NONE and best.inspected is not None:
        yield 'it offers TLS, which security = "none" does not use'
        for finding in certificate.findings(best.inspected, seen):
            yield str(finding)
    if not target.configured and security_of(best) is Security.NONE:
        yield "it offers no TLS: passwords would travel in the clear"
    if service.identity is Identity.NONE and best.introduced is not None and best.introduced.taken:
        yield 'it would take the client\'s address: identity = "native"'


# --- no connection, or none to speak of ---------------------------------------


def _failure(examined: Examined) -> Finding:
    service, first = examined.service, examined.first
    what = f"{service.place.protocol.name} at {service.endpoint}"
    if first.error is not None:
        reason, remedy = _connecting(first.error)
        return Finding(what=what, reason=harmless(reason), remedy=remedy)
    assert first.refusal is not None or first.way.header  # noqa: S101 (else it would be sound)
    reason = "it takes the PROXY header for a command" if first.refusal is None else first.refusal.detail
    if first.heard and not first.greeting:
        reason += f'; what it said begins with "{harmless(_text(first.heard))[:MAX_SHOWN]}"'
    return Finding(what=what, reason=harmless(reason), remedy=_remedy(service, first))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _connecting(error: BaseException) -> tuple[str, str]:
    """Say why there is no connection, and what to do."""
    if isinstance(error, errors.ConnectionRefusedError):
        return "connection refused: nobody listens there", "start the server, or correct the endpoint"
    if isinstance(error, errors.TimeoutError | CancelledError):
        return (
            "no answer in time",
            "correct the address, or have firewalls in between let this host through",
        )
    if isinstance(error, errors.DNSLookupError):
        return (
            f"no address can be found: {safe_str(error)}",
            "correct the name, or see to this host's resolver",
        )
    if getattr(error, "osError", None) == errno.ECONNRESET:
        return "the connection is reset at once", "see in its log why it does not want this host"
    return f"no connection: {safe_str(error)}", "correct the endpoint, or see to this host's network"


def _remedy(service: Service, visited: Visited) -> str:
    protocol = service.place.protocol.name
    if visited.tls_begun and visited.inspected is None:
        return (
            "see whether it has a certificate, and speaks TLS 1.2 or 1.3 on this port; its log may say more"
        )
    if not visited.heard:
        if not IProbedProtocol.providedBy(service.place.protocol):
            return "correct the port, or see in its log what it wants"
        return (
            "correct the port, or see in its log why it does not want this host: it greets neither in the "
            "clear nor with TLS, with a PROXY header or without"
        )
    speaks = [name for name in _recognised(visited.heard) if name != protocol]
    if speaks and protocol not in _recognised(visited.heard):
        return f"it greets as {' or '.join(speaks)} does: correct the port, or the key of the endpoint"
    return f"see that it speaks {protocol} on this port, or in its log why it does not let this host in"


def _recognised(heard: bytes) -> list[str]:
    """Return the protocols in which what was heard is a greeting."""
    names = []
    for name in dialogs.known():
        protocol = dialogs.protocol(name)
        if IProbedProtocol.providedBy(protocol):
            probe = IProbedProtocol(protocol).probe(LoginTerms())
            events = probe.receive(heard)
            if probe.seen() and not any(isinstance(event, Refused) for event in events):
                names.append(name)
    return names


# --- a connection, and not as configured --------------------------------------


def _other_way(service: Service, best: Visited) -> Iterator[Finding]:
    if best.way.tls_first and not service.way.tls_first:
        yield Finding(
            what=f'security = "{service.security.value}"',
            reason="on this port TLS begins with the first byte, and nothing is said in the clear",
            remedy='write security = "tls", or name the port where it greets in the clear',
        )
    elif service.way.tls_first and not best.way.tls_first:
        word = "starttls" if best.tls_begun else "none"
        yield Finding(
            what='security = "tls"',
            reason="on this port it greets in the clear",
            remedy=f'write security = "{word}", or name the port where TLS begins with the first byte',
        )
    if best.way.header and not service.way.header:
        yield Finding(
            what=f'identity = "{service.identity.value}"',
            reason="on this port it says nothing before it has a PROXY header",
            remedy=f'write identity = "{best.way.identity.value}", or name the port where it takes none',
        )
    elif service.way.header and not best.way.header:
        yield Finding(
            what=f'identity = "{service.identity.value}"',
            reason="on this port it does not expect a PROXY header, and speaks only without",
            remedy='write identity = "native" or "none", or name the port where it takes one',
        )


def _login(target: Target, service: Service, best: Visited) -> Iterator[Finding]:
    offered = best.offered
    if not service.place.protocol.logins or offered is None:
        return
    mechanisms = ", ".join(map(harmless, offered.mechanisms)) or "none"
    joined = bool(target.kept.get("master_separator")) and logs_in(offered)
    if target.login is Method.MASTER and "PLAIN" not in offered.mechanisms and not joined:
        other = ', or write master_separator = "*" if it is a Dovecot' if logs_in(offered) else ""
        yield Finding(
            what='login = "master"',
            reason=f"it needs the mechanism PLAIN, and the backend offers {mechanisms}",
            remedy=f"have the backend offer PLAIN{other}",
        )
    elif target.login is Method.OAUTH2 and not {"XOAUTH2", "OAUTHBEARER"} & set(offered.mechanisms):
        yield Finding(
            what='login = "oauth2"',
            reason=f"it needs the mechanism OAUTHBEARER or XOAUTH2, and the backend offers {mechanisms}",
            remedy="have the backend offer one of them",
        )
    elif target.login is Method.REPLAY and not logs_in(offered):
        in_clear = security_of(best) is Security.NONE
        yield Finding(
            what='login = "replay"',
            reason=f"the backend takes no password, and of mechanisms it offers {mechanisms}",
            remedy="have it offer PLAIN"
            + (', or TLS: it may take passwords only there, with security = "starttls"' if in_clear else ""),
        )


def _identity(service: Service, best: Visited) -> Iterator[Finding]:
    introduced = best.introduced
    if service.identity is Identity.NATIVE and introduced is not None and introduced.taken is False:
        remedy = f"{introduced.remedy}, or " if introduced.remedy else ""
        yield Finding(
            what='identity = "native"',
            reason=harmless(introduced.detail),
            remedy=harmless(f'{remedy}write identity = "none"'),
        )
