"""TLS to backends: names are verified, sessions are resumed, and never one instead of the other."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest
import pytest_twisted
from live import Backends, Talk, let_in, live
from OpenSSL import SSL
from servers.certificates import Authority, Certificate
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

from mailroute.backend import Backend as MailBackend
from mailroute.backend import Dial
from mailroute.config.files import read_authorities
from mailroute.dialogs.imap import IMAP
from mailroute.events import Credentials, LoginOrder, Route
from mailroute.testing import CLIENT
from mailroute.tls import ClientTLS, client_context
from mailroute.tls.client import SESSION_LIFETIME, remember

BOB = {"bob": Route("east")}

VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


class Backend:
    """A mail server in threads, with Python's ssl: takes any login, and says what it is asked."""

    def __init__(
        self, issued: Certificate, version: ssl.TLSVersion | None = None, *, starttls: bool = False
    ) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(issued.chain, issued.key)
        if version is not None:
            self.context.maximum_version = version
        self.reused: list[bool] = []
        self._starttls = starttls
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            if self._socket.fileno() < 0:
                plain.close()
                return
            thread = threading.Thread(target=self._talk, args=[plain])
            self._threads.append(thread)
            thread.start()

    def _talk(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain:
            plain.settimeout(20)
            if self._starttls:
                plain.sendall(b"* OK [CAPABILITY IMAP4rev1 STARTTLS] hello\r\n")
                plain.sendall(plain.recv(1000).partition(b" ")[0] + b" OK begin\r\n")
            with self.context.wrap_socket(plain, server_side=True) as secure:
                self.reused.append(bool(secure.session_reused))
                if not self._starttls:
                    secure.sendall(b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hello\r\n")
                while data := secure.recv(1000):
                    tag, _, command = data.partition(b" ")
                    if command.startswith(b"CAPABILITY"):
                        secure.sendall(b"* CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN\r\n")
                    secure.sendall(tag + b" OK [CAPABILITY IMAP4rev1] done\r\n")
                secure.unwrap()

    def close(self) -> None:
        # Closing alone would not wake up who accepts.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        self._socket.close()


@pytest.fixture
def backend(authority: Authority) -> Iterator[Backend]:
    backend = Backend(authority.issue("localhost", "127.0.0.1"))
    yield backend
    backend.close()


class Visitor:
    """Connects to a backend with what mailroute uses for it, and keeps what it keeps."""

    def __init__(self, maker: ClientTLS, port: int) -> None:
        self.maker = maker
        self.port = port

    async def visit(self, *, remembers: bool = True) -> Talk:
        """Connect, hear the greeting, leave; returns the connection, which is over."""
        talk = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port), Talk())
        talk.transport.startTLS(self.maker)
        await talk.wait_for(lambda: b"hello\r\n" in talk.heard or talk.reason is not None)
        if talk.reason is None:
            if remembers:
                remember(self.maker, talk.transport)
            talk.transport.loseConnection()
        await talk.end()
        return talk


@pytest.fixture
def context(authority: Authority) -> SSL.Context:
    return client_context(read_authorities(authority.file))


@VERSIONS
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
@pytest_twisted.ensureDeferred
async def test_a_session_with_a_backend_is_resumed(
    backend: Backend, context: SSL.Context, version: ssl.TLSVersion, name: str
) -> None:
    """Once a login has succeeded, the next connections resume its session."""
    backend.context.maximum_version = version
    visitor = Visitor(ClientTLS(name, context), backend.port)
    for _ in range(4):
        await visitor.visit()
    assert backend.reused == [False, True, True, True]


@VERSIONS
@pytest_twisted.ensureDeferred
async def test_a_session_that_nobody_remembers(
    backend: Backend, context: SSL.Context, version: ssl.TLSVersion
) -> None:
    """Where no login has succeeded there is nothing to resume."""
    backend.context.maximum_version = version
    visitor = Visitor(ClientTLS("localhost", context), backend.port)
    for _ in range(2):
        await visitor.visit(remembers=False)
    assert backend.reused == [False, False]


