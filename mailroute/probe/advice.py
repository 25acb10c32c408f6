"""What to write into the configuration, as it would be read: TOML, with reasons."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from mailroute.config import Security
from mailroute.events import Identity, Method
from mailroute.probe.certificate import HOST
from mailroute.probe.judge import Examined, logs_in, security_of
from mailroute.probe.report import CertificateReport, ServiceReport, harmless
from mailroute.probe.target import Target

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")

Pair = tuple[Examined, ServiceReport]


def configuration(target: Target, examined: Sequence[Examined], services: Sequence[ServiceReport]) -> str:
    """Return a ``[backend.NAME]`` block, or several where its protocols need different ones."""
    groups: dict[tuple[Security, Identity], list[Pair]] = {}
    for pair in zip(examined, services, strict=True):
        groups.setdefault((_security(target, pair[0]), _identity(pair[0])), []).append(pair)
    blocks: list[str] = []
    for (security, identity), pairs in groups.items():
        # One block has one security and one identity for all of its protocols.
        apart = "" if not blocks else f"-{pairs[0][1].protocol}"
        blocks.append("\n".join(_block(target, apart, security, identity, pairs)))
    return "\n\n".join(blocks) + "\n"


def _block(
    target: Target, apart: str, security: Security, identity: Identity, pairs: Sequence[Pair]
) -> Iterator[str]:
    yield f"[backend.{_key((target.name if target.configured else 'NAME') + apart)}]"
    for examined, service in pairs:
        unreached = [] if examined.best.complete else ["it could not be reached so far"]
        yield _line(service.protocol, service.endpoint, *unreached)
    first, report = pairs[0]
    yield _line("security", security.value, _why_security(first, security))
    if security is not Security.NONE:
        yield from _verify(target, first, report)
    if any(examined.service.place.protocol.logins for examined, _ in pairs):
        yield _line("login", target.login.value, _why_login(target, first))
    yield _line("identity", identity.value, _why_identity(first, identity))
    for key, value in target.kept.items():
        if isinstance(value, str | int):
            yield f"{key} = {_value(value)}"


def _line(key: str, value: str, *reasons: str) -> str:
    return f"{_key(key)} = {_value(value)}" + "".join(
        f"  # {harmless(reason)}" for reason in reasons if reason
    )


def _key(name: str) -> str:
    return name if _BARE.match(name) else _value(name)


def _value(value: str | int) -> str:
    """Return a TOML value; what JSON makes of a harmless string is one of TOML's, too."""
    return json.dumps(harmless(value) if isinstance(value, str) else value, ensure_ascii=False)


# --- TLS ----------------------------------------------------------------------


def _security(target: Target, examined: Examined) -> Security:
    wanted = examined.service.security
    if not examined.best.complete or (target.configured and wanted is Security.NONE):
        return wanted if not examined.best.way.tls_first else Security.TLS
    return security_of(examined.best) or wanted


def _why_security(examined: Examined, security: Security) -> str:
    best = examined.best
    if not best.complete:
        return "as it is" if examined.service.security is security else ""
    if security is Security.NONE:
        return "STARTTLS is offered, and would be better" if best.tls_begun else "there is no TLS to be had"
    inspected = best.inspected
    agreed = f": {inspected.version}" if inspected is not None else ""
    return ("TLS begins with the first byte" if security is Security.TLS else "it offers STARTTLS") + agreed


def _verify(target: Target, examined: Examined, service: ServiceReport) -> Iterator[str]:
    seen = None if service.tls is None else service.tls.certificate
    name = examined.service.place.verify
    if seen is None or (name and not seen.name_fault):
        if name:
            yield _line("verify", name, "" if seen is None else "its certificate carries this name")
    else:
        yield _another_name(seen)
    if target.ca:
        yield _line("ca", target.ca, "" if seen is None else _why_authorities(seen))
    elif seen is not None and seen.chain_faults:
        yield f'# ca = "authority.pem"  # {seen.chain_faults[0]}: it is by {seen.issuer}'


def _why_authorities(seen: CertificateReport) -> str:
    if seen.chain_faults:
        return f"they do not vouch for it: {seen.chain_faults[0]}"
    return "these authorities vouch for it"


def _another_name(seen: CertificateReport) -> str:
    for name in seen.names:
        if HOST.match(name):
            return _line("verify", name, "its certificate is for this name: is it the server that you mean?")
    return "# verify: its certificate carries no name that could stand here"


# --- logins and identity ------------------------------------------------------


def _why_login(target: Target, examined: Examined) -> str:
    offered = examined.best.offered
    if offered is None:
        return "as it is"
    listed = ", ".join(offered.mechanisms) or (
        "a command with a password" if offered.passwords else "nothing"
    )
    if target.login is Method.NONE:
        return "as it is"
    if target.login is Method.REPLAY and not logs_in(offered):
        return f"it takes no password as things stand: it offers {listed}"
    return f"it offers {listed}"


def _identity(examined: Examined) -> Identity:
    best, wanted = examined.best, examined.service.identity
    if not best.complete:
        return wanted
    if best.way.header:
        return best.way.identity
    introduced = best.introduced
    if wanted is Identity.NONE or (introduced is not None and introduced.taken is False):
        return Identity.NONE
    return Identity.NATIVE


def _why_identity(examined: Examined, identity: Identity) -> str:
    best = examined.best
    introduced = best.introduced
    if not best.complete:
        return "as it is"
    if best.way.header:
        return "it greets behind a PROXY header"
    if introduced is None:
        return ""
    if introduced.taken is None:
        return "its log tells whether it believes this host"
    if introduced.taken:
        return "it takes the client's address" + (", if it is told" if identity is Identity.NONE else "")
    return f'"native" needs more: {introduced.remedy or introduced.detail}'
