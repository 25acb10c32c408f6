"""SCRAM and EXTERNAL over the protocols beside IMAP, before a real server that takes mailroute's word."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Iterator

import pytest
from authenticating import ScramClient
from cryptography import x509
from servers.accounts import ALICE, Account
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.programs import program
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import configuration, users

pytestmark = pytest.mark.integration

SECRET = "another one: ä"
MASTER = Account("master", "the master's own", "east")
KEYS = {"login": "master", "master_user": MASTER.user, "master_password_file": "master-password"}
PROTOCOLS = pytest.mark.parametrize("protocol", ["pop3", "submission", "managesieve"])


@pytest.fixture(scope="module")
def proofs(authority: Authority, certificate: Certificate) -> Iterator[Mailroute]:
    terms = Terms(certificate=certificate, master=MASTER, pop3=True, sieve=True, relay=9)
    command = [program("doveadm", "dovecot-core"), "pw", "-s", "SCRAM-SHA-256", "-p", SECRET]
    stored = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    with Dovecot(terms, ALICE) as east:
        there = {
            "pop3": f"tcp:127.0.0.1:{east.pop3}",
            "submission": f"tcp:127.0.0.1:{east.submission}",
            "managesieve": f"tcp:127.0.0.1:{east.sieve}",
        }
        tls = {"security": "starttls", "verify": "localhost", "ca": str(authority.file)}
        config = configuration(certificate, {"east": there | tls | KEYS})
        config["authenticate"] = [{"source": "external"}, {"source": "passwd-file", "file": "hashes"}]
        listen: dict[str, dict[str, object]] = {
            name: {"protocol": name, "security": "tls", "client_ca": str(authority.file)} for name in there
        }
        listen["smtp"] = {"protocol": "submission", "security": "starttls"}
        files = {"master-password": f"{MASTER.password}\n", "hashes": f"{ALICE.user}:{stored}\n"}
        with Mailroute(listen, config, {**users(ALICE), **files}) as here:
            yield here


ENDS = {"pop3": rb"(\+OK|-ERR)", "submission": rb"\d{3} ", "managesieve": rb"(OK|NO|BYE)\b"}
TAKEN = {"pop3": b"+OK", "submission": b"235 2.7.0", "managesieve": b"OK "}
REFUSED = {"pop3": b"-ERR [AUTH]", "submission": b"535 5.7.8", "managesieve": b"NO "}


class Client:
    """Speaks what differs between the protocols."""

    def __init__(self, session: RawImap, protocol: str) -> None:
        self.session, self.protocol = session, protocol
        self.read()

    def read(self, end: bytes | None = None) -> bytes:
        return self.session.read(end or ENDS[self.protocol])

    def offered(self) -> bytes:
        """Return the line that lists the mechanisms."""
        asked = {"pop3": b"CAPA", "submission": b"EHLO there", "managesieve": b"CAPABILITY"}
        self.session.send(asked[self.protocol] + b"\r\n")
        said = self.read(rb"\.\r" if self.protocol == "pop3" else None)
        (line,) = re.findall(rb'(?m)^"?(?:250.AUTH|SASL)\b.*', said)
        return bytes(line)

    def begin(self, mechanism: str, initial: bytes | None) -> None:
        sieve = self.protocol == "managesieve"
        command = (b'AUTHENTICATE "%s"' if sieve else b"AUTH %s") % mechanism.encode()
        if initial is not None:
            response = base64.b64encode(initial)
            command += b' "%s"' % response if sieve else b" " + (response or b"=")
        self.session.send(command + b"\r\n")

    def challenge(self) -> bytes:
        start = {"pop3": rb"\+ ", "submission": rb"334 ", "managesieve": rb'"'}[self.protocol]
        said = self.read(rb"(\+|334|\"|\{|-ERR|5|NO)")
        assert re.match(start, said), said
        return base64.b64decode(said[len(start.replace(b"\\", b"")) :].strip().strip(b'"'))

    def respond(self, response: bytes) -> None:
        text = base64.b64encode(response)
        self.session.send(b'"%s"\r\n' % text if self.protocol == "managesieve" else text + b"\r\n")


def client(
    proofs: Mailroute, authority: Authority, protocol: str, shown: Certificate | None = None
) -> Client:
    session = RawImap("127.0.0.1", proofs.ports[protocol])
    context = authority.context()
    if shown:
        context.load_cert_chain(shown.chain, shown.key)
    session.handshake(context)
    return Client(session, protocol)


@pytest.mark.parametrize("at_once", [True, False], ids=["initial-response", "no-initial-response"])
@PROTOCOLS
def test_scram_opens_an_account(
    proofs: Mailroute, authority: Authority, protocol: str, at_once: bool
) -> None:
    """A client proves that it knows its password, is shown that mailroute does, and is let in."""
    talk = client(proofs, authority, protocol)
    with talk.session:
        assert b"SCRAM-SHA-256" in talk.offered()
        for password, answer in (("not that", REFUSED), (SECRET, TAKEN)):
            scram = ScramClient("SCRAM-SHA-256", password.encode())
            first = scram.first(ALICE.user.encode())
            talk.begin("SCRAM-SHA-256", first if at_once else None)
            if not at_once:
                assert talk.challenge() == b""
                talk.respond(first)
            talk.respond(scram.final(talk.challenge()))
            if answer is TAKEN:
                assert talk.challenge().startswith(b"v=")
                talk.respond(b"")
            said = talk.read()
            assert said.startswith(answer[protocol]), said


@PROTOCOLS
def test_a_certificate_opens_its_account(proofs: Mailroute, authority: Authority, protocol: str) -> None:
    """A client with a certificate is offered EXTERNAL, and needs neither name nor password."""
    shown = authority.issue("Alice", more=[x509.RFC822Name(ALICE.user)], client=True)
    talk = client(proofs, authority, protocol, shown)
    with talk.session:
        assert b"EXTERNAL" in talk.offered()
        talk.begin("EXTERNAL", b"")
        said = talk.read()
        assert said.startswith(TAKEN[protocol]), said


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"])
@pytest.mark.parametrize(("password", "answer"), [(SECRET, "235"), ("not that", "535")])
def test_gnu_sasl_submits_by_scram(
    proofs: Mailroute, authority: Authority, password: str, answer: str, mechanism: str
) -> None:
    """GNU SASL's client logs in for submission, bound to the channel or not; with no other password."""
    command = [
        *(program("gsasl", "gsasl"), "--client", "--smtp", "--starttls", "--mechanism", mechanism),
        *("--x509-ca-file", str(authority.file), "--connect", f"localhost:{proofs.ports['smtp']}"),
        *("--authentication-id", ALICE.user, "--password", password),
        *(() if mechanism.endswith("-PLUS") else ("--no-cb",)),
    ]
    done = subprocess.run(command, input="QUIT\n", capture_output=True, check=False, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert f" {mechanism} " in said.replace("\r", " ").replace("\n", " "), said
    assert re.search(rf"^{answer} ", said, re.MULTILINE), said


@pytest.mark.parametrize("mechanisms", [("login",), ("plain", "login")])
def test_a_master_logs_in_under_one_name(
    authority: Authority, certificate: Certificate, mechanisms: tuple[str, ...]
) -> None:
    """Dovecot's ``user*master`` opens the user's account by any mechanism for passwords, in each protocol."""
    terms = Terms(
        certificate=certificate, master=MASTER, pop3=True, sieve=True, relay=9, mechanisms=mechanisms
    )
    with Dovecot(terms, ALICE) as east:
        there = {
            "imap": f"tcp:127.0.0.1:{east.imap}",
            "pop3": f"tcp:127.0.0.1:{east.pop3}",
            "submission": f"tcp:127.0.0.1:{east.submission}",
            "managesieve": f"tcp:127.0.0.1:{east.sieve}",
        }
        tls = {"security": "starttls", "verify": "localhost", "ca": str(authority.file)}
        config = configuration(certificate, {"east": there | tls | KEYS | {"master_separator": "*"}})
        config["authenticate"] = [{"source": "passwd-file", "file": "hashes"}]
        files = {"master-password": f"{MASTER.password}\n", "hashes": f"{ALICE.user}:{{PLAIN}}checked here\n"}
        listen: dict[str, dict[str, object]] = {
            name: {"protocol": name, "security": "none"} for name in there
        }
        with Mailroute(listen, config, {**users(ALICE), **files}) as here:
            plain = base64.b64encode(f"\0{ALICE.user}\0checked here".encode())
            for name, (command, answer) in OPENED.items():
                mark = east.log.mark()
                with RawImap("127.0.0.1", here.ports[name]) as session:
                    session.read(b"(OK|[*] OK|[+]OK|220)")
                    session.send(command % plain + b"\r\n")
                    session.read(answer)
                    east.log.wait_for(f"user=<{ALICE.user}>", mark)
            assert MASTER.password not in here.log.text()


OPENED = {
    "imap": (b"a AUTHENTICATE PLAIN %s", b"a OK"),
    "pop3": (b"AUTH PLAIN %s", b"[+]OK"),
    "submission": (b"EHLO here\r\nAUTH PLAIN %s", b"235"),
    "managesieve": (b'AUTHENTICATE "PLAIN" "%s"', b"OK"),
}
"""What a client says in each protocol to log in, and what it hears then."""
