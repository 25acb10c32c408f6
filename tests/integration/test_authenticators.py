"""Logins that mailroute checks itself, before a real server that takes its word."""

from __future__ import annotations

import base64
import imaplib
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from servers.accounts import ALICE, Account, message
from servers.auth_http import AuthServer
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.processes import wait_until
from servers.programs import program
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import backend, configuration, listeners, users

pytestmark = pytest.mark.integration

SECRET = "another one: ä"
MASTER = Account("master", "the master's own", "east")
KEYS = {"login": "master", "master_user": MASTER.user, "master_password_file": "master-password"}
SCHEMES = ["ARGON2ID", "BLF-CRYPT", "SHA512-CRYPT", "SHA256-CRYPT", "PBKDF2", "SCRAM-SHA-256", "SCRAM-SHA-1"]
SLOW = "$6$rounds=3000000$saltsaltsalt$" + "a" * 86


def hashed(scheme: str) -> str:
    command = [program("doveadm", "dovecot-core"), "pw", "-s", scheme, "-p", SECRET]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def user(scheme: str) -> Account:
    return Account(f"{scheme.lower()}@east.example.org", SECRET, "east")


@pytest.fixture(scope="module")
def east(certificate: Certificate) -> Iterator[Dovecot]:
    accounts = [Account(user(scheme).user, "the server's own", "east") for scheme in SCHEMES]
    with Dovecot(Terms(certificate=certificate, master=MASTER), ALICE, *accounts) as server:
        for account in accounts:
            server.deliver(account, message("for you"))
        yield server


def proxy(
    east: Dovecot, authority: Authority, certificate: Certificate, lines: list[str], **limits: float
) -> Mailroute:
    config = configuration(certificate, {"east": backend(east, authority, **KEYS)}, **limits)
    config["authenticate"] = [{"source": "passwd-file", "file": "hashes"}]
    files = {"master-password": f"{MASTER.password}\n", "hashes": "".join(f"{line}\n" for line in lines)}
    return Mailroute(listeners(), config, {**users(ALICE), **files})


def log_in(session: RawImap, name: str, password: str) -> bytes:
    return session.command(b'a LOGIN "%s" "%s"' % (name.encode(), password.encode()))


def test_every_hash_opens_an_account(east: Dovecot, authority: Authority, certificate: Certificate) -> None:
    """With hashes of Dovecot's own making the passwords open the accounts there, by its master user."""
    lines = [f"{user(scheme).user}:{hashed(scheme)}::::::" for scheme in SCHEMES]
    with proxy(east, authority, certificate, lines) as here:
        for scheme in SCHEMES:
            with RawImap("127.0.0.1", here.ports["imap"]) as session:
                session.greeting()
                session.starttls(authority.context())
                refused = log_in(session, user(scheme).user, "the server's own")
                assert b"a NO [AUTHENTICATIONFAILED] Authentication failed." in refused
                assert b"a OK" in log_in(session, user(scheme).user, SECRET)
                assert b"1 EXISTS" in session.command("b SELECT INBOX")
        assert SECRET not in here.log.text()
        assert "wrong password" in here.log.text()


def test_an_unknown_user_cannot_be_told_from_a_wrong_password(
    east: Dovecot, authority: Authority, certificate: Certificate
) -> None:
    """Where a hash takes longer than any delay, an unknown user waits for one, and hears the same words."""
    with proxy(east, authority, certificate, [f"{ALICE.user}:{SLOW}"]) as here:
        seconds, said = {}, set()
        for name in (ALICE.user, "nobody@east.example.org"):
            with RawImap("127.0.0.1", here.ports["plain"]) as session:
                session.greeting()
                began = time.monotonic()
                said.add(log_in(session, name, "not that"))
                seconds[name] = time.monotonic() - began
    shorter, longer = sorted(seconds.values())
    assert len(said) == 1
    assert shorter > 0.5
    assert longer < 2 * shorter


