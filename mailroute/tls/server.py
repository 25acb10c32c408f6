"""The server's side of TLS: certificates chosen by name and kind, sessions resumed by ticket."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from attrs import field, frozen
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from mailroute.proofs import ClientCertificate
from mailroute.tls.certificate import read_certificate
from mailroute.tls.ciphers import OPTIONS, TLS_1_2, TLS_1_3
from mailroute.wire.client_hello import MAX_HELLO, Incomplete, server_name

TICKET_LIFETIME = 7200
"""Seconds for which a client may resume its session."""

TICKET_KEY_LIFETIME = 86400.0
"""Seconds after which tickets are encrypted with another key, and those made before are worth nothing.

Whoever gets hold of the key can read recorded TLS 1.2 sessions (RFC 9325 section 4.4 wants it renewed).
"""


@frozen
class KeyPair:
    """A certificate chain, the server's own first, its key, and the DNS names it is for."""

    certificates: Sequence[x509.Certificate]
    key: PrivateKeyTypes = field(repr=False)
    names: Sequence[str] = ()


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS:
    """Makes the server's side of TLS: the certificate by the name asked for, ALPN held to one protocol.

    The first key pair serves clients that name nobody or somebody unknown.
    Where pairs of several kinds are for one name (ECDSA and RSA), each client
    gets the one that it understands, ECDSA if it understands both.  A client
    that asks by ALPN for another protocol is refused (RFC 7301 section 3.2), so
    that one cannot be made to speak to the wrong server (ALPACA).

    :param alpn: the protocol ids to agree to; empty to leave ALPN alone.
    :param seconds: a clock, for the age of the tickets' key; if there are forks, one for all.
    :param days: for how many days to have a key at once, so that all forks have the same ones.
    :param authorities: who may vouch for clients; a client is asked for its certificate if there are any.
        It need not have one, but one that nobody vouches for ends its handshake.
    """

    def __init__(
        self,
        pairs: Sequence[KeyPair],
        alpn: tuple[bytes, ...] = (),
        *,
        seconds: Callable[[], float] = time.monotonic,
        days: int = 1,
        authorities: Sequence[x509.Certificate] = (),
    ) -> None:
        self._alpn = alpn
        self._contexts = _Contexts(pairs, seconds, days, authorities)

    def speaking(self, alpn: tuple[bytes, ...]) -> ServerTLS:
        """Return the same for another protocol: contexts, and so tickets, are shared."""
        other = copy.copy(self)
        other._alpn = alpn
        return other

    def renew(self) -> None:
        """Forget the tickets' key if its time is over, as the next connection would."""
        self._contexts.default()

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Make the connection object of one client (`IOpenSSLServerConnectionCreator`)."""
        del protocol
        return _Connection(self._contexts, self._alpn)


class _Connection(SSL.Connection):
    """A client's connection, which chooses its certificate before OpenSSL sees the first byte.

    OpenSSL's own callback for the name comes after it has looked at the
    client's ticket, and a ticket made for one name then resumes a session under
    another (OpenSSL does not keep RFC 6066 section 3 in this).  A certificate
    that is chosen first brings its session id context, which settles it.
    """

    def __init__(self, contexts: _Contexts, alpn: tuple[bytes, ...]) -> None:
        super().__init__(contexts.default(), None)
        self.alpn = alpn
        self.asks = contexts.asks
        """Whether the client was asked for its certificate."""
        self._contexts: _Contexts | None = contexts if contexts.several else None
        self._hello = b""

    def bio_write(self, buf: Any) -> int:
        """Take bytes from the client; the first ones are kept back until they can be understood."""
        if self._contexts is None:
            return super().bio_write(buf)
        self._hello += bytes(buf)
        try:
            context = self._contexts.chosen(server_name(self._hello) or b"")
        except Incomplete:
            if len(self._hello) <= MAX_HELLO:
                return len(buf)  # kept back
            context = self._contexts.unread
        if context is not None:
            self.set_context(context)
        hello, self._contexts, self._hello = self._hello, None, b""
        super().bio_write(hello)
        return len(buf)


class _Contexts:
    """The contexts of all certificates: one for each set of key pairs that has a name in common."""

    def __init__(
        self,
        pairs: Sequence[KeyPair],
        seconds: Callable[[], float],
        days: int,
        authorities: Sequence[x509.Certificate],
    ) -> None:
        self._seconds = seconds
        self._make = partial(_context, authorities=authorities)
        self.asks = bool(authorities)
        self._names = _by_name(pairs)
        self._first = _one_of_each_kind(
            [pairs[0], *(pair for name in pairs[0].names for pair in self._names[name.lower()])]
        )
        self._default = self._make(self._first)
        self._later = tuple(self._make(self._first) for _ in range(days - 1))
        self._until = seconds() + TICKET_KEY_LIFETIME
        contexts = {_identity(self._first): self._default}
        for together in self._names.values():
            if _identity(together) not in contexts:
                contexts[_identity(together)] = self._make(together)
        self._others = {
            name: contexts[_identity(together)]
            for name, together in self._names.items()
            if _identity(together) != _identity(self._first)
        }
        self.several = bool(self._others)
        """Whether the name that a client asks for makes a difference."""
        self.unread = self._make(self._first, apart=True) if self.several else None
        """The first pairs' context, for clients of whom it is not known what they ask for.

        It resumes nobody else's sessions.
        """

    def default(self) -> SSL.Context:
        """Return the context that a connection begins with, whose key encrypts all tickets.

        OpenSSL makes that key with the context, and has no other way to change it from Python.
        """
        late = self._seconds() - self._until
        if late >= 0:
            passed = int(late // TICKET_KEY_LIFETIME)  # besides the one that has ended
            self._until += (passed + 1) * TICKET_KEY_LIFETIME
            later = self._later[passed:]
            self._default, self._later = (later[0], later[1:]) if later else (self._make(self._first), ())
        return self._default

    def chosen(self, name: bytes) -> SSL.Context | None:
        """Return the context for a name; None if it is the default one."""
        text = name.decode("ascii", "replace").lower().rstrip(".")
        if text in self._names:
            return self._others.get(text)
        return self._others.get(_wildcard(text))


def _identity(pairs: Iterable[KeyPair]) -> tuple[int, ...]:
    return tuple(map(id, pairs))


def _by_name(pairs: Sequence[KeyPair]) -> Mapping[str, tuple[KeyPair, ...]]:
    """For each name the key pairs that are for it: the first of each kind, ECDSA before RSA."""
    bearers: dict[str, list[KeyPair]] = {}
    for pair in pairs:
        for name in pair.names:
            bearers.setdefault(name.lower(), []).append(pair)
    found = {}
    for name, exactly in bearers.items():
        found[name] = _one_of_each_kind([*exactly, *bearers.get(_wildcard(name), ())])
    return found


def _one_of_each_kind(pairs: Iterable[KeyPair]) -> tuple[KeyPair, ...]:
    of_kind: dict[int, KeyPair] = {}
    for pair in pairs:
        of_kind.setdefault(_kind(pair), pair)
    return tuple(of_kind[kind] for kind in sorted(of_kind))


def _wildcard(name: str) -> str:
    return f"*.{name.partition('.')[2]}"


def _kind(pair: KeyPair) -> int:
    """Number the kinds of keys, of which OpenSSL can hold one each in a context."""
    for number, kind in enumerate((EllipticCurvePrivateKey, RSAPrivateKey)):
        if isinstance(pair.key, kind):
            return number
    return 2


def _context(
    pairs: tuple[KeyPair, ...], *, authorities: Sequence[x509.Certificate], apart: bool = False
) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(OPTIONS)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    # Tickets keep the sessions at the clients; a cache here would only grow.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_timeout(TICKET_LIFETIME)
    identity = hashlib.sha256(b"apart" if apart else b"")
    for pair in pairs:
        identity.update(pair.certificates[0].public_bytes(Encoding.DER))
        _use(context, pair, alone=len(pairs) == 1)
    for authority in authorities:
        # A ticket holds the client's certificate: it is good for nobody who trusts others.
        identity.update(authority.public_bytes(Encoding.DER))
    if authorities:
        _ask_for_certificate(context, authorities)
    context.set_session_id(identity.digest())
    # Unless somebody listens, OpenSSL does not keep the name for the sessions that are resumed later.
    context.set_tlsext_servername_callback(_heard)
    context.set_alpn_select_callback(_agree)
    context.set_tls13_ciphersuites(TLS_1_3)
    context.set_cipher_list(TLS_1_2)
    return context


def _ask_for_certificate(context: SSL.Context, authorities: Sequence[x509.Certificate]) -> None:
    store = context.get_cert_store()
    if store is None:
        raise RuntimeError("OpenSSL has no store for authorities")
    # pyOpenSSL takes cryptography's objects, whatever annotations say that are older than it.
    given: list[Any] = list(authorities)
    for authority in given:
        store.add_cert(X509.from_cryptography(authority))
        context.add_client_ca(authority)
    # Without a callback OpenSSL ends the handshake of a client whose certificate is not good.
    context.set_verify(SSL.VERIFY_PEER)


def asked_for_certificate(connection: SSL.Connection) -> bool:
    """Tell whether one of ours has asked the client for its certificate."""
    return isinstance(connection, _Connection) and connection.asks


def client_certificate(connection: SSL.Connection) -> ClientCertificate | None:
    """Return whose certificate the client has shown, if one of ours has asked for it and it is good."""
    if not asked_for_certificate(connection):
        return None
    certificate = connection.get_peer_certificate(as_cryptography=True)
    # A ticket outlives a certificate whose time is over meanwhile.
    if certificate is None or certificate.not_valid_after_utc < datetime.now(UTC):
        return None
    return read_certificate(certificate)


def channel_binding(connection: SSL.Connection) -> bytes | None:
    """Return tls-exporter's channel binding (RFC 9266).

    None before TLS 1.3: there it would need an extension that not everybody has, against a triple handshake.
    """
    if connection.get_protocol_version_name() != "TLSv1.3":
        return None
    binding: bytes = connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
    return binding


def _use(context: SSL.Context, pair: KeyPair, *, alone: bool) -> None:
    # pyOpenSSL takes cryptography's objects, whatever annotations say that are older than it.
    certificates: list[Any] = list(pair.certificates)
    key: Any = pair.key
    if alone:
        context.use_certificate(certificates[0])
        for certificate in certificates[1:]:
            context.add_extra_chain_cert(certificate)
    else:
        # Extra chain certificates would go out with the certificates of every kind.
        with _file(b"".join(each.public_bytes(Encoding.PEM) for each in certificates)) as path:
            context.use_certificate_chain_file(path)
    context.use_privatekey(key)
    context.check_privatekey()


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[str]:
    """Give a file with this content to a function that takes nothing else."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        with os.fdopen(os.memfd_create("certificates"), "wb", buffering=0) as memory:
            memory.write(content)
            yield f"/proc/self/fd/{memory.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(buffering=0) as on_disk:
            on_disk.write(content)
            yield on_disk.name


def _heard(connection: SSL.Connection) -> None:
    del connection


def _agree(connection: SSL.Connection, offered: list[bytes]) -> Any:
    assert isinstance(connection, _Connection)  # noqa: S101 (there are no others)
    if not connection.alpn:
        return SSL.NO_OVERLAPPING_PROTOCOLS
    for protocol in offered:
        if protocol in connection.alpn:
            return protocol
    # In the form of OpenSSL's own errors, which is what Twisted looks into.
    raise SSL.Error([("SSL routines", "", "the client wants another application protocol")])
