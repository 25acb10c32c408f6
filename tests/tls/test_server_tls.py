"""TLS to clients, by real clients against a mailroute in a process of its own."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from attrs import frozen
from servers.certificates import Authority, Certificate
from servers.programs import program
from servers.proxy import Mailroute

from mailroute.tls.ciphers import aes_in_hardware

MAIL, IMAP = "mail.example.org", "imap.example.net"

VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])

DOORS = {"imap": {"security": "starttls"}, "imaps": {"security": "tls"}, "again": {"security": "tls"}}


def configuration(*certificates: Certificate) -> dict[str, object]:
    return {
        "certificate": [{"chain": str(one.chain), "key": str(one.key)} for one in certificates],
        "backend": {"east": {"imap": "tcp:127.0.0.1:1", "security": "none"}},
        "route": [{"source": "default", "backend": "east"}],
        "limits": {"connections_per_address": 0},
    }


@pytest.fixture(scope="module")
def certificates(authority: Authority) -> dict[str, Certificate]:
    """Two certificates for one name, each with an authority of its own above it, and one for another."""
    return {
        "rsa": authority.intermediate("below RSA").issue(MAIL, kind="rsa"),
        "ec": authority.intermediate("below EC").issue(MAIL),
        "other": authority.issue(IMAP, "*.example.net"),
    }


@pytest.fixture(scope="module")
def proxy(certificates: dict[str, Certificate]) -> Iterator[Mailroute]:
    with Mailroute(DOORS, configuration(*certificates.values())) as running:
        yield running


# --- Python's ssl as client -------------------------------------------------------


@frozen
class Visit:
    """What a client has seen of one connection."""

    reused: bool
    session: ssl.SSLSession
    certificate: bytes
    cipher: str


class Visitor:
    """A client that keeps its sessions, as one program does."""

    def __init__(self, proxy: Mailroute, authority: Authority, version: ssl.TLSVersion) -> None:
        self.proxy = proxy
        self.context = authority.context()
        self.context.minimum_version = self.context.maximum_version = version

    def visit(self, door: str, name: str = MAIL, session: ssl.SSLSession | None = None) -> Visit:
        """Connect, say something, leave."""
        with socket.create_connection(("127.0.0.1", self.proxy.ports[door]), timeout=20) as plain:
            if DOORS[door]["security"] == "starttls":
                assert plain.recv(1000).endswith(b"ready.\r\n")
                plain.sendall(b"a STARTTLS\r\n")
                assert plain.recv(1000).startswith(b"a OK")
            # Two connections to a server that has only one name would not be checked twice.
            self.context.check_hostname = session is None
            with self.context.wrap_socket(plain, server_hostname=name, session=session) as secure:
                secure.sendall(b"b LOGOUT\r\n")
                heard = b""
                while more := secure.recv(1000):
                    heard += more
                assert b"b OK" in heard
                return Visit(
                    bool(secure.session_reused),
                    secure.session,
                    secure.getpeercert(binary_form=True),
                    secure.cipher()[0],
                )


@VERSIONS
@pytest.mark.parametrize("first", DOORS)
@pytest.mark.parametrize("then", DOORS)
def test_a_returning_client_resumes(
    proxy: Mailroute, authority: Authority, version: ssl.TLSVersion, first: str, then: str
) -> None:
    """A ticket is good at every listener, with STARTTLS and from the first byte, and more than once."""
    visitor = Visitor(proxy, authority, version)
    visit = visitor.visit(first)
    assert not visit.reused
    for _ in range(2):
        visit = visitor.visit(then, session=visit.session)
        assert visit.reused


@VERSIONS
@pytest.mark.parametrize("name", [MAIL, IMAP, "some.example.net"])
def test_a_client_resumes_under_its_name(
    proxy: Mailroute, authority: Authority, version: ssl.TLSVersion, name: str
) -> None:
    """Whichever certificate a client got by its name, the session is resumed under that name."""
    visitor = Visitor(proxy, authority, version)
    visit = visitor.visit("imaps", name)
    assert visitor.visit("imap", name, visit.session).reused


@VERSIONS
@pytest.mark.parametrize(("first", "then"), [(MAIL, IMAP), (IMAP, MAIL)])
def test_a_ticket_of_another_name(
    proxy: Mailroute, authority: Authority, version: ssl.TLSVersion, first: str, then: str
) -> None:
    """A ticket got under one certificate's name resumes nothing under another's: its certificate is shown."""
    visitor = Visitor(proxy, authority, version)
    before = visitor.visit("imaps", first)
    after = visitor.visit("imaps", then, before.session)
    assert not after.reused
    assert after.certificate != before.certificate
    assert after.certificate == visitor.visit("imaps", then).certificate


@VERSIONS
def test_a_ticket_of_before_a_renewed_certificate(
    authority: Authority, certificates: dict[str, Certificate], version: ssl.TLSVersion
) -> None:
    """After a restart with a renewed certificate, a client with an old ticket is shown the new one."""
    with Mailroute(DOORS, configuration(certificates["other"])) as old:
        visitor = Visitor(old, authority, version)
        before = visitor.visit("imaps", IMAP)
    renewed = authority.intermediate("renewed").issue(IMAP)
    with Mailroute(DOORS, configuration(renewed)) as new:
        visitor.proxy = new
        after = visitor.visit("imaps", IMAP, before.session)
    assert not after.reused
    assert after.certificate != before.certificate


@VERSIONS
def test_alpn_is_asked_of_those_who_resume(
    proxy: Mailroute, authority: Authority, version: ssl.TLSVersion
) -> None:
    """A ticket is no way around ALPN."""
    visitor = Visitor(proxy, authority, version)
    visitor.context.set_alpn_protocols(["imap"])
    visit = visitor.visit("imaps")
    visitor.context.set_alpn_protocols(["http/1.1"])
    with pytest.raises(ssl.SSLError, match=r"ALERT|alert"):
        visitor.visit("imaps", session=visit.session)


# --- openssl s_client ---------------------------------------------------------------


@pytest.fixture
def s_client(proxy: Mailroute, authority: Authority, tmp_path: Path) -> Callable[..., str]:
    """Run ``openssl s_client``, which says LOGOUT, and return what it shows."""
    openssl = program("openssl", "openssl")

    def run(*options: str, door: str = "imaps", name: str | None = MAIL) -> str:
        command = [openssl, "s_client", "-connect", f"127.0.0.1:{proxy.ports[door]}", "-ign_eof", *options]
        command += ["-CAfile", str(authority.file), "-verify_return_error"]
        command += ["-servername", name, "-verify_hostname", name] if name else ["-noservername"]
        if DOORS[door]["security"] == "starttls":
            command += ["-starttls", "imap"]
        done = subprocess.run(
            command, input=b"b LOGOUT\r\n", capture_output=True, timeout=60, cwd=tmp_path, check=False
        )
        return (done.stdout + done.stderr).decode(errors="replace")

    return run


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("door", ["imap", "imaps"])
def test_openssl_resumes(s_client: Callable[..., str], version: str, door: str) -> None:
    """OpenSSL's client resumes a session that another run of it has put into a file."""
    assert "New, TLSv1." in s_client(version, "-sess_out", "session", door=door)
    assert "Reused, TLSv1." in s_client(version, "-sess_in", "session", door=door)


