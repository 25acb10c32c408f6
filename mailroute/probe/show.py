"""A report as text, for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from mailroute.config import Security
from mailroute.probe.certificate import when
from mailroute.probe.report import CertificateReport, IdentityReport, Report, ServiceReport, TlsReport

WIDTH = 100
"""Columns of a line, where it can be broken."""


def lines(report: Report) -> Iterator[str]:
    """Yield the report's lines."""
    for service in report.services:
        yield f"{service.protocol} at {service.endpoint}"
        yield from _service(service)
        for note in service.notes:
            yield from _item("note", note)
        for finding in service.findings:
            yield from _item("FINDING", str(finding))
        yield ""
    if report.ok:
        yield "Everything is as configured." if report.configured else "Everything that was looked at works."
    else:
        count = sum(len(service.findings) for service in report.services)
        yield f"{count} finding{'s' if count > 1 else ''}."
    yield ""
    yield "What to write into the configuration:"
    yield ""
    yield report.configuration.rstrip("\n")


def _service(service: ServiceReport) -> Iterator[str]:
    if service.connected_in is not None:
        peer = f" to {service.peer}" if service.peer else ""
        yield from _item("connected", f"in {service.connected_in * 1000:.1f} ms{peer}")
    if service.greeting:
        yield from _item("greeting", service.greeting)
    yield from _tls(service.tls)
    if service.capabilities_in_clear is not None:
        yield from _item("in the clear", " · ".join(service.capabilities_in_clear) or "it lists nothing")
    if service.capabilities_in_tls is not None:
        yield from _item("inside TLS", " · ".join(service.capabilities_in_tls) or "it lists nothing")
    if service.mechanisms:
        yield from _item("SASL", ", ".join(service.mechanisms))
    yield from _identity(service.identity)


def _tls(tls: TlsReport | None) -> Iterator[str]:
    if tls is None:
        return
    how = "on request (STARTTLS)" if tls.begun_by is Security.STARTTLS else "from the first byte"
    yield from _item("TLS", f"{how}: {tls.version}, {tls.cipher}")
    if tls.certificate is not None:
        yield from _certificate(tls.certificate)


def _certificate(seen: CertificateReport) -> Iterator[str]:
    yield from _item("certificate", f"{seen.subject or '(no subject)'}, by {seen.issuer or '(nobody)'}")
    yield from _item("for", ", ".join(seen.names) or "no name at all")
    if seen.name:
        yield from _item("name", seen.name_fault or f"it carries {seen.name}, as it must")
    faults = "; ".join(seen.chain_faults)
    yield from _item(
        "chain",
        f"{seen.authorities} do not vouch for it: {faults}" if faults else f"verified by {seen.authorities}",
    )
    yield from _item("expires", f"{seen.expires:%Y-%m-%d %H:%M} UTC, {when(seen.days_left)}")


def _identity(identity: IdentityReport | None) -> Iterator[str]:
    if identity is None:
        return
    taken = {True: "taken", False: "not taken", None: "cannot be told"}[identity.taken]
    yield from _item("identity", f"{identity.how.value}: {taken}: {identity.detail}")
    if identity.attributes:
        yield from _item("", f"it wants {', '.join(identity.attributes)}")
    if identity.remedy:
        yield from _item("", identity.remedy)


def _item(label: str, text: str) -> list[str]:
    head = f"  {label:13}"
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
        break_long_words=False,
    ) or [head.rstrip()]
