"""Two real connections to splice, and blocking peers at their far ends.

A `Rig` makes ``client ── a │ b ── server``: ``a`` and ``b`` are the Twisted
transports that a proxy would hold, ``client`` and ``server`` are plain Python
sockets (with the standard library's TLS), which know nothing of Twisted.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import math
import os
import selectors
import shutil
import socket
import ssl
import struct
import tempfile
import warnings
from pathlib import Path

from attrs import define, field, frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet import ssl as tx_ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from mailroute.pipe import Order, SpliceTerms, splice, with_deferred
from mailroute.pipe.choice import only_wire
from mailroute.sockets.endpoints import HubClientEndpoint, HubServerEndpoint
from mailroute.sockets.transport import HubTransport

PATIENCE = 10.0
"""Seconds after which a test that waits has failed."""

KINDS = [
    ("tcp", "tcp"),
    ("tls", "tcp"),
    ("tcp", "tls"),
    ("tls", "tls"),
    ("unix", "unix"),
    ("starttls", "starttls"),
]

DEFAULT_TERMS = SpliceTerms()


def wiring(a, b, *, first_to_a=b"", first_to_b=b"", terms=DEFAULT_TERMS, clock=reactor):
    """Splice as where there is nothing better: with Twisted's producers and consumers."""
    return with_deferred(Order(a, b, first_to_a, first_to_b, terms, clock), only_wire)


PIPES = {"wiring": wiring, "best": splice, "hub": splice}
"""Every pipe there is, under a name; each keeps all the promises.  Which one is best depends on the kinds.

For "hub" the transports are not Twisted's: their sockets have been in the hub from the start.
"""


@frozen
class Credentials:
    """One self-signed certificate in the forms that Twisted and the standard library want."""

    twisted_server: object
    twisted_client: object
    server: ssl.SSLContext
    client: ssl.SSLContext


def make_credentials(folder: Path) -> Credentials:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem = folder / "both.pem"
    pem.write_bytes(secret + chain)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    client = ssl.create_default_context(cadata=chain.decode())
    with warnings.catch_warnings():
        # Twisted hands certificates to pyOpenSSL in a form that this deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        twisted_server = tx_ssl.PrivateCertificate.loadPEM(secret + chain).options()
        twisted_server.getContext()
        authority = tx_ssl.Certificate.loadPEM(chain)
        twisted_client = tx_ssl.optionsForClientTLS("localhost", trustRoot=authority)
    return Credentials(twisted_server, twisted_client, server, client)


class Creator:
    """Makes TLS connections for sockets in the hub."""

    def __init__(self, context: SSL.Context) -> None:
        self.context = context

    def serverConnectionForTLS(self, _transport: object) -> SSL.Connection:
        return SSL.Connection(self.context, None)

    clientConnectionForTLS = serverConnectionForTLS


class Peer:
    """A blocking socket at the far end of a leg.  Call from a thread, all but `reset` and `close`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.tls = isinstance(sock, ssl.SSLSocket)
        sock.settimeout(PATIENCE)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self, size: int) -> bytes:
        """Return exactly so many bytes."""
        parts = []
        while size:
            part = self.sock.recv(min(size, 65536))
            if not part:
                raise EOFError(f"{size} bytes are missing")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def drain(self) -> bytes:
        """Return all until an end in good order; a reset or a TLS stream cut short raises."""
        parts = []
        while part := self.sock.recv(65536):
            parts.append(part)
        return b"".join(parts)

    def finish(self) -> None:
        """Close the sending half."""
        self.sock.shutdown(socket.SHUT_WR)

    def goodbye(self) -> None:
        """Close in good order: TLS says close_notify, and waits for the other's."""
        if self.tls:
            self.sock = self.sock.unwrap()
        self.sock.close()

    def reset(self) -> None:
        """Vanish (a UNIX socket cannot reset; it just closes)."""
        if self.sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def fill(self, stuck_for: float = 0.3, at_most: float = math.inf) -> int:
        """Send until nothing has been taken for a while, and return how much was."""
        block, sent = bytes(16384), 0
        self.sock.settimeout(stuck_for)
        with contextlib.suppress(TimeoutError):
            while sent < at_most:
                sent += self.sock.send(block)
        self.sock.settimeout(PATIENCE)
        return sent

    def exchange(self, outgoing: int, incoming: int, piece: int = 65536) -> tuple[str, str]:
        """Send and receive so many bytes at once; return the digests of what went out and came in.

        One thread and a non-blocking socket: before Python 3.13 two threads
        must not share a TLS socket.
        """
        out, into = hashlib.sha256(), hashlib.sha256()
        fresh = memoryview(b"")
        buffer = memoryview(bytearray(piece))
        self.sock.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(self.sock, selectors.EVENT_READ)
            while outgoing or incoming or fresh:
                moved = False
                if not fresh and outgoing:
                    fresh = memoryview(os.urandom(min(outgoing, 1 << 16)))
                    out.update(fresh)
                    outgoing -= len(fresh)
                if fresh and (sent := self._try(self.sock.send, fresh)):
                    fresh, moved = fresh[sent:], True
                if incoming and (got := self._try(self.sock.recv_into, buffer)) is not None:
                    if got == 0:
                        raise EOFError(f"{incoming} bytes are missing")
                    into.update(buffer[:got])
                    incoming, moved = incoming - got, True
                if not moved:
                    events = selectors.EVENT_READ | (selectors.EVENT_WRITE if fresh else 0)
                    selector.modify(self.sock, events)
                    if not selector.select(PATIENCE):
                        raise TimeoutError(f"stuck with {outgoing} to send, {incoming} to come")
        self.sock.settimeout(PATIENCE)
        return out.hexdigest(), into.hexdigest()

    @staticmethod
    def _try(function, *arguments):
        try:
            return function(*arguments)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None


