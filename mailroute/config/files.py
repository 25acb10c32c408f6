"""Files that the configuration names, read when it is read: certificates, keys, trust roots, passwords."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import field, frozen
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mailroute.sources import Copies
from mailroute.tls import authorities


@frozen
class Chain:
    """A server's certificate and those that lead from it to its authority.

    ``path`` is ``None`` if it did not come from a file.
    """

    path: Path | None
    certificates: tuple[x509.Certificate, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The host names and IP addresses that the server's certificate is for."""
        try:
            extension = self.certificates[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            return ()
        found = extension.value
        addresses = found.get_values_for_type(x509.IPAddress)
        return (*found.get_values_for_type(x509.DNSName), *map(str, addresses))


@frozen
class Key:
    """A private key; its repr does not show it."""

    path: Path | None
    private: PrivateKeyTypes = field(repr=False)


@frozen
class Secret:
    """A secret; its repr does not show it.  ``path`` is ``None`` if it did not come from a file."""

    value: bytes = field(repr=False)
    path: Path | None = None


@frozen
class Authorities:
    """Who may vouch for a backend: may be given to `optionsForClientTLS` as its trust root.

    ``root`` is Twisted's object for them; ``path`` is ``None`` if they did not come from a file.
    """

    path: Path | None
    root: object

    def __conform__(self, interface: Any) -> object:
        """Stand for the root where Twisted asks for one: zope.interface calls this to adapt."""
        return interface(self.root, None)


def read(path: Path, copies: Copies | None = None) -> bytes:
    """Return the file's content: the copy of it, if there is one.

    :raises ValueError: says why it cannot be read.
    """
    try:
        return path.read_bytes() if copies is None else copies.read(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None


def read_chain(source: Path | bytes, copies: Copies | None = None) -> Chain:
    """Read PEM certificates from a file, or from the PEM itself.

    :raises ValueError: says why not.
    """
    path, pem, name = _opened(source, copies)
    try:
        return Chain(path, tuple(x509.load_pem_x509_certificates(pem)))
    except ValueError:
        raise ValueError(f"{name} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)") from None


def read_authorities(path: Path, copies: Copies | None = None) -> Authorities:
    """Read the PEM certificates of authorities.

    :raises ValueError: says why not.
    """
    pem = read(path, copies)
    try:
        return Authorities(path, authorities(pem))
    except ValueError:
        raise ValueError(f"{path} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)") from None


def read_key(source: Path | bytes, chain: Chain | None, copies: Copies | None = None) -> Key:
    """Read a PEM private key from a file, or from the PEM itself; check that it fits the chain.

    :raises ValueError: says why not.
    """
    path, pem, name = _opened(source, copies)
    try:
        private = serialization.load_pem_private_key(pem, None)
    except TypeError:
        raise ValueError(
            f"{name} is encrypted, and nobody is there to type its passphrase: decrypt it"
        ) from None
    except Exception:  # cryptography has its own for what it does not support
        raise ValueError(f"{name} holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)") from None
    if chain is not None:
        _check_fit(private, chain, name)
    return Key(path, private)


def read_secret(path: Path, copies: Copies | None = None) -> Secret:
    """Read the first line of a file.

    :raises ValueError: the file cannot be read, or there is nothing in it that could be a password.
    """
    value = read(path, copies).split(b"\n", 1)[0].removesuffix(b"\r")
    if not value:
        raise ValueError(f"{path}: the first line is empty: it must be the password")
    if b"\0" in value:
        raise ValueError(f"{path}: a password cannot contain a NUL byte")
    return Secret(value, path)


def _opened(source: Path | bytes, copies: Copies | None) -> tuple[Path | None, bytes, str]:
    if isinstance(source, bytes):
        return None, source, "the PEM"
    return source, read(source, copies), str(source)


def _check_fit(private: PrivateKeyTypes, chain: Chain, name: str) -> None:
    def public(thing: PrivateKeyTypes | x509.Certificate) -> bytes:
        return thing.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    ours = public(private)
    fits = [ours == public(certificate) for certificate in chain.certificates]
    if fits[0]:
        return
    if any(fits):
        raise ValueError(
            f"{name} belongs to certificate {fits.index(True) + 1} of the chain: "
            "the server's own certificate must come first"
        )
    raise ValueError(f"{name} does not belong to the chain's certificate: they must be made together")
