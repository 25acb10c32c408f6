"""What cannot be seen from outside a process: the contexts' life, and clients in odd segments."""

from __future__ import annotations

import contextlib
import copy
import datetime
import gc
import hashlib
import ssl
import struct
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from servers.certificates import Authority, Certificate

from mailroute.config.files import read_chain, read_key
from mailroute.proofs import ClientCertificate
from mailroute.tls import KeyPair, ServerTLS, channel_binding, client_certificate
from mailroute.tls.ciphers import aes_in_hardware
from mailroute.tls.server import TICKET_KEY_LIFETIME, TICKET_LIFETIME


def pair(issued: Certificate) -> KeyPair:
    chain = read_chain(issued.chain)
    return KeyPair(chain.certificates, read_key(issued.key, chain).private, chain.names)


class Client:
    """A client of Python's ssl, whose bytes the test carries."""

    def __init__(
        self,
        context: ssl.SSLContext,
        name: str,
        server: SSL.Connection,
        session: ssl.SSLSession | None = None,
        *,
        segment: int = 65536,
        change: Callable[[bytes], bytes] = bytes,
    ) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name, session=session)
        self.server = server
        server.set_accept_state()
        for _ in range(3):
            self._step(self.tls.do_handshake, ssl.SSLWantReadError)
            data, change = change(self.outgoing.read()), bytes
            for at in range(0, len(data), segment):
                part = data[at : at + segment]
                assert server.bio_write(part) == len(part)
                self._step(server.do_handshake, SSL.WantReadError)
            self._take()
        server.send(b"hello")
        self._take()
        assert self.tls.read(100) == b"hello"

    def _step(self, function, waits) -> None:
        with contextlib.suppress(waits):
            function()

    def _take(self) -> None:
        with contextlib.suppress(SSL.WantReadError):
            self.incoming.write(self.server.bio_read(65536))


def loose(authority: Authority) -> ssl.SSLContext:
    context = authority.context()
    context.check_hostname = False
    return context


def test_the_key_of_the_tickets_is_renewed(authority: Authority) -> None:
    """After a day tickets get another key, and those of before are answered with a handshake in full."""
    now = [0.0]
    maker = ServerTLS([pair(authority.issue("a.example"))], seconds=lambda: now[0])
    context = authority.context()

    def visit(session: ssl.SSLSession | None = None) -> Client:
        return Client(context, "a.example", maker.serverConnectionForTLS(None), session)

    first = visit()
    now[0] = TICKET_KEY_LIFETIME - 1
    assert visit(first.tls.session).tls.session_reused
    now[0] = TICKET_KEY_LIFETIME
    second = visit(first.tls.session)
    assert not second.tls.session_reused
    assert visit(second.tls.session).tls.session_reused


def test_workers_renew_the_key_of_the_tickets_together(authority: Authority) -> None:
    """Copies of the contexts, as forks have them, have the same key on each of the days made ahead.

    Of the days that are gone none is kept; behind the last one, each copy has keys of its own.
    """
    now = [0.0]
    maker = ServerTLS([pair(authority.issue("a.example"))], seconds=lambda: now[0], days=3)
    forks = []
    for _ in range(2):
        fork = copy.copy(maker)
        fork._contexts = copy.copy(maker._contexts)
        forks.append(fork)
    context = authority.context()

    def visit(number: int, session: ssl.SSLSession | None = None) -> Client:
        return Client(context, "a.example", forks[number].serverConnectionForTLS(None), session)

    yesterday = None
    for day in (0, 2):
        now[0] = day * TICKET_KEY_LIFETIME
        ticket = visit(0, yesterday)
        assert not ticket.tls.session_reused
        now[0] = (day + 1) * TICKET_KEY_LIFETIME - 1
        assert visit(1, ticket.tls.session).tls.session_reused
        yesterday = ticket.tls.session
    first = weakref.ref(maker._contexts.default())
    assert first() is forks[0]._contexts.default()
    now[0] = 3 * TICKET_KEY_LIFETIME
    ticket = visit(0)
    assert visit(0, ticket.tls.session).tls.session_reused
    assert not visit(1, ticket.tls.session).tls.session_reused
    maker.renew()
    gc.collect()
    assert first() is None


def test_listeners_share_what_they_can(authority: Authority) -> None:
    """Connections of listeners for several protocols have one context for each certificate, and no cache."""
    maker = ServerTLS([pair(authority.issue("a.example"))], (b"one",))
    contexts = [
        each.serverConnectionForTLS(None).get_context() for each in (maker, maker.speaking((b"two",)))
    ]
    assert contexts[0] is contexts[1]
    assert contexts[0].get_session_cache_mode() == SSL.SESS_CACHE_OFF
    assert contexts[0].get_timeout() == TICKET_LIFETIME