@pytest.mark.parametrize("left", [None, 100])
@pytest_twisted.ensureDeferred
async def test_a_session_is_not_resumed_for_ever(
    authority: Authority, context: SSL.Context, left: int | None
) -> None:
    """After an hour the certificate is wanted again, and in any case when it has expired."""
    terms = {} if left is None else {"lasts": datetime.timedelta(seconds=left)}
    backend = Backend(authority.issue("localhost", **terms))
    now = [0.0]
    visitor = Visitor(ClientTLS("localhost", context, seconds=lambda: now[0]), backend.port)
    try:
        await visitor.visit()
        now[0] = (left or SESSION_LIFETIME) - 50
        await visitor.visit(remembers=False)
        now[0] = left or SESSION_LIFETIME
        await visitor.visit()
    finally:
        backend.close()
    assert backend.reused == [False, True, False]


@VERSIONS
@pytest_twisted.ensureDeferred
async def test_a_session_is_of_no_use_under_another_name(
    backend: Backend, context: SSL.Context, version: ssl.TLSVersion
) -> None:
    """A backend that is verified for one name gets in under no other, whoever remembers its session."""
    backend.context.maximum_version = version
    right = Visitor(ClientTLS("localhost", context), backend.port)
    wrong = Visitor(ClientTLS("other.example", context), backend.port)
    talk = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", backend.port), Talk())
    talk.transport.startTLS(right.maker)
    await talk.until(b"hello\r\n")
    remember(right.maker, talk.transport)
    remember(wrong.maker, talk.transport)
    assert (await wrong.visit()).heard == b""
    assert (await right.visit()).heard != b""
    assert (await wrong.visit()).heard == b""
    talk.transport.loseConnection()
    await talk.end()
    backend.close()
    assert backend.reused.count(True) == 1


@VERSIONS
@pytest_twisted.ensureDeferred
async def test_a_backend_with_another_certificate(
    authority: Authority, context: SSL.Context, version: ssl.TLSVersion
) -> None:
    """Who answers at the backend's address with a wrong certificate is refused, whatever was before."""
    backend = Backend(authority.issue("localhost"), version)
    visitor = Visitor(ClientTLS("localhost", context), backend.port)
    try:
        await visitor.visit()
        await visitor.visit()
    finally:
        backend.close()
    impostor = Backend(authority.issue("evil.example"), version)
    visitor.port = impostor.port
    try:
        talk = await visitor.visit()
    finally:
        impostor.close()
    assert backend.reused == [False, True]
    assert impostor.reused in ([False], [])
    assert talk.heard == b""
    assert "localhost" in str(talk.reason)


@VERSIONS
@pytest.mark.parametrize("security", ["starttls", "tls"])
@pytest_twisted.ensureDeferred
async def test_logins_resume(authority: Authority, version: ssl.TLSVersion, security: str) -> None:
    """The second user's login at a backend resumes the session of the first one's."""
    backend = Backend(authority.issue("localhost"), version, starttls=security == "starttls")
    block = {
        "imap": f"tcp:127.0.0.1:{backend.port}",
        "security": security,
        "verify": "localhost",
        "ca": str(authority.file),
    }
    try:
        async with live(BOB, backend=block) as house:
            for _ in range(3):
                client = await house.greeted()
                client.say(b"a LOGIN bob secret\r\n")
                await client.until(b"a OK")
                client.say(b"b LOGOUT\r\n")
                await client.until(b"b OK")
                client.transport.loseConnection()
                await client.end()
    finally:
        backend.close()
    assert backend.reused == [False, True, True]


@implementer(IOpenSSLServerConnectionCreator)
class CannotResume:
    """A server that asks for client certificates but has no session id context: OpenSSL refuses to resume."""

    def __init__(self, issued: Certificate) -> None:
        self.context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self.context.use_certificate_chain_file(str(issued.chain))
        self.context.use_privatekey_file(str(issued.key))
        self.context.set_verify(SSL.VERIFY_PEER, lambda *_: True)

    def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:
        del protocol
        return SSL.Connection(self.context, None)


