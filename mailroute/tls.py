"""TLS on both legs: certificates chosen by SNI for clients, verified names for backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import field, frozen
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from twisted.internet.ssl import (
    AcceptableCiphers,
    CertificateOptions,
    TLSVersion,
    optionsForClientTLS,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

_CIPHERS = AcceptableCiphers.fromOpenSSLCipherString(
    "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:!aNULL:!MD5:!DSS"
)


@frozen
class KeyPair:
    """A certificate chain, the server's own first, its key, and the DNS names it is for."""

    certificates: Sequence[x509.Certificate]
    key: PrivateKeyTypes = field(repr=False)
    names: Sequence[str] = ()


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS:
    """Makes the server's side of TLS: the certificate by the name asked for, ALPN held to one protocol.

    The first key pair serves clients that name nobody or somebody unknown.  A
    client that asks by ALPN for another protocol is refused (RFC 7301 section
    3.2), so that one cannot be made to speak to the wrong server (ALPACA).

    :param alpn: the protocol ids to agree to; empty to leave ALPN alone.
    """

    def __init__(self, pairs: Sequence[KeyPair], alpn: tuple[bytes, ...] = ()) -> None:
        self._alpn = alpn
        self._by_name: dict[str, SSL.Context] = {}
        contexts = [self._context(pair) for pair in pairs]
        self._default = contexts[0]
        for pair, context in zip(pairs, contexts, strict=True):
            for name in pair.names:
                self._by_name.setdefault(name.lower(), context)
        self._default.set_tlsext_servername_callback(self._choose)

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Make the connection object of one client (`IOpenSSLServerConnectionCreator`)."""
        del protocol
        return SSL.Connection(self._default, None)

    def _context(self, pair: KeyPair) -> SSL.Context:
        # pyOpenSSL wants cryptography's objects by now; Twisted's annotations still name its old ones.
        certificate: Any = pair.certificates[0]
        intermediates: Any = list(pair.certificates[1:])
        key: Any = pair.key
        options = CertificateOptions(
            privateKey=key,
            certificate=certificate,
            extraCertChain=intermediates,
            acceptableCiphers=_CIPHERS,
            insecurelyLowerMinimumTo=TLSVersion.TLSv1_2,
        )
        context: SSL.Context = options.getContext()
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        if self._alpn:
            context.set_alpn_select_callback(self._agree)
        return context

    def _choose(self, connection: SSL.Connection) -> None:
        name = (connection.get_servername() or b"").decode("ascii", "replace").lower().rstrip(".")
        _, _, parent = name.partition(".")
        context = self._by_name.get(name) or self._by_name.get(f"*.{parent}")
        if context is not None:
            connection.set_context(context)

    def _agree(self, connection: SSL.Connection, offered: list[bytes]) -> bytes:
        del connection
        for protocol in offered:
            if protocol in self._alpn:
                return protocol
        # In the form of OpenSSL's own errors, which is what Twisted looks into.
        raise SSL.Error([("SSL routines", "", "the client wants another application protocol")])


def client_tls(name: str, roots: Any = None) -> IOpenSSLClientConnectionCreator:
    """Make the client's side of TLS, which verifies the backend's certificate and name.

    :param name: the host name or IP address that the certificate must carry.
    :param roots: whom to trust instead of the system's authorities (an IOpenSSLTrustRoot,
        for which Twisted has no public name).
    """
    creator: IOpenSSLClientConnectionCreator = optionsForClientTLS(name, trustRoot=roots)
    return creator


def explain(failure: Failure) -> str:
    """Say why a TLS handshake or connection failed, in the libraries' own terms."""
    error = failure.value
    if isinstance(error, VerificationError):
        wanted = ", ".join(str(mismatch.mismatched_id) for mismatch in error.errors)
        return f"the certificate does not carry the name that it must: {wanted}"
    queue = error.args[0] if error is not None and error.args else ""
    if isinstance(queue, list):
        queue = "; ".join(str(entry[-1]) for entry in queue if entry)
    return str(queue) or "no reason given"
