"""What was found out about a backend, in a form that can be shown, sent and checked.

``mailroute probe --json`` writes a `Report` as it stands here;
``docs/probe.schema.json`` describes that to other programs.
"""

from __future__ import annotations

import datetime

from pydantic import BaseModel, ConfigDict, computed_field

from mailroute.config import Identity, Security

MAX_TEXT = 400
"""Characters of anything that a backend says."""


def harmless(text: str) -> str:
    """Return what somebody else has said as one bounded line that no terminal takes for a command.

    Control characters, line ends and what turns the direction of writing are replaced.
    """
    shown = text[:MAX_TEXT]
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in shown)


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Finding(_Value):
    """Something that is not as it was configured, or does not work."""

    what: str
    """The thing."""

    reason: str
    """What is wrong with it."""

    remedy: str
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}: {self.remedy}"


class CertificateReport(_Value):
    """The certificate that a backend has shown."""

    subject: str
    """Whose it is (RFC 4514)."""

    names: tuple[str, ...]
    """The host names and addresses that it is for."""

    issuer: str
    """Who has issued it (RFC 4514)."""

    expires: datetime.datetime
    """When it expires."""

    days_left: int
    """Whole days until then; less than 0: it has expired."""

    chain_faults: tuple[str, ...]
    """What is wrong with its chain; none: the authorities asked vouch for it."""

    authorities: str
    """Who was asked to vouch for it."""

    name: str
    """The name that it has to carry; empty: none is known."""

    name_fault: str
    """Why it does not carry that name; empty: it does, or none is known."""


class TlsReport(_Value):
    """TLS as it was agreed on."""

    begun_by: Security
    """Whether it began on request or with the first byte."""

    version: str
    """Its version, such as TLSv1.3."""

    cipher: str
    """OpenSSL's name of the cipher suite."""

    certificate: CertificateReport | None
    """The certificate; null if it could not be read."""


class IdentityReport(_Value):
    """Whether the backend lets itself be told who the client is."""

    how: Identity
    """How it was told."""

    taken: bool | None
    """Whether it took that; null: it does not say."""

    detail: str
    """What it said."""

    remedy: str
    """How to have it believe this host, or how to see whether it does."""

    attributes: tuple[str, ...]
    """What it says that it wants to be told, where the protocol has a list."""


class ServiceReport(_Value):
    """One protocol of a backend."""

    protocol: str
    """The protocol's name."""

    endpoint: str
    """Where it is served."""

    peer: str
    """The address that answered; empty if none did."""

    connected_in: float | None
    """Seconds that connecting took, the look-up of a name included; null: there was no connection."""

    greeting: str
    """The backend's first words."""

    security: Security | None
    """How a connection could be protected; null: none got as far as that."""

    tls: TlsReport | None
    """What was agreed on."""

    capabilities_in_clear: tuple[str, ...] | None
    """What it offers before TLS; null: it was not asked there."""

    capabilities_in_tls: tuple[str, ...] | None
    """What it offers inside TLS; null: it was not asked there."""

    mechanisms: tuple[str, ...]
    """The SASL mechanisms that it offers where a login would be made."""

    password_command: bool
    """Whether a command of the protocol's own takes a password there."""

    identity: IdentityReport | None
    """Whether it takes the client's identity; null: nothing tells."""

    findings: tuple[Finding, ...]
    """What is not as configured."""

    notes: tuple[str, ...]
    """What else should be known."""


class Report(_Value):
    """All that was found out about a backend."""

    backend: str
    """Its name in the configuration, or the endpoint that was given instead."""

    configured: bool
    """Whether it is one of the configuration's."""

    services: tuple[ServiceReport, ...]
    """Each protocol that was looked at."""

    configuration: str
    """What to write into the configuration, in TOML."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether there are no findings."""
        return not any(service.findings for service in self.services)
