"""What a client may show to prove who it is."""

from __future__ import annotations

import enum

from attrs import field, frozen


class Proof(enum.Enum):
    """What a client offers to show that it is who it says."""

    PASSWORD = "password"
    """A password: it can be replayed by any password mechanism."""

    TOKEN = "token"
    """An OAuth bearer token: it can only be passed on by its own mechanism."""

    CERTIFICATE = "certificate"
    """A certificate that the client has shown in the TLS handshake: it cannot be passed on at all."""

    SCRAM_SHA_256 = "SCRAM-SHA-256 exchange"
    """That the client knows the password, which it has not sent (RFC 7677): it cannot be passed on either."""

    SCRAM_SHA_1 = "SCRAM-SHA-1 exchange"
    """The same, by an older hash (RFC 5802)."""

    @property
    def names(self) -> bool:
        """Whether it says by itself whose it is, so that the client need not."""
        return self in (Proof.TOKEN, Proof.CERTIFICATE)

    @property
    def replayable(self) -> bool:
        """Whether the client's login can be repeated at a backend."""
        return self in (Proof.PASSWORD, Proof.TOKEN)


_PROOFS = {
    "XOAUTH2": Proof.TOKEN,
    "OAUTHBEARER": Proof.TOKEN,
    "EXTERNAL": Proof.CERTIFICATE,
    "SCRAM-SHA-256": Proof.SCRAM_SHA_256,
    "SCRAM-SHA-256-PLUS": Proof.SCRAM_SHA_256,
    "SCRAM-SHA-1": Proof.SCRAM_SHA_1,
    "SCRAM-SHA-1-PLUS": Proof.SCRAM_SHA_1,
}

SCRAM = frozenset({Proof.SCRAM_SHA_256, Proof.SCRAM_SHA_1})
"""For which keys are wanted while the client is asked."""


def needs_binding(mechanism: str) -> bool:
    """Tell whether a mechanism needs TLS with channel binding."""
    return mechanism.endswith("-PLUS")


def proof_of(mechanism: str) -> Proof:
    """Return what a client shows by a SASL mechanism, or by a command of a protocol's own."""
    return _PROOFS.get(mechanism, Proof.PASSWORD)


@frozen
class ClientCertificate:
    """What a client's certificate says, which is to be trusted.

    ``emails``: its addresses (rfc822Name).  ``subject`` and ``issuer``: their names as RFC 2253 writes them,
    in printable ASCII; ``serial``: its number in hexadecimal; ``fingerprint``: SHA-1 of it, likewise.  They
    are empty where they cannot be read.  ``pem``: all of it in PEM, empty if it is longer than is told.
    """

    emails: tuple[str, ...] = ()
    common_names: tuple[str, ...] = ()
    subject: str = ""
    issuer: str = ""
    serial: str = ""
    fingerprint: str = ""
    pem: bytes = field(default=b"", repr=False)