def test_a_slow_hash_holds_nobody_up(east: Dovecot, authority: Authority, certificate: Certificate) -> None:
    """While a hash that takes seconds is under way, others are greeted and answered at once."""
    with (
        proxy(east, authority, certificate, [f"{ALICE.user}:{SLOW}"]) as here,
        RawImap("127.0.0.1", here.ports["plain"]) as slow,
    ):
        slow.greeting()
        answered = threading.Event()
        slow.send(b"a LOGIN %s wrong\r\n" % ALICE.user.encode())
        waiting = threading.Thread(target=lambda: (slow.read(b"a "), answered.set()))
        waiting.start()
        turns = 0
        while not answered.is_set():
            with RawImap("127.0.0.1", here.ports["plain"]) as session:
                session.greeting()
                assert b"b OK" in session.command("b NOOP")
            turns += 1
        waiting.join()
    assert turns > 20


def test_workers_check_passwords_too(east: Dovecot, authority: Authority, certificate: Certificate) -> None:
    """Each worker has the hashes and threads of its own to compute them in, and reads a changed file."""
    name = user("ARGON2ID").user
    config = configuration(certificate, {"east": backend(east, authority, **KEYS)})
    config |= {"workers": 2, "authenticate": [{"source": "passwd-file", "file": "hashes"}]}
    files = {"master-password": f"{MASTER.password}\n", "hashes": f"{name}:{hashed('ARGON2ID')}\n"}
    with Mailroute(listeners(), config, {**users(ALICE), **files}) as here:
        for password, answer in ((SECRET, b"a OK"), ("not that", b"a NO [AUTHENTICATIONFAILED]")):
            for _ in range(6):
                with RawImap("127.0.0.1", here.ports["plain"]) as session:
                    session.greeting()
                    assert answer in log_in(session, name, password)
        (here.folder / "hashes").write_text(f"{name}:{{PLAIN}}newer\n")
        here.log.wait_for("hashes again: 1 users")
        here.log.wait_for("hashes again: 1 users", here.log.text().index("hashes again: 1 users") + 20)
        for _ in range(6):
            with RawImap("127.0.0.1", here.ports["plain"]) as session:
                session.greeting()
                assert b"a OK" in log_in(session, name, "newer")


# --- tokens -----------------------------------------------------------------------------

ISSUER = "https://login.example.org"
SIGNER = rsa.generate_private_key(65537, 2048)


def signed(name: str, **claims: object) -> str:
    said = {"iss": ISSUER, "aud": "mail", "exp": time.time() + 60, "email": name, "scope": "mail", **claims}
    return jwt.encode(said, SIGNER, algorithm="RS256", headers={"kid": "one"})


def log_in_with(session: imaplib.IMAP4, mechanism: str, name: str, token: str) -> None:
    said = {
        "XOAUTH2": f"user={name}\1auth=Bearer {token}\1\1",
        "OAUTHBEARER": f"n,a={name},\1host=localhost\1auth=Bearer {token}\1\1",
    }[mechanism]
    challenged = []

    def answer(challenge: bytes) -> bytes:
        challenged.append(challenge)
        return b"\1" if len(challenged) > 1 else said.encode()

    session.authenticate(mechanism, answer)


