"""Looking at a backend's TLS without insisting on anything: any certificate is taken, and its faults kept.

For those who send no secret there.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen
from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from mailroute.tls.client import ClientTLS, Unverified, client_context
from mailroute.tls.errors import explain_error

MAX_FAULTS = 8
"""Faults that are kept of a chain: how many there are is for the server to decide."""


@frozen
class ChainFault:
    """What OpenSSL has against a certificate: its code (X509_V_ERR_…), and which one, 0 the server's own."""

    code: int
    depth: int


@frozen
class Inspected:
    """What was seen of a connection's TLS.

    ``name_fault`` is why its certificate does not carry the name, empty if it does or there is none to carry.
    """

    version: str
    cipher: str
    certificate: x509.Certificate | None
    chain_faults: tuple[ChainFault, ...]
    name_fault: str


@implementer(IOpenSSLClientConnectionCreator)
class Inspector:
    """Makes the client's side of TLS for one connection that is to be looked at.

    :param name: the name that the certificate is to carry; empty for any.
    :param roots: those of `client_context`.
    :raises ValueError: no certificate could be verified for the name.
    """

    def __init__(self, name: str, roots: Any = None) -> None:
        self._context = client_context(roots)
        self._context.set_verify(SSL.VERIFY_PEER, self._note)
        self._name = ClientTLS(name, self._context) if name else None
        self._faults: list[ChainFault] = []
        self._connection: SSL.Connection | None = None

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Make the connection object (`IOpenSSLClientConnectionCreator`)."""
        del protocol
        self._connection = SSL.Connection(self._context, None)
        if self._name is not None and self._name.server_name is not None:
            self._connection.set_tlsext_host_name(self._name.server_name)
        return self._connection

    @property
    def begun(self) -> bool:
        """Whether a handshake has begun."""
        return self._connection is not None

    def inspect(self) -> Inspected | None:
        """Return what was seen; None if no cipher has been agreed on."""
        connection = self._connection
        if connection is None or connection.get_cipher_name() is None:
            return None
        certificate, fault = None, ""
        try:
            shown = connection.get_peer_certificate()
            certificate = None if shown is None else shown.to_cryptography()
            if self._name is not None:
                self._name.verify(connection)
        except Unverified as error:
            fault = explain_error(error)
        except ValueError as error:
            fault = f"the certificate cannot be read: {error}"
        version, cipher = connection.get_protocol_version_name(), connection.get_cipher_name()
        return Inspected(version, cipher or "", certificate, tuple(self._faults), fault)

    def _note(self, connection: SSL.Connection, certificate: X509, code: int, depth: int, sound: int) -> bool:
        """Take whatever OpenSSL does not like; it is to go on."""
        del connection, certificate
        if not sound and len(self._faults) < MAX_FAULTS:
            self._faults.append(ChainFault(code, depth))
        return True