class CountingSocket:
    """A socket that knows how many bytes went through it."""

    def __init__(self, sock: socket.socket, meter: Meter, name: str) -> None:
        self._sock, self._meter, self._name = sock, meter, name

    def __getattr__(self, name):
        return getattr(self._sock, name)

    def recv(self, size):
        data = self._sock.recv(size)
        self._meter.took(self._name, len(data))
        return data

    def recvmsg(self, *arguments):
        answer = self._sock.recvmsg(*arguments)
        self._meter.took(self._name, len(answer[0]))
        return answer

    def send(self, data):
        sent = self._sock.send(data)
        self._meter.gave(self._name, sent)
        return sent

    def detach(self):
        self._meter.blind = True
        return self._sock.detach()


@define
class Meter:
    """What is in user space: all that was taken from one socket and not yet given to the other."""

    held: dict[str, int] = field(factory=lambda: {"a to b": 0, "b to a": 0})
    peak: int = 0
    blind: bool = False
    """The socket was taken away from its transport; see test_what_is_not_in_the_sockets instead."""

    def took(self, name: str, size: int) -> None:
        self.held["a to b" if name == "a" else "b to a"] += size
        self.peak = max(self.peak, sum(self.held.values()))

    def gave(self, name: str, size: int) -> None:
        self.held["b to a" if name == "a" else "a to b"] -= size


@implementer(IHandshakeListener)
class Holder(Protocol):
    """Holds a transport till it is spliced, paused as a proxy would; nothing must come to it later."""

    def __init__(self, kind: str, options: object) -> None:
        self.kind, self.options = kind, options
        self.ready: Deferred = Deferred()
        self.ready.addTimeout(PATIENCE, reactor)
        self.lost: Deferred = Deferred()
        self.heard = b""

    def connectionMade(self) -> None:
        if self.kind == "starttls":
            self.transport.startTLS(self.options)
        elif self.kind != "tls":
            self.handshakeCompleted()

    def handshakeCompleted(self) -> None:
        self.transport.pauseProducing()
        self.ready.callback(None)

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, _reason) -> None:
        self.lost.callback(None)


@define
class Pair:
    """``client ── a │ b ── server``."""

    a: object
    b: object
    client: Peer
    server: Peer
    holder_a: Holder
    holder_b: Holder

    def break_a(self) -> None:
        """Have a's connection end abruptly, though nobody reads from it.

        A Twisted transport that is paused does not notice that its peer is
        gone: there, somebody else aborts it.
        """
        if self.a.connected:
            self.a.abortConnection()
        else:
            self.client.reset()

    def meter(self) -> Meter:
        """Count from now on what the process holds."""
        meter = Meter()
        if isinstance(self.a, HubTransport):
            meter.blind = True
            return meter
        for name, transport in ("a", self.a), ("b", self.b):
            bottom = socket_under(transport)
            bottom.socket = CountingSocket(bottom.socket, meter, name)
        return meter


def the_socket(transport):
    """Return a transport's socket."""
    return transport.sock if isinstance(transport, HubTransport) else socket_under(transport).socket


def is_open(transport) -> bool:
    """Whether a transport's connection is still there, whoever has it by now."""
    if isinstance(transport, HubTransport):
        return transport.sock.fileno() != -1
    return bool(transport.connected)


def socket_under(transport):
    """Return the transport with the socket."""
    while not hasattr(transport, "socket") or "socket" not in vars(transport):
        transport = transport.transport
    return transport


async def until(condition, what: str) -> None:
    """Wait for something that nobody announces, for a bounded time."""
    deadline = reactor.seconds() + PATIENCE
    while not condition():
        assert reactor.seconds() < deadline, f"waited in vain until {what}"
        await deferLater(reactor, 0.002)


