"""TLS with clients and backends, on real sockets in this process."""

from __future__ import annotations

import contextlib
import datetime
import socket
from pathlib import Path

import pytest
import pytest_twisted
from cryptography import x509
from live import Talk, let_in, live, patient
from OpenSSL import SSL
from servers.certificates import Authority
from servers.key_updates import Rekeying
from twisted.internet import reactor
from twisted.internet.ssl import (
    Certificate,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from mailroute import backend as backend_module
from mailroute import frontend
from mailroute.config.files import read_chain, read_key
from mailroute.events import Route
from mailroute.sockets import openssl
from mailroute.sockets.hub import WRITE
from mailroute.tls import KeyPair, ServerTLS

BOB = {"bob": Route("east")}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def certificate(authority):
    issued = authority.issue("localhost")
    return {"chain": str(issued.chain), "key": str(issued.key)}


@pytest.fixture(scope="module")
def trust(authority):
    return trustRootFromCertificates([Certificate.loadPEM(authority.file.read_bytes())])


def client_options(trust, name="localhost", protocols=None):
    return optionsForClientTLS(name, trustRoot=trust, acceptableProtocols=protocols)


def server_options(issued):
    chain = read_chain(issued.chain)
    return ServerTLS([KeyPair(chain.certificates, read_key(issued.key, chain).private)])


@pytest_twisted.ensureDeferred
async def test_starttls_then_login(certificate, trust):
    """A client upgrades, logs in inside TLS, and its session says which TLS it has."""
    async with live(BOB, listen={"security": "starttls"}, certificate=[certificate]) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\nb STARTTLS\r\n")
        assert b"a NO [PRIVACYREQUIRED]" in await client.until(b"b OK Begin TLS now.\r\n")
        await client.starttls(client_options(trust))
        client.say(b"c LOGIN bob secret\r\n")
        backend = await house.east.next()
        await let_in(backend)
        await client.until(b"c OK [CAPABILITY IMAP4rev1] Hi\r\n")
        (session,) = house.factory.sessions
        assert session.record.client.tls == "TLSv1.3"
        assert session.record.client.server_name == "localhost"
        client.say(b"d NOOP\r\n")
        await backend.until(b"d NOOP\r\n")


@pytest_twisted.ensureDeferred
async def test_tls_from_the_first_byte(certificate, trust):
    """A TLS listener greets inside TLS, and takes logins at once."""
    async with live(BOB, listen={"security": "tls"}, certificate=[certificate]) as house:
        client = await house.client()
        await client.starttls(client_options(trust))
        assert b"AUTH=PLAIN" in await client.until(b"ready.\r\n")


@pytest.mark.parametrize("behind", [b"c LOGIN bob secret\r\n", b"c LOGIN {3+}\r\nb"])
@pytest_twisted.ensureDeferred
async def test_a_command_behind_starttls_is_not_run(certificate, behind):
    """Injection in the segment of STARTTLS ends the connection, and nothing of it is run."""
    async with live(BOB, listen={"security": "starttls"}, certificate=[certificate]) as house:
        client = await house.greeted()
        client.say(b"b STARTTLS\r\n" + behind)
        assert (await client.end()).endswith(b"* BYE Nothing may follow STARTTLS before TLS is on.\r\n")
        assert not house.east.talks


@pytest_twisted.ensureDeferred
async def test_a_command_in_the_segment_after_starttls_is_not_run(certificate):
    """Injection in the next segment breaks the handshake, and nothing of it is run."""
    async with live(BOB, listen={"security": "starttls"}, certificate=[certificate]) as house:
        client = await house.greeted()
        client.say(b"b STARTTLS\r\n")
        await client.until(b"Begin TLS now.\r\n")
        client.say(b"c LOGIN bob secret\r\n")
        await client.end()
        assert not house.east.talks
        await patient(lambda: len(house.factory.gate) == 0)


@pytest_twisted.ensureDeferred
async def test_the_certificate_is_chosen_by_sni(authority, certificate, trust):
    """The name that a client asks for picks the certificate, wildcards included."""
    pairs = [certificate]
    for name in ("mail.example.com", "*.example.net"):
        issued = authority.issue(name)
        pairs.append({"chain": str(issued.chain), "key": str(issued.key)})
    async with live(BOB, listen={"security": "tls"}, certificate=pairs) as house:
        for name in ("localhost", "mail.example.com", "imap.example.net"):
            client = await house.client()
            await client.starttls(client_options(trust, name))
            await client.until(b"ready.\r\n")
        client = await house.client()
        client.transport.startTLS(client_options(trust, "mail.example.org"))
        await client.end()
        assert "VerificationError" in type(client.reason).__name__


@pytest.mark.parametrize(("protocols", "welcome"), [([b"imap"], True), ([b"http/1.1", b"h2"], False)])
@pytest_twisted.ensureDeferred
async def test_alpn_is_held_to_imap(certificate, trust, protocols, welcome):
    """A client that asks by ALPN for another protocol gets an alert instead of an IMAP server."""
    async with live(BOB, listen={"security": "tls"}, certificate=[certificate]) as house:
        client = await house.client()
        client.transport.startTLS(client_options(trust, protocols=protocols))
        if welcome:
            await client.until(b"ready.\r\n")
            assert client.transport.getHandle().get_alpn_proto_negotiated() == b"imap"
        else:
            await client.end()
            assert isinstance(client.reason, SSL.Error)


@contextlib.asynccontextmanager
async def rekeying(house, joined, room=None):
    """Connect a client that can change its keys; it has logged in if it is to be ``joined``.

    With it comes a way to see what the hub is asked to watch its connection for.

    :param room: bytes that mailroute's socket is to keep for it.
    """
    client = await deferToThread(Rekeying, house.port)
    try:
        await deferToThread(client.connect)
        await deferToThread(client.until, b"ready.\r\n")
        (session,) = house.factory.sessions
        near = session._leg.transport
        if room is not None:
            near.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        if joined:
            await deferToThread(client.say, b"a LOGIN bob secret\r\n")
            await let_in(await house.east.next())
            await deferToThread(client.until, b"Hi\r\n")
            near = session._joined.a
        yield client, lambda: near.events
    finally:
        client.close()


@pytest.fixture
def reads(monkeypatch):
    """Count how often OpenSSL is asked for bytes."""
    made = []
    read = openssl.read

    def counted(*arguments):
        made.append(None)
        return read(*arguments)

    monkeypatch.setattr(openssl, "read", counted)
    return made


@pytest.mark.parametrize("joined", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_client_that_changes_keys_keeps_nobody_waiting(certificate, reads, joined):
    """However many KeyUpdates come at once, others have their turn behind each: one read takes one."""
    async with (
        live(BOB, listen={"security": "tls"}, certificate=[certificate]) as house,
        rekeying(house, joined) as (client, _),
    ):
        reads.clear()
        # Not in a thread: all of it is there before anything is read.
        client.update(300)
        client.say(b"b CAPABILITY\r\n")
        if joined:
            await house.east.talks[0].until(b"b CAPABILITY\r\n")
        else:
            await deferToThread(client.until, b"b OK")
        assert len(reads) > 300


@pytest.mark.parametrize("joined", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_client_that_changes_keys_and_does_not_read(certificate, reads, joined):
    """Answers to KeyUpdates that a client does not take are waited with, and not tried again and again."""
    async with (
        live(BOB, listen={"security": "tls"}, certificate=[certificate]) as house,
        rekeying(house, joined, room=4096) as (client, events),
    ):
        updating = deferToThread(client.update, 10**9)
        await patient(lambda: events() == WRITE)
        reads.clear()
        for _ in range(20):
            await deferLater(reactor, 0)
        assert len(reads) == 0
        client.stop.set()
        await updating
        await deferToThread(client.say, b"b CAPABILITY\r\n")
        if joined:
            reading = deferToThread(client.until, b"hello")
            await house.east.talks[0].until(b"b CAPABILITY\r\n")
            house.east.talks[0].say(b"hello")
            await reading
        else:
            await deferToThread(client.until, b"b OK")


@pytest_twisted.ensureDeferred
async def test_too_many_get_their_bye_inside_tls(certificate, trust):
    """The polite BYE reaches a TLS client as TLS."""
    limits = {"connections": 1}
    async with live(BOB, listen={"security": "tls"}, certificate=[certificate], limits=limits) as house:
        first = await house.client()
        await first.starttls(client_options(trust))
        second = await house.client()
        await second.starttls(client_options(trust))
        assert b"* BYE [UNAVAILABLE] Too many connections." in await second.end()


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_never_ends(certificate, monkeypatch):
    """A client that connects and never speaks TLS is let go when its time to log in is over, at once."""
    monkeypatch.setattr(frontend, "LINGER", 3600)
    limits = {"login_timeout": 0.2}
    async with live(BOB, listen={"security": "tls"}, certificate=[certificate], limits=limits) as house:
        client = await house.client()
        await client.end()
        await patient(lambda: len(house.factory.gate) == 0)


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_answer_close_notify(certificate, trust, monkeypatch):
    """A TLS client that ignores the end of TLS does not keep its connection."""
    monkeypatch.setattr(frontend, "LINGER", 0.1)
    async with live(BOB, listen={"security": "tls"}, certificate=[certificate]) as house:
        client = await house.client()
        await client.starttls(client_options(trust))
        await client.until(b"ready.\r\n")
        client.say(b"a LOGOUT\r\n")
        client.transport.pauseProducing()
        await patient(lambda: len(house.factory.gate) == 0)
        client.transport.abortConnection()


class Secured:
    """The test's backend with TLS."""

    def __init__(self, talk: Talk, options: ServerTLS) -> None:
        self.talk = talk
        self.options = options

    async def starttls(self) -> None:
        self.talk.say(b"* OK [CAPABILITY IMAP4rev1 STARTTLS ID LOGINDISABLED] hello\r\n")
        assert await self.talk.until(b"\r\n") == b"M1 STARTTLS\r\n"
        self.talk.say(b"M1 OK go\r\n")
        self.talk.transport.startTLS(self.options)


@pytest_twisted.ensureDeferred
async def test_starttls_to_the_backend(authority):
    """The backend's certificate and name are verified, and only then it hears the credentials."""
    backend = {"security": "starttls", "verify": "localhost", "ca": str(authority.file)}
    async with live(BOB, backend=backend) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        talk = await house.east.next()
        await Secured(talk, server_options(authority.issue("localhost"))).starttls()
        assert await talk.until(b"\r\n") == b"M2 CAPABILITY\r\n"
        talk.say(b"* CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN\r\nM2 OK\r\n")
        assert (await talk.until(b"\r\n")).startswith(b"M3 AUTHENTICATE PLAIN ")
        talk.say(b"M3 OK [CAPABILITY IMAP4rev1] Hi\r\n")
        await client.until(b"a OK [CAPABILITY IMAP4rev1] Hi\r\n")
        client.transport.loseConnection()
        await talk.end()
        assert type(talk.reason).__name__ == "ConnectionDone"


FLAWS = {
    "wrong name": {"names": ["evil.example"]},
    "untrusted": {"names": ["localhost"]},
    "no name": {"names": []},
    "a name that is none": {"names": [], "more": [x509.DNSName("127.0.0.1")]},
    "a wildcard for everything": {"names": [], "more": [x509.DNSName("*")]},
    "an e-mail address": {"names": [], "more": [x509.RFC822Name("localhost")]},
    "expired": {"names": ["localhost"], "lasts": datetime.timedelta(hours=-1)},
}


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("security", ["starttls", "tls"])
@pytest_twisted.ensureDeferred
async def test_a_backend_that_proves_nothing_hears_nothing(authority, tmp_path, flaw, security):
    """Without the right name, readable and vouched for, the login is refused, and no credentials go out."""
    signer = Authority(tmp_path / "other") if flaw == "untrusted" else authority
    terms = FLAWS[flaw]
    issued = signer.issue(*terms["names"], **{key: terms[key] for key in terms if key != "names"})
    backend = {"security": security, "verify": "localhost", "ca": str(authority.file)}
    async with live(BOB, backend=backend) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        talk = await house.east.next()
        if security == "starttls":
            await Secured(talk, server_options(issued)).starttls()
        else:
            talk.transport.startTLS(server_options(issued))
        assert (await client.until(b"\r\n")).startswith(b"a NO [SERVERBUG] ")
        await talk.end()
        assert bytes(talk.heard) == b""


@pytest_twisted.ensureDeferred
async def test_bytes_behind_the_backends_starttls_answer(authority):
    """A response injected in the clear behind the backend's OK ends the attempt."""
    backend = {"security": "starttls", "verify": "localhost", "ca": str(authority.file)}
    async with live(BOB, backend=backend) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        talk = await house.east.next()
        talk.say(b"* OK hello\r\n")
        await talk.until(b"STARTTLS\r\n")
        talk.say(b"M1 OK go\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nM2 OK\r\n")
        assert (await client.until(b"\r\n")).startswith(b"a NO [SERVERBUG] ")


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_during_the_backends_handshake(authority):
    """A login cancelled while TLS is negotiated closes the backend's connection."""
    backend = {"security": "tls", "verify": "localhost", "ca": str(authority.file)}
    async with live(BOB, backend=backend) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        talk = await house.east.next()
        client.transport.abortConnection()
        await talk.end()
        await patient(lambda: len(house.factory.gate) == 0)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest_twisted.ensureDeferred
async def test_a_backend_that_does_not_answer_close_notify(authority, monkeypatch):
    """A TLS backend that refuses and then ignores the end of TLS does not keep its connection."""
    monkeypatch.setattr(backend_module, "LINGER", 0.1)
    backend = {"security": "tls", "verify": "localhost", "ca": str(authority.file)}
    async with live(BOB, backend=backend) as house:
        client = await house.greeted()
        client.say(b"a LOGIN bob secret\r\n")
        talk = await house.east.next()
        await talk.starttls(server_options(authority.issue("localhost")))
        talk.say(b"* BYE not you\r\n")
        talk.transport.pauseProducing()
        before = open_files()
        await client.until(b"a NO [UNAVAILABLE]")
        await patient(lambda: open_files() < before)
        talk.transport.resumeProducing()
        await talk.end()
        assert type(talk.reason).__name__ != "ConnectionDone"