def test_openssl_reconnects(s_client: Callable[..., str]) -> None:
    """OpenSSL's client connects five times more, and resumes its session each time."""
    shown = s_client("-tls1_2", "-reconnect")
    assert len(re.findall(r"^New, ", shown, re.M)) == 1
    assert len(re.findall(r"^Reused, ", shown, re.M)) == 5


ANY = {
    "TLS 1.3, both": (["-tls1_3"], "ec"),
    "TLS 1.3, RSA": (["-tls1_3", "-sigalgs", "RSA-PSS+SHA256:RSA+SHA256:RSA-PSS+SHA384"], "rsa"),
    "TLS 1.3, ECDSA": (["-tls1_3", "-sigalgs", "ECDSA+SHA256"], "ec"),
    "TLS 1.3, RSA preferred": (["-tls1_3", "-sigalgs", "RSA-PSS+SHA256:ECDSA+SHA256"], "ec"),
    "TLS 1.2, both": (["-tls1_2"], "ec"),
    "TLS 1.2, RSA": (["-tls1_2", "-cipher", "aRSA"], "rsa"),
    "TLS 1.2, ECDSA": (["-tls1_2", "-cipher", "aECDSA"], "ec"),
    "TLS 1.2, RSA preferred": (["-tls1_2", "-cipher", "ECDHE+aRSA:ECDHE+aECDSA"], "ec"),
}