@pytest.mark.parametrize(
    ("agrees", "offers", "result"), [((), ["one"], None), ((b"one", b"two"), ["two"], "two")]
)
def test_each_listener_has_its_own_alpn(
    authority: Authority, agrees: tuple[bytes, ...], offers: list[str], result: str | None
) -> None:
    """Listeners that share contexts agree each to their own protocol, or leave ALPN alone."""
    maker = ServerTLS([pair(authority.issue("a.example"))], (b"another",)).speaking(agrees)
    context = authority.context()
    context.set_alpn_protocols(offers)
    client = Client(context, "a.example", maker.serverConnectionForTLS(None))
    assert client.tls.selected_alpn_protocol() == result


@settings(max_examples=20)
@given(segment=st.integers(1, 700), name=st.sampled_from(["a.example", "b.example", "x.c.example"]))
def test_a_hello_in_any_segments(authority: Authority, segment: int, name: str) -> None:
    """However a client's first message arrives, it gets the certificate of the name that it asks for."""
    maker = ServerTLS([pair(authority.issue(each)) for each in ("a.example", "b.example", "*.c.example")])
    Client(authority.context(), name, maker.serverConnectionForTLS(None), segment=segment)


def one_byte_a_record(data: bytes) -> bytes:
    return b"".join(struct.pack("!BHHB", 22, 0x0301, 1, byte) for byte in data[5:])


def test_a_hello_that_goes_on_and_on(authority: Authority) -> None:
    """A first message that takes too many bytes gets the first certificate, and resumes nothing."""
    maker = ServerTLS([pair(authority.issue(each)) for each in ("a.example", "b.example")])
    context = loose(authority)
    session = Client(context, "a.example", maker.serverConnectionForTLS(None)).tls.session
    context.set_alpn_protocols(["x" * 250] * 20)
    for name in ("a.example", "b.example"):
        server = maker.serverConnectionForTLS(None)
        client = Client(context, name, server, session, segment=1400, change=one_byte_a_record)
        assert not client.tls.session_reused
        assert client.tls.getpeercert()["subjectAltName"] == (("DNS", "a.example"),)


def test_the_certificate_of_a_name(authority: Authority) -> None:
    """A name gets the pairs that are for it, exactly or by a wildcard, one of each kind; others the first."""
    issued = {
        "first": authority.issue("A.example", "both.example"),
        "late": authority.issue("a.example", "late.example"),
        "wild": authority.issue("*.w.example"),
        "exact": authority.issue("x.w.example", kind="rsa"),
    }
    pairs = {name: pair(each) for name, each in issued.items()}
    maker = ServerTLS(list(pairs.values()))
    modern, old = loose(authority), loose(authority)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_ciphers("aRSA")

    def shown(context: ssl.SSLContext, name: str) -> str:
        client = Client(context, name, maker.serverConnectionForTLS(None))
        certificate = ssl.DER_cert_to_PEM_cert(client.tls.getpeercert(binary_form=True))
        return next(name for name, each in issued.items() if certificate in each.chain.read_text())

    wanted = {"a.example": "first", "A.EXAMPLE": "first", "late.example": "late", "y.w.example": "wild"}
    wanted |= {
        "x.w.example": "wild",
        "elsewhere.example": "first",
        "w.example": "first",
        "z.x.w.example": "first",
    }
    assert {name: shown(modern, name) for name in wanted} == wanted
    assert shown(old, "x.w.example") == "exact"


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [
        ("processor: 0\nflags\t\t: fpu vme aes avx\n", True),
        ("flags\t\t: fpu vme vaes avx\n", False),
        ("Features\t: fp asimd evtstrm aes pmull\n", True),
        ("Features\t: fp asimd evtstrm crc32 cpuid\n", False),
        ("", True),
    ],
    ids=["x86", "x86 without", "ARM", "ARM without", "unknown"],
)
def test_whether_the_hardware_has_aes(cpuinfo: str, has: bool) -> None:
    """The processor's features say whether it computes AES."""
    assert aes_in_hardware(cpuinfo) is has


# --- clients with certificates ----------------------------------------------------------


ADDRESS = [x509.RFC822Name("alice@example.org"), x509.DNSName("laptop.example.org")]


def asking(authority: Authority, *others: Authority) -> ServerTLS:
    authorities = [each for one in (authority, *others) for each in read_chain(one.file).certificates]
    pairs = [pair(authority.issue(name)) for name in ("a.example", "b.example")]
    return ServerTLS(pairs, authorities=authorities)


def showing(authority: Authority, issued: Certificate | None) -> ssl.SSLContext:
    context = loose(authority)
    if issued is not None:
        context.load_cert_chain(issued.chain, issued.key)
    return context


