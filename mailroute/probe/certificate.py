"""A certificate, and what is wrong with it, in words."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator

from cryptography import x509

from mailroute.probe.report import CertificateReport, Finding, harmless
from mailroute.tls import Inspected

MAX_NAMES = 50
"""Names of a certificate that are shown: it may have thousands."""

SOON = 14
"""Days before a certificate's end in which that is said: a month's certificate is renewed by then."""

_EXPIRED, _NOT_YET = 10, 9
_UNKNOWN = frozenset({2, 18, 19, 20, 21})
_FOLLOWS = frozenset({21, 27})  # from another fault, if there is one

# OpenSSL's X509_V_ERR_…, of which its Python bindings have no texts.
_FAULTS = {
    2: "the certificate of its issuer is missing",
    7: "it is not signed by its issuer: the signature is wrong",
    _NOT_YET: "it is not valid yet",
    _EXPIRED: "it has expired",
    18: "it is self-signed, and not among the authorities",
    19: "it ends in a self-signed certificate that is not among the authorities",
    20: "its issuer is not among the authorities",
    21: "the certificates that lead to an authority are missing",
    23: "it has been revoked",
    24: "it is used as an authority's, and is none",
    25: "there are too many certificates below one of its authorities",
    26: "it is not meant for servers",
    27: "it is not trusted",
    28: "it is rejected",
    66: "its key is too weak",
    67: "the key of an authority is too weak",
    68: "its signature's hash is too weak",
}


def when(days_left: int) -> str:
    """Say when a certificate ends or has ended, from the whole days that are left (less than 0: it has)."""
    if days_left in (0, -1):
        return "less than a day ago" if days_left else "within a day"
    days = days_left if days_left > 0 else -days_left - 1
    said = f"{days} day" if days == 1 else f"{days} days"
    return f"in {said}" if days_left > 0 else f"{said} ago"


def report(
    inspected: Inspected, name: str, authorities: str, now: datetime.datetime
) -> CertificateReport | None:
    """Return what is to be said of a certificate; None if there is none that can be read.

    :param name: the one that it has to carry; empty for any.
    :param authorities: who has been asked to vouch for it, in words.
    :param now: the time, with its zone.
    """
    certificate = inspected.certificate
    if certificate is None:
        return None
    try:
        expires = certificate.not_valid_after_utc
    except ValueError:
        return None
    return CertificateReport(
        subject=_read(lambda: certificate.subject.rfc4514_string()),
        names=tuple(_names(certificate)),
        issuer=_read(lambda: certificate.issuer.rfc4514_string()),
        expires=expires,
        days_left=(expires - now) // datetime.timedelta(days=1),
        chain_faults=tuple(_chain_faults(inspected)),
        authorities=authorities,
        name=name,
        name_fault=harmless(inspected.name_fault),
    )


def findings(inspected: Inspected, seen: CertificateReport | None) -> Iterator[Finding]:
    """Yield what keeps mailroute from logging in there."""
    if seen is None:
        reason = inspected.name_fault or "there is none"
        yield Finding(
            what="its certificate", reason=harmless(reason), remedy="have the backend show another one"
        )
        return
    codes = {fault.code for fault in inspected.chain_faults}
    for fault in seen.chain_faults:
        yield Finding(what="its certificate", reason=fault, remedy=_remedy(codes, seen))
    if seen.name_fault:
        reason = seen.name_fault.replace("the certificate ", "it ", 1)
        yield Finding(what="its certificate", reason=reason, remedy=_name_remedy(seen))


def _chain_faults(inspected: Inspected) -> Iterator[str]:
    codes = [fault.code for fault in inspected.chain_faults]
    said = set()
    for fault in inspected.chain_faults:
        follows = fault.code in _FOLLOWS and set(codes) - _FOLLOWS
        if follows or fault.code in said:
            continue
        said.add(fault.code)
        text = _FAULTS.get(fault.code, f"OpenSSL refuses it (X509_V_ERR code {fault.code})")
        yield text if fault.depth == 0 else f"{text} (the chain's certificate {fault.depth + 1})"


def _remedy(codes: set[int], seen: CertificateReport) -> str:
    if _EXPIRED in codes and not codes & _UNKNOWN:
        return "renew it on the backend"
    if _NOT_YET in codes and not codes & _UNKNOWN:
        return "wait, or set the clocks of both machines right"
    if codes & _UNKNOWN:
        return (
            f"save the certificate of its authority, {seen.issuer}, in a file and name that as ca; or have "
            "the backend send the certificates that lead to a known one"
        )
    return "have the backend show another one"


def _name_remedy(seen: CertificateReport) -> str:
    names = [name for name in seen.names if not name.startswith("*")]
    if not names:
        return "have the backend show one with its name"
    return f'if this is the right server, write verify = "{names[0]}"'


def _names(certificate: x509.Certificate) -> Iterator[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [*found.get_values_for_type(x509.DNSName), *found.get_values_for_type(x509.IPAddress)]
    except (x509.ExtensionNotFound, ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return
    for name in names[:MAX_NAMES]:
        yield harmless(str(name))


def _read(field: Callable[[], str]) -> str:
    try:
        return harmless(field())
    except ValueError:
        return "(cannot be read)"


HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.:-]*[A-Za-z0-9_])?\Z")
"""What of a certificate's names can be a host's, or an address: no more than that goes into advice."""
