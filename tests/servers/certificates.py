"""Certificates for the tests: an authority that lives as long as a folder."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@frozen
class Certificate:
    """The PEM files of one certificate."""

    chain: Path
    key: Path


class Authority:
    """Signs certificates; ``file`` is what its clients have to trust.  It may be below another one."""

    def __init__(
        self, folder: Path, name: str = "mailroute test authority", above: Authority | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._key = ec.generate_private_key(_CURVE)
        self._name = _called(name)
        self._above = b""
        signer = self if above is None else above
        public = signer._key.public_key()
        builder = (
            _blank(self._name, signer._name, self._key)
            .not_valid_after(datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        )
        certificate = _pem(builder.sign(signer._key, hashes.SHA256()))
        if above is None:
            self.file = folder / "authority.pem"
            self.file.write_bytes(certificate)
        else:
            self.file = above.file
            self._above = certificate + above._above

    def intermediate(self, name: str) -> Authority:
        """Return an authority below this one, which comes with the chains that it issues."""
        return Authority(self.folder / name, name, self)

    def issue(
        self,
        *names: str,
        kind: str = "ec",
        more: Sequence[x509.GeneralName] = (),
        lasts: datetime.timedelta = datetime.timedelta(days=2),
        client: bool = False,
    ) -> Certificate:
        """Sign a certificate for host names and IP addresses, with a key of a kind: "ec" or "rsa".

        ``more`` is what else the certificate is to be for; ``client``: a client's, not a server's, the
        first name of which is its common name alone.
        """
        key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(_CURVE)
        public = self._key.public_key()
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = (
            _blank(_called(next(iter(names), "nobody")), self._name, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        )
        builder = builder.not_valid_after(datetime.datetime.now(datetime.UTC) + lasts)
        if given := [*map(_general, () if client else names), *more]:
            builder = builder.add_extension(x509.SubjectAlternativeName(given), critical=False)
        stem = f"{next(iter(names), 'nameless')}.{kind}"
        certificate = Certificate(self.folder / f"{stem}.pem", self.folder / f"{stem}.key.pem")
        certificate.chain.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())) + self._above)
        certificate.key.touch(mode=0o600)
        certificate.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate

    def context(self) -> ssl.SSLContext:
        """Return a client's context that trusts this authority alone."""
        return ssl.create_default_context(cafile=str(self.file))


_CURVE = ec.SECP256R1()


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _blank(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
    )


def _usage(**wanted: bool) -> x509.KeyUsage:
    # Python 3.13 checks certificates strictly: an authority has to say that it may sign.
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in names})


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
