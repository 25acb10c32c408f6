"""What a client's certificate says."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from mailroute.proofs import ClientCertificate

MAX_NAMES = 16
"""Names of each kind that are read in a client's certificate."""

MAX_DN = 1024
"""Characters of a certificate's subject, and of its issuer; a longer one is not told."""

MAX_PEM = 8000
"""Bytes of a certificate in PEM, beyond which it is not told: web servers refuse a header much longer.
Nearly all certificates take two or three thousand."""

_SHORT_NAMES = {
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.GIVEN_NAME: "GN",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.SURNAME: "SN",
    NameOID.TITLE: "title",
}
"""What OpenSSL calls attributes for which RFC 4514 has no name."""


def read_certificate(certificate: x509.Certificate) -> ClientCertificate:
    """Return what a certificate says that is to be trusted."""
    pem = certificate.public_bytes(Encoding.PEM)
    try:
        return ClientCertificate(
            tuple(_emails(certificate)),
            tuple(_common_names(certificate)),
            _written(certificate.subject),
            _written(certificate.issuer),
            _serial(certificate),
            certificate.fingerprint(SHA1()).hex(),  # noqa: S303 - a name that others look for
            pem if len(pem) <= MAX_PEM else b"",
        )
    except ValueError:  # it is good, and says something that nobody can read
        return ClientCertificate()


def _emails(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.RFC822Name)[:MAX_NAMES]


def _common_names(certificate: x509.Certificate) -> list[str]:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return [name.value for name in found if isinstance(name.value, str)][:MAX_NAMES]


def _written(name: x509.Name) -> str:
    """Return a name as OpenSSL writes it after RFC 2253: in printable ASCII."""
    text = name.rfc4514_string(_SHORT_NAMES).encode()
    written = "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:02X}" for byte in text)
    return written if len(written) <= MAX_DN else ""


def _serial(certificate: x509.Certificate) -> str:
    """Return the number in as many digits as its bytes have."""
    digits = f"{certificate.serial_number:X}"
    return digits.rjust(len(digits) + len(digits) % 2, "0")