@pytest.fixture(scope="module")
def with_tokens(east: Dovecot, authority: Authority, certificate: Certificate) -> Iterator[Mailroute]:
    config = configuration(certificate, {"east": backend(east, authority, **KEYS)})
    config["authenticate"] = [
        {"source": "oauth2", "jwks": "keys.json", "issuer": ISSUER, "audience": "mail", "scope": "mail"}
    ]
    keys = {"keys": [{**RSAAlgorithm.to_jwk(SIGNER.public_key(), as_dict=True), "kid": "one"}]}
    files = {"master-password": f"{MASTER.password}\n", "keys.json": json.dumps(keys)}
    with Mailroute(listeners(), config, {**users(ALICE), **files}) as here:
        yield here


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_a_token_opens_an_account_at_a_server_that_knows_none(
    with_tokens: Mailroute, authority: Authority, mechanism: str
) -> None:
    """A token that is checked here opens the account of its claim, by the server's master user."""
    name = user("ARGON2ID").user
    context = authority.context()
    with imaplib.IMAP4_SSL("localhost", with_tokens.ports["imaps"], ssl_context=context) as session:
        assert f"AUTH={mechanism}" in session.capabilities
        assert "AUTH=PLAIN" not in session.capabilities
        assert "LOGINDISABLED" in session.capabilities
        log_in_with(session, mechanism, name, signed(name.upper().replace("ARGON2ID", "argon2id")))
        assert session.select() == ("OK", [b"1"])


def test_a_client_is_told_why_its_token_is_not_taken(with_tokens: Mailroute) -> None:
    """The refusal comes as a challenge with RFC 7628's document, and the client may go on."""
    name = user("ARGON2ID").user
    with RawImap("127.0.0.1", with_tokens.ports["plain"]) as session:
        session.greeting()
        for claims, status in (({"scope": "x"}, "insufficient_scope"), ({"aud": "x"}, "invalid_token")):
            message = f"n,a={name},\1auth=Bearer {signed(name, **claims)}\1\1".encode()
            session.send(b"a AUTHENTICATE OAUTHBEARER %s\r\n" % base64.b64encode(message))
            challenge = session.read(rb"\+").splitlines()[-1].removeprefix(b"+ ")
            said: Any = json.loads(base64.b64decode(challenge))
            assert said == {"status": status, "scope": "mail"}
            session.send(b"AQ==\r\n")
            assert b"a NO [AUTHENTICATIONFAILED]" in session.read(b"a ")
        message = f"n,,\1auth=Bearer {signed(name)}\1\1".encode()
        session.send(b"b AUTHENTICATE OAUTHBEARER %s\r\n" % base64.b64encode(message))
        assert b"b OK" in session.read(b"b ")


def test_a_token_that_is_checked_here_is_handed_on(authority: Authority, certificate: Certificate) -> None:
    """A server that checks tokens itself is shown the one that mailroute has checked."""
    secret = b"the secret that signs the tokens"
    terms = Terms(certificate=certificate, tokens=secret, mechanisms=("plain", "xoauth2", "oauthbearer"))
    key = {"kty": "oct", "k": base64.urlsafe_b64encode(secret).decode().rstrip("=")}
    with Dovecot(terms, ALICE) as server:
        config = configuration(certificate, {"east": backend(server, authority)})
        config["authenticate"] = [
            {
                "source": "oauth2",
                "jwks": "keys.json",
                "issuer": ISSUER,
                "audience": "mail",
                "claim": "sub",
                "algorithms": ["HS256"],
            }
        ]
        said = {"iss": ISSUER, "aud": "mail", "sub": ALICE.user, "iat": 1, "exp": int(time.time()) + 60}
        token = jwt.encode(said, secret, algorithm="HS256")
        files = {"keys.json": json.dumps({"keys": [key]})}
        with (
            Mailroute(listeners(), config, {**users(ALICE), **files}) as here,
            imaplib.IMAP4_SSL("localhost", here.ports["imaps"], ssl_context=authority.context()) as session,
        ):
            log_in_with(session, "OAUTHBEARER", ALICE.user, token)
            assert session.select()[0] == "OK"


