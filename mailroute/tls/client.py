"""The client's side of TLS: backends prove their names, and sessions with them are resumed."""

from __future__ import annotations

import datetime
import ipaddress
import math
import time
from collections.abc import Callable
from typing import Any

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    TLSVersion,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from mailroute.tls.ciphers import TLS_1_3

_log = Logger(namespace="mailroute")

SESSION_LIFETIME = 3600.0
"""Seconds for which a session with a backend is resumed: that long it need not show its certificate."""


class Unverified(SSL.Error):
    """The backend's certificate is not for the name that it must carry; in the form of OpenSSL's errors."""

    def __init__(self, why: str) -> None:
        super().__init__([("mailroute", "", why)])


def authorities(pem: bytes) -> object:
    """Return the trust root that certificates in PEM form make.

    :raises ValueError: there is none in it.
    """
    found = x509.load_pem_x509_certificates(pem)
    root: object = trustRootFromCertificates([Certificate(X509.from_cryptography(one)) for one in found])
    return root


def client_context(roots: Any = None) -> SSL.Context:
    """Make what all connections to one backend share.

    :param roots: whom to trust instead of the system's authorities (an IOpenSSLTrustRoot,
        for which Twisted has no public name).
    """
    options = CertificateOptions(
        trustRoot=platformTrust() if roots is None else roots,
        enableSessionTickets=True,
        insecurelyLowerMinimumTo=TLSVersion.TLSv1_2,
    )
    context: SSL.Context = options.getContext()
    context.set_tls13_ciphersuites(TLS_1_3)
    return context


def client_tls(name: str, roots: Any = None) -> ClientTLS:
    """Make the client's side of TLS for a backend that one name and one trust root are enough for."""
    return ClientTLS(name, client_context(roots))


@implementer(IOpenSSLClientConnectionCreator)
class ClientTLS:
    """Makes the client's side of TLS, which verifies the backend's certificate and name.

    OpenSSL verifies the chain; the name is compared here, before the handshake
    counts as done, and whatever cannot be compared is refused.  (Twisted's own
    `optionsForClientTLS` lets certificates pass whose names cannot be read, as
    of its version 26.10.)

    A resumed session shows no new certificate, so the one that it began with is
    compared again; only a session that began with a verified backend, for this
    name, in this context, is ever resumed, and only for `SESSION_LIFETIME`.

    ``server_name`` is what it asks for by SNI, None for an address.

    :param name: the host name or IP address that the certificate must carry.
    :param context: what `client_context` has made.
    :param seconds: a clock, for the age of the session.
    :raises ValueError: no certificate could be verified for the name.
    """

    def __init__(
        self, name: str, context: SSL.Context, *, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._context = context
        self._seconds = seconds
        self.server_name: bytes | None = None
        self._verify: Callable[[x509.Certificate, str], None] = verify_certificate_ip_address
        if not is_address(name):
            self.server_name = _internationalised(name)
            self._name = self.server_name.decode("ascii")
            self._verify = verify_certificate_hostname
        self._verified: x509.Certificate | None = None
        self._session: SSL.Session | None = None
        self._until = 0.0
        self._not_before = -math.inf

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Make the connection object of one connection (`IOpenSSLClientConnectionCreator`)."""
        del protocol
        connection = _Connection(self._context, self)
        if self.server_name is not None:
            connection.set_tlsext_host_name(self.server_name)
        if self._session is not None and self._seconds() < self._until:
            connection.set_session(self._session)
            connection.resumes = True
        return connection

    def verify(self, connection: SSL.Connection) -> None:
        """Compare the name of a backend whose chain OpenSSL has verified.

        :raises Unverified: it is another one, or cannot be told.
        """
        shown = connection.get_peer_certificate()
        certificate = None if shown is None else shown.to_cryptography()
        if certificate is None:
            raise Unverified("there is no certificate")
        if certificate == self._verified:
            return
        try:
            self._verify(certificate, self._name)
        except VerificationError:
            raise Unverified(f"the certificate does not carry the name {self._name}") from None
        except Exception as error:  # whatever a certificate can do to a library
            raise Unverified(f"the certificate's names cannot be verified: {error}") from None
        self._verified = certificate

    def remember(self, connection: SSL.Connection) -> None:
        """Resume this session from now on; to be called once something has been read.

        With TLS 1.3 the ticket comes behind the handshake.
        """
        if self._verified is None or self._seconds() < self._not_before:
            return
        left = self._verified.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        self._session = connection.get_session()
        self._until = self._seconds() + min(SESSION_LIFETIME, left.total_seconds())

    def give_up_resuming(self) -> None:
        """Do handshakes in full for `SESSION_LIFETIME`: one that was to resume a session has failed."""
        if self._session is not None:
            _log.warn("resuming a TLS session with {name} has failed: an hour without it", name=self._name)
        self._session = None
        self._not_before = self._seconds() + SESSION_LIFETIME


def remember(creator: object, transport: Any) -> None:
    """Resume the session of this transport from now on, if its maker can do that."""
    if isinstance(creator, ClientTLS):
        creator.remember(transport.getHandle())


def resuming_failed(creator: object, transport: Any) -> bool:
    """Tell whether a handshake that has failed was to resume a session, and in full may succeed.

    From then on it is done in full.
    """
    if not isinstance(creator, ClientTLS) or not getattr(transport.getHandle(), "resumes", False):
        return False
    creator.give_up_resuming()
    return True


class _Connection(SSL.Connection):
    """A connection whose handshake is done only when the name is verified, too."""

    def __init__(self, context: SSL.Context, creator: ClientTLS) -> None:
        super().__init__(context, None)
        self.resumes = False
        self._creator: ClientTLS | None = creator

    def do_handshake(self) -> None:
        super().do_handshake()
        creator, self._creator = self._creator, None
        if creator is not None:
            try:
                creator.verify(self)
            except Unverified:
                # Whatever anybody still wants to say here is not said.
                self.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)
                raise


def _internationalised(name: str) -> bytes:
    """Return a host name as DNS and certificates have it (RFC 5891).

    :raises ValueError: (in the forms of IDNAError and UnicodeError) it can be none.
    """
    try:
        from idna import encode  # which Twisted prefers as well, and does not insist on
    except ImportError:
        return name.encode("idna")
    return encode(name)


def is_address(name: str) -> bool:
    """Tell whether a host is written as an address, of IPv4 or IPv6, and not by its name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