def _quiet(holder: Holder) -> Factory:
    """Make a factory for one; those that log are kept alive by Twisted's log."""
    factory = Factory.forProtocol(lambda: holder)
    factory.noisy = False
    return factory


class Rig:
    """Makes pairs of connections, and closes what is left of them."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self.folder = Path(tempfile.mkdtemp(prefix="rig"))
        self.peers: list[Peer] = []
        self.transports: list[object] = []
        self.serial = 0
        self.hub: bool | str = False
        """Whether sockets are in the hub from the start: both ends', or that of "a" or "b" alone."""

    async def pair(self, kinds: tuple[str, str] = ("tcp", "tcp"), *, small: bool = False) -> Pair:
        """Connect both sides; ``small``: with small kernel buffers."""
        wanted = self.hub
        self.hub = wanted in (True, "a")
        holder_a, client = await self._accepted(kinds[0], small)
        self.hub = wanted in (True, "b")
        holder_b, server = await self._connected(kinds[1], small)
        self.hub = wanted
        return Pair(holder_a.transport, holder_b.transport, client, server, holder_a, holder_b)

    async def _accepted(self, kind: str, small: bool) -> tuple[Holder, Peer]:
        """Listen with Twisted, connect with a blocking socket."""
        options = self.credentials.twisted_server
        holder = Holder(self._layer(kind), Creator(options.getContext()) if self.hub else options)
        factory = _quiet(holder)
        if kind == "tls" and not self.hub:
            factory = TLSMemoryBIOFactory(self.credentials.twisted_server, False, factory)
        if kind == "unix":
            path = self._path()
            port = await self._serving(UNIXServerEndpoint(reactor, path)).listen(factory)
            address = path
        else:
            endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
            port = await self._serving(endpoint).listen(factory)
            address = ("127.0.0.1", port.getHost().port)
        peer = deferToThread(self._connect, kind, address, small)
        await holder.ready
        await port.stopListening()
        return self._keep(holder, await peer, small)

    def _connect(self, kind: str, address, small: bool) -> Peer:
        sock = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        self._shrink(sock, small)
        sock.settimeout(PATIENCE)
        sock.connect(address)
        if kind in ("tls", "starttls"):
            sock = self.credentials.client.wrap_socket(
                sock, server_hostname="localhost", suppress_ragged_eofs=False
            )
        return Peer(sock)

    async def _connected(self, kind: str, small: bool) -> tuple[Holder, Peer]:
        """Listen with a blocking socket, connect with Twisted."""
        options = Creator(SSL.Context(SSL.TLS_METHOD)) if self.hub else self.credentials.twisted_client
        holder = Holder(self._layer(kind), options)
        with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as listener:
            self._shrink(listener, small)
            listener.settimeout(PATIENCE)
            if kind == "unix":
                path = self._path()
                listener.bind(path)
                endpoint = UNIXClientEndpoint(reactor, path)
            else:
                listener.bind(("127.0.0.1", 0))
                endpoint = TCP4ClientEndpoint(reactor, *listener.getsockname())
            listener.listen(1)
            if self.hub:
                endpoint = HubClientEndpoint(reactor, listener.family, listener.getsockname())
            elif kind == "tls":
                endpoint = wrapClientTLS(self.credentials.twisted_client, endpoint)
            peer = deferToThread(self._accept, kind, listener)
            await endpoint.connect(_quiet(holder))
            await holder.ready
            return self._keep(holder, await peer, small)

    def _accept(self, kind: str, listener: socket.socket) -> Peer:
        sock, _ = listener.accept()
        sock.settimeout(PATIENCE)
        if kind in ("tls", "starttls"):
            sock = self.credentials.server.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
        return Peer(sock)

    def _layer(self, kind: str) -> str:
        """In the hub, TLS from the first byte is started by the protocol."""
        return "starttls" if self.hub and kind == "tls" else kind

    def _serving(self, endpoint):
        return HubServerEndpoint(reactor, endpoint) if self.hub else endpoint

    def _keep(self, holder: Holder, peer: Peer, small: bool) -> tuple[Holder, Peer]:
        self._shrink(the_socket(holder.transport), small)
        self.transports.append(holder.transport)
        self.peers.append(peer)
        return holder, peer

    @staticmethod
    def _shrink(sock: socket.socket, small: bool) -> None:
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)

    def _path(self) -> str:
        self.serial += 1
        return str(self.folder / f"{self.serial}")

    def forget(self) -> None:
        """Let go of pairs whose connections are closed."""
        self.close_peers()
        self.transports.clear()

    def close_peers(self) -> None:
        for peer in self.peers:
            peer.sock.close()
        self.peers.clear()

    async def close(self) -> None:
        self.close_peers()
        for transport in self.transports:
            if transport.connected:
                transport.abortConnection()
        await until(lambda: not any(one.connected for one in self.transports), "all is closed")
        shutil.rmtree(self.folder)