@pytest.mark.parametrize("case", ANY)
@pytest.mark.parametrize("name", [MAIL, None], ids=["SNI", "no SNI"])
def test_each_client_gets_the_kind_of_certificate_that_it_understands(
    s_client: Callable[..., str], certificates: Mapping[str, Certificate], case: str, name: str | None
) -> None:
    """With ECDSA and RSA for one name, RSA is for those that know no ECDSA; each comes with its own chain."""
    options, kind = ANY[case]
    shown = s_client(*options, "-showcerts", name=name)
    sent = re.findall(r"-----BEGIN CERTIFICATE-----\n.*?-----END CERTIFICATE-----\n", shown, re.S)
    assert "".join(sent) == certificates[kind].chain.read_text()


@pytest.mark.parametrize(
    ("groups", "key"),
    [("X25519:P-256", "X25519"), ("P-256:X25519", "X25519|prime256v1"), ("P-384", "secp384r1")],
)
def test_the_key_exchange(s_client: Callable[..., str], groups: str, key: str) -> None:
    """X25519 is used by those that put it first, and others get an elliptic curve that they know."""
    # OpenSSL 3.5 says "Peer" where 3.0 says "Server".
    assert re.search(rf"(Server|Peer) Temp Key: (ECDH, )?({key})", s_client("-groups", groups))


@pytest.mark.skipif(
    not aes_in_hardware(Path("/proc/cpuinfo").read_text()), reason="this machine has no AES in hardware"
)
@pytest.mark.parametrize(
    ("options", "cipher"),
    [
        (["-tls1_3"], "TLS_AES_128_GCM_SHA256"),
        (["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"], "TLS_AES_256_GCM_SHA384"),
        (
            ["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256"],
            "TLS_CHACHA20_POLY1305_SHA256",
        ),
        (["-tls1_2"], "ECDHE-ECDSA-AES128-GCM-SHA256"),
        (["-tls1_2", "-cipher", "CHACHA20:AESGCM"], "ECDHE-ECDSA-CHACHA20-POLY1305"),
        (["-tls1_2", "-cipher", "aRSA+AESGCM"], "ECDHE-RSA-AES128-GCM-SHA256"),
    ],
)
def test_the_cipher(s_client: Callable[..., str], options: list[str], cipher: str) -> None:
    """AES with 128 bits where the machine has it in hardware, unless a client prefers ChaCha20 to it."""
    assert f"Cipher is {cipher}\n" in s_client(*options)


@pytest.mark.parametrize(
    "options",
    [["-tls1_1"], ["-tls1_2", "-cipher", "ECDHE+AES+SHA1"], ["-tls1_2", "-cipher", "kRSA"]],
    ids=["TLS 1.1", "CBC", "no forward secrecy"],
)
def test_what_is_too_weak(s_client: Callable[..., str], options: list[str]) -> None:
    """Old versions, CBC and key exchange without forward secrecy are refused."""
    assert "Cipher is (NONE)" in s_client("-cipher", "ALL:@SECLEVEL=0", *options)