@VERSIONS
@pytest.mark.parametrize("says", ["an alert", "nothing"])
@pytest_twisted.ensureDeferred
async def test_a_backend_that_fails_at_resuming(
    authority: Authority, version: ssl.TLSVersion, says: str
) -> None:
    """The user whose login meets it gets in by another connection, and for an hour it is not tried again."""
    servers = CannotResume(authority.issue("localhost"))
    wanted = {ssl.TLSVersion.TLSv1_2: SSL.TLS1_2_VERSION, ssl.TLSVersion.TLSv1_3: SSL.TLS1_3_VERSION}
    servers.context.set_max_proto_version(wanted[version])
    block = {"security": "tls", "verify": "localhost", "ca": str(authority.file)}
    async with live(BOB, backend=block) as house:
        for connections in (1, 3, 4):
            client = await house.greeted()
            client.say(b"a LOGIN bob secret\r\n")
            while len(house.east.talks) < connections:
                talk = await house.east.next()
                if says == "nothing" and len(house.east.talks) == 2:
                    await talk.wait_for(lambda talk=talk: bool(talk.heard))
                    talk.transport.loseConnection()
                    continue
                talk.transport.startTLS(servers)
                await talk.wait_for(lambda talk=talk: talk.secure or talk.reason is not None)
            await let_in(talk)
            await client.until(b"a OK")
            talk.transport.loseConnection()
            await client.end()
        assert len(house.east.talks) == 4


@pytest_twisted.ensureDeferred
async def test_a_backend_that_is_silent_when_it_should_resume(authority: Authority) -> None:
    """The login fails when its time is over, and the next one is done without."""
    servers = CannotResume(authority.issue("localhost"))
    block = {"security": "tls", "verify": "localhost", "ca": str(authority.file)}
    async with live(BOB, backend=block, limits={"backend_timeout": 0.3}) as house:
        for answer in (b"a OK", b"a NO [UNAVAILABLE]", b"a OK"):
            client = await house.greeted()
            client.say(b"a LOGIN bob secret\r\n")
            talk = await house.east.next()
            if b"OK" in answer:
                await talk.starttls(servers)
                await let_in(talk)
            await client.until(answer)
            client.transport.loseConnection()
            await client.end()


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_in_the_handshake_proves_nothing(authority: Authority) -> None:
    """A login that its user breaks off is no reason not to resume sessions for an hour."""
    backend = Backend(authority.issue("localhost"))
    slow = Backends()
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(slow)
    visitor = Visitor(ClientTLS("localhost", client_context(read_authorities(authority.file))), backend.port)
    try:
        await visitor.visit()
        address = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        east = MailBackend("east", {"imap": Dial(address, visitor.maker)}, reactor, tls_first=True)
        opening = east.open(IMAP, LoginOrder(Credentials("PLAIN", b"bob", b"secret"), "bob", CLIENT))
        talk = await slow.next()
        await talk.wait_for(lambda: bool(talk.heard))
        opening.addErrback(lambda failure: failure.trap(CancelledError))
        opening.cancel()
        await talk.end()
        # OpenSSL takes this session for spoilt, so the next one may be another.
        await visitor.visit()
        await visitor.visit()
    finally:
        backend.close()
        await port.stopListening()
    assert backend.reused[-1]


@pytest_twisted.ensureDeferred
async def test_resuming_is_tried_again_in_an_hour(backend: Backend, context: SSL.Context) -> None:
    """A backend that has failed at resuming once may do better after an hour."""
    now = [0.0]
    visitor = Visitor(ClientTLS("localhost", context, seconds=lambda: now[0]), backend.port)
    await visitor.visit()
    visitor.maker.give_up_resuming()
    await visitor.visit()
    await visitor.visit()
    now[0] = SESSION_LIFETIME
    await visitor.visit()
    await visitor.visit()
    assert backend.reused == [False, False, False, False, True]