def test_an_introspection_server_is_asked_once_for_a_token(
    east: Dovecot, authority: Authority, certificate: Certificate
) -> None:
    """A token opens the account that its server names, over connections at once by one question over TLS."""
    asked: list[dict[str, list[str]]] = []
    name = user("ARGON2ID").user

    def introspect(headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        assert headers["Authorization"] == "Basic " + base64.b64encode(b"mailroute:hush").decode()
        asked.append(parse_qs(body.decode()))
        good = asked[-1]["token"] == ["a.token"]
        said = {"active": True, "username": name, "exp": time.time() + 60} if good else {"active": False}
        return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()

    with AuthServer(introspect, certificate=certificate) as server:
        config = configuration(certificate, {"east": backend(east, authority, **KEYS)})
        block = {"introspection": server.url, "client_id": "mailroute", "client_secret_file": "hush"}
        block |= {"source": "oauth2", "claim": "username", "ca": str(authority.file)}
        config["authenticate"] = [block]
        files = {"hush": "hush\n", "master-password": f"{MASTER.password}\n"}
        with Mailroute(listeners(), config, {**users(ALICE), **files}) as here:
            sessions = [RawImap("127.0.0.1", here.ports["plain"]) for _ in range(5)]
            for session in sessions:
                session.greeting()
                text = base64.b64encode(f"user={name}\1auth=Bearer a.token\1\1".encode())
                session.send(b"a AUTHENTICATE XOAUTH2 %s\r\n" % text)
            for session in sessions:
                assert b"a OK" in session.read(b"a ")
                session.__exit__()
            with RawImap("127.0.0.1", here.ports["plain"]) as session:
                session.greeting()
                text = base64.b64encode(b"n,,\1auth=Bearer another.token\1\1")
                session.send(b"a AUTHENTICATE OAUTHBEARER %s\r\n" % text)
                assert json.loads(base64.b64decode(session.read(rb"\+ ")[2:])) == {"status": "invalid_token"}
                session.send(b"AQ==\r\n")
                assert b"a NO [AUTHENTICATIONFAILED]" in session.read(b"a ")
            assert sorted(each["token"] for each in asked) == [["a.token"], ["another.token"]]
            log = here.log.text()
            assert "a.token" not in log
            assert "another.token" not in log
            # Of what is asked the log has what went wrong, and how often at the end.
            assert "factory" not in log


# --- certificates -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_certificates(east: Dovecot, authority: Authority, certificate: Certificate) -> Iterator[Mailroute]:
    config = configuration(certificate, {"east": backend(east, authority, **KEYS)})
    config["authenticate"] = [{"source": "external"}, {"source": "passwd-file", "file": "hashes"}]
    listen = listeners()
    for name in ("imap", "imaps"):
        listen[name]["client_ca"] = str(authority.file)
    files = {"master-password": f"{MASTER.password}\n", "hashes": f"{ALICE.user}:{hashed('SHA512-CRYPT')}\n"}
    with Mailroute(listen, config, {**users(ALICE), **files}) as here:
        yield here


@pytest.fixture(scope="module")
def alices(authority: Authority) -> Certificate:
    return authority.issue("Alice", more=[x509.RFC822Name(user("ARGON2ID").user)], client=True)


@pytest.mark.parametrize("port", ["imap", "imaps"])
def test_a_certificate_opens_its_account(
    with_certificates: Mailroute, authority: Authority, alices: Certificate, port: str
) -> None:
    """A client with a certificate is offered EXTERNAL, and needs neither name nor password."""
    context = authority.context()
    context.load_cert_chain(alices.chain, alices.key)
    if port == "imaps":
        session: Any = imaplib.IMAP4_SSL("localhost", with_certificates.ports[port], ssl_context=context)
    else:
        session = imaplib.IMAP4("localhost", with_certificates.ports[port])
        assert "AUTH=EXTERNAL" not in session.capabilities
        session.starttls(context)
    with session:
        assert "AUTH=EXTERNAL" in session.capabilities
        session.authenticate("EXTERNAL", lambda _: b"")
        assert session.select() == ("OK", [b"1"])


def test_a_client_without_a_certificate_uses_its_password(
    with_certificates: Mailroute, authority: Authority
) -> None:
    """EXTERNAL is not offered to who has shown no certificate, nor does it let anybody in."""
    port = with_certificates.ports["imaps"]
    with imaplib.IMAP4_SSL("localhost", port, ssl_context=authority.context()) as session:
        assert "AUTH=EXTERNAL" not in session.capabilities
        with pytest.raises(imaplib.IMAP4.error, match="Unsupported"):
            session.authenticate("EXTERNAL", lambda _: ALICE.user.encode())
        message = f"\0{ALICE.user}\0{SECRET}".encode()
        assert session.authenticate("PLAIN", lambda _: message)[0] == "OK"


def test_a_certificate_opens_no_other_account(
    with_certificates: Mailroute, authority: Authority, alices: Certificate
) -> None:
    """Whoever asks for an account that the certificate does not name is turned away."""
    context = authority.context()
    context.load_cert_chain(alices.chain, alices.key)
    with (
        imaplib.IMAP4_SSL("localhost", with_certificates.ports["imaps"], ssl_context=context) as session,
        pytest.raises(imaplib.IMAP4.error, match="AUTHORIZATIONFAILED"),
    ):
        session.authenticate("EXTERNAL", lambda _: ALICE.user.encode())


# --- proofs that a password is known --------------------------------------------------------


@pytest.fixture(scope="module")
def with_keys(east: Dovecot, authority: Authority, certificate: Certificate) -> Iterator[Mailroute]:
    lines = [f"{user(scheme).user}:{hashed('SCRAM-SHA-256')}" for scheme in SCHEMES]
    with proxy(east, authority, certificate, lines) as here:
        yield here


def test_scram_goes_and_comes_with_who_has_no_keys(
    east: Dovecot, authority: Authority, certificate: Certificate
) -> None:
    """Who connects while somebody in the file has another hash is not offered what would fail for them."""
    keys = f"{user('ARGON2ID').user}:{hashed('SCRAM-SHA-256')}\n"

    def offered(here: Mailroute) -> bool:
        with imaplib.IMAP4("localhost", here.ports["plain"]) as session:
            return "AUTH=SCRAM-SHA-256" in session.capabilities

    with proxy(east, authority, certificate, [keys]) as here:
        assert offered(here)
        (here.folder / "hashes").write_text(f"{keys}eve:{hashed('BLF-CRYPT')}\n")
        wait_until("SCRAM to go", lambda: not offered(here))
        (here.folder / "hashes").write_text(keys)
        wait_until("SCRAM to come", lambda: offered(here))


def gsasl(with_keys: Mailroute, authority: Authority, mechanism: str, password: str) -> str:
    """Log in by GNU SASL's client, and return what both sides have said."""
    command = [
        *(program("gsasl", "gsasl"), "--client", "--imap", "--starttls", "--mechanism", mechanism),
        *("--x509-ca-file", str(authority.file), "--connect", f"localhost:{with_keys.ports['imap']}"),
        *("--authentication-id", user("ARGON2ID").user, "--password", password),
        *(() if mechanism.endswith("-PLUS") else ("--no-cb",)),
    ]
    given = {"input": "c LOGOUT\n", "text": True, "timeout": 60}
    done = subprocess.run(command, capture_output=True, check=False, **given)
    return done.stdout + done.stderr


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"])
def test_a_client_that_proves_to_know_its_password(
    with_keys: Mailroute, authority: Authority, mechanism: str
) -> None:
    """GNU SASL's client and mailroute prove to each other what they know, bound to the channel or not."""
    said = gsasl(with_keys, authority, mechanism, SECRET)
    assert re.search(rf"AUTH={mechanism}(?!-)", said), said
    assert re.search(r"^\. OK ", said, re.MULTILINE), said
    said = gsasl(with_keys, authority, mechanism, "not that")
    assert re.search(r"^\. NO \[AUTHENTICATIONFAILED\]", said, re.MULTILINE), said