@pytest.mark.parametrize("name", ["a.example", "b.example"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_may_show_a_certificate(authority: Authority, name: str, version: ssl.TLSVersion) -> None:
    """Whichever certificate the server has chosen, it knows the client's, in a resumed session too."""
    maker = asking(authority)
    issued = authority.issue("Alice", more=ADDRESS, client=True)
    (own, *_) = x509.load_pem_x509_certificates(issued.chain.read_bytes())
    expected = ClientCertificate(
        ("alice@example.org",),
        ("Alice",),
        "CN=Alice",
        "CN=mailroute test authority",
        own.serial_number.to_bytes((own.serial_number.bit_length() + 7) // 8).hex().upper(),
        hashlib.sha1(own.public_bytes(Encoding.DER), usedforsecurity=False).hexdigest(),
        own.public_bytes(Encoding.PEM),
    )
    context = showing(authority, issued)
    context.minimum_version = context.maximum_version = version
    session = None
    for resumed in (False, True):
        server = maker.serverConnectionForTLS(None)
        client = Client(context, name, server, session)
        session = client.tls.session
        assert client.tls.session_reused is resumed
        assert client_certificate(server) == expected


def test_a_client_need_not_have_one(authority: Authority) -> None:
    """Who has no certificate comes in without, and is nobody by certificate."""
    server = asking(authority).serverConnectionForTLS(None)
    Client(showing(authority, None), "a.example", server)
    assert client_certificate(server) is None


def test_who_was_not_asked_has_shown_nothing(authority: Authority) -> None:
    """A listener that does not ask takes nothing for a proof."""
    server = ServerTLS([pair(authority.issue("a.example"))]).serverConnectionForTLS(None)
    Client(showing(authority, authority.issue("Alice", more=ADDRESS, client=True)), "a.example", server)
    assert client_certificate(server) is None


@pytest.mark.parametrize("what", ["of another authority", "over", "a server's"])
def test_a_bad_certificate_ends_the_handshake(authority: Authority, tmp_path: Path, what: str) -> None:
    """What nobody vouches for, whose time is over, or that is for something else lets nobody in."""
    issued = {
        "of another authority": lambda: Authority(tmp_path).issue("Alice", more=ADDRESS, client=True),
        "over": lambda: authority.issue(
            "Alice", more=ADDRESS, client=True, lasts=datetime.timedelta(seconds=-1)
        ),
        "a server's": lambda: authority.issue("alice.example", more=ADDRESS),
    }[what]()
    server = asking(authority).serverConnectionForTLS(None)
    with pytest.raises(SSL.Error):
        Client(showing(authority, issued), "a.example", server)


def test_a_session_is_good_where_the_same_are_trusted_alone(authority: Authority, tmp_path: Path) -> None:
    """A ticket that was made where one authority is trusted proves nothing where another one is."""
    other = Authority(tmp_path)
    here, there = asking(authority), asking(authority, other)
    context = showing(authority, authority.issue("Alice", more=ADDRESS, client=True))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    first = Client(context, "a.example", here.serverConnectionForTLS(None))
    assert not Client(
        context, "a.example", there.serverConnectionForTLS(None), first.tls.session
    ).tls.session_reused


def test_a_certificate_that_ends_meanwhile_is_none(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session outlives the certificate that it began with, and is no proof from then on."""
    server = asking(authority).serverConnectionForTLS(None)
    Client(showing(authority, authority.issue("Alice", more=ADDRESS, client=True)), "a.example", server)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.now(tz) + datetime.timedelta(days=3)

    assert client_certificate(server) is not None
    monkeypatch.setattr("mailroute.tls.server.datetime", Later)
    assert client_certificate(server) is None


def test_both_ends_know_the_same_channel(authority: Authority) -> None:
    """Each connection of TLS 1.3 has a binding of its own, which its client has too; older TLS has none."""
    maker = ServerTLS([pair(authority.issue("a.example"))])
    seen = set()
    for _ in range(2):
        client, server = (
            SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD)),
            maker.serverConnectionForTLS(None),
        )
        client.set_connect_state()
        server.set_accept_state()
        for _ in range(3):
            for one, other in ((client, server), (server, client)):
                with contextlib.suppress(SSL.WantReadError):
                    one.do_handshake()
                with contextlib.suppress(SSL.WantReadError):
                    other.bio_write(one.bio_read(65536))
        theirs = client.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
        assert channel_binding(server) == theirs
        seen.add(theirs)
    assert len(seen) == 2
    context = loose(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    server = maker.serverConnectionForTLS(None)
    Client(context, "a.example", server)
    assert channel_binding(server) is None
