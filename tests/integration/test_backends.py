"""Servers as they are found in the world: strict, broken, gone, or not who they say they are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.accounts import ALICE, BOB, Account, message
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.processes import free_port, wait_until
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import backend, configuration, listeners, users

pytestmark = pytest.mark.integration

LOGGED_IN = r"imap-login: Info: Login: user=<alice@example\.com>.*|Logged in: .*"

LOGIN = f'a LOGIN "{ALICE.user}" "{ALICE.password}"'


@pytest.fixture(scope="module")
def east(certificate: Certificate) -> Iterator[Dovecot]:
    with Dovecot(Terms(certificate=certificate), ALICE) as server:
        server.deliver(ALICE, message("for alice"))
        yield server


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that mailroute has not been told to trust."""
    return Authority(tmp_path_factory.mktemp("stranger"), "a stranger")


def at(server: Dovecot, authority: Authority, security: str, **keys: object) -> dict[str, object]:
    """Return the backend's block for the listener that suits the security."""
    port = server.imaps if security == "tls" else server.imap
    return backend(server, authority, imap=f"tcp:127.0.0.1:{port}", security=security, **keys)


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_backend_with_a_good_certificate_is_used_inside_tls(
    east: Dovecot, authority: Authority, certificate: Certificate, security: str
) -> None:
    """A certificate of the right authority with the right name: the login arrives, and inside TLS."""
    config = configuration(certificate, {"east": at(east, authority, security)})
    with Mailroute(listeners(), config, users(ALICE)) as proxy:
        mark = east.log.mark()
        with RawImap("127.0.0.1", proxy.ports["plain"]) as session:
            session.greeting()
            assert b"a OK" in session.command(LOGIN)
            assert b"1 EXISTS" in session.command("b SELECT INBOX")
        line = east.log.wait_for(LOGGED_IN, mark)
        assert ", TLS" in line[0]


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_backend_with_a_certificate_for_another_name_gets_no_password(
    east: Dovecot, authority: Authority, certificate: Certificate, security: str
) -> None:
    """The wrong name in a certificate: the client hears SERVERBUG, the log why, the server no secret."""
    config = configuration(certificate, {"east": at(east, authority, security, verify="east.example.com")})
    refuse_without_credentials(east, config, r"(?i)verif|certificate|match")


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_backend_with_a_strangers_certificate_gets_no_password(
    east: Dovecot, stranger: Authority, certificate: Certificate, security: str
) -> None:
    """An unknown authority: the client hears SERVERBUG, the log why, the server no secret."""
    config = configuration(certificate, {"east": at(east, stranger, security)})
    refuse_without_credentials(east, config, r"(?i)verif|certificate")


def refuse_without_credentials(east: Dovecot, config: dict[str, object], why: str) -> None:
    """Try to log in, and check what everybody hears of it."""
    with Mailroute(listeners(), config, users(ALICE)) as proxy:
        mark, own = east.log.mark(), proxy.log.mark()
        with RawImap("127.0.0.1", proxy.ports["plain"]) as session:
            session.greeting()
            answer = session.command(LOGIN)
            assert answer.startswith(b"a NO [SERVERBUG] "), answer
            for word in (b"certificate", b"verif", b"TLS", b"127.0.0.1", b"localhost"):
                assert word.lower() not in answer.lower()
            assert b"b OK" in session.command("b NOOP")
        proxy.log.wait_for(why, own)
        said = east.log.wait_for(r"imap-login: .*(no auth attempts|TLS handshak).*", mark)
        assert "user=<>" in said[0]
        assert not east.log.find("alice", mark)


def test_a_backend_without_starttls_gets_no_password(authority: Authority, certificate: Certificate) -> None:
    """Where STARTTLS is wanted and not offered, nobody logs in, and no credentials are sent in the clear."""
    with Dovecot(Terms(ssl="no"), ALICE) as bare:
        config = configuration(certificate, {"east": at(bare, authority, "starttls")})
        refuse_without_credentials(bare, config, r"(?i)STARTTLS")


def test_a_backend_in_the_clear_is_used_where_that_is_wanted(
    authority: Authority, certificate: Certificate
) -> None:
    """With security = "none" a server without any TLS serves."""
    with Dovecot(Terms(ssl="no"), ALICE) as bare:
        bare.deliver(ALICE, message("for alice"))
        config = configuration(certificate, {"east": at(bare, authority, "none")})
        with (
            Mailroute(listeners(), config, users(ALICE)) as proxy,
            RawImap("127.0.0.1", proxy.ports["plain"]) as session,
        ):
            session.greeting()
            assert b"a OK" in session.command(LOGIN)
            assert b"1 EXISTS" in session.command("b SELECT INBOX")


@pytest.mark.parametrize("ssl", ["yes", "required"])
def test_a_backend_that_demands_tls_gets_it(authority: Authority, certificate: Certificate, ssl: str) -> None:
    """A server that says LOGINDISABLED before TLS is logged in to once TLS is on, and never before."""
    # A connection between one and the same address would be as good as TLS to Dovecot.
    terms = Terms(certificate=certificate, ssl=ssl, cleartext=False, trusted=(), address="127.0.0.2")
    with Dovecot(terms, ALICE) as strict:
        with RawImap(strict.host, strict.imap, "127.0.0.1") as probe:
            assert b"LOGINDISABLED" in probe.greeting()
        keys = {"imap": f"tcp:127.0.0.2:{strict.imap}"}
        usable = configuration(certificate, {"east": backend(strict, authority, **keys)})
        with Mailroute(listeners(), usable, users(ALICE)) as proxy:
            assert b"a OK" in answer_to_login(proxy)
        hopeless = configuration(certificate, {"east": backend(strict, authority, **keys, security="none")})
        mark = strict.log.mark()
        with Mailroute(listeners(), hopeless, users(ALICE)) as proxy:
            assert answer_to_login(proxy).startswith(b"a NO [SERVERBUG] ")
            strict.log.wait_for("no auth attempts", mark)


@pytest.mark.parametrize("mechanism", ["plain", "login"])
def test_a_backend_with_one_mechanism_is_logged_in_to_by_that(
    authority: Authority, certificate: Certificate, mechanism: str
) -> None:
    """A server that offers AUTH=PLAIN or AUTH=LOGIN alone is logged in to however the client asked."""
    with Dovecot(Terms(certificate=certificate, mechanisms=(mechanism,)), ALICE) as picky:
        config = configuration(certificate, {"east": backend(picky, authority)})
        with Mailroute(listeners(), config, users(ALICE)) as proxy:
            assert b"a OK" in answer_to_login(proxy)
            picky.log.wait_for(f"user=<alice@example.com>, method={mechanism.upper()}")


def test_a_master_password_opens_the_account(authority: Authority, certificate: Certificate) -> None:
    """With login = "master" the server sees its master user log in as the account's owner."""
    master = Account("master", 'a "quoted" \\ café', "east")
    terms = Terms(certificate=certificate, master=master)
    with Dovecot(terms, ALICE) as east:
        east.deliver(ALICE, message("for alice"))
        keys = {"login": "master", "master_user": "master", "master_password_file": "master-password"}
        config = configuration(certificate, {"east": backend(east, authority, **keys)})
        listen = listeners()
        for block in listen.values():
            block["authenticate"] = "file:passwd"
        files = {"master-password": master.password + "\n", "passwd": f"{ALICE.user}:{ALICE.password}\n"}
        with Mailroute(listen, config, {**users(ALICE), **files}) as proxy:
            assert b"a OK" in answer_to_login(proxy)
        east.log.wait_for("Master user logging in as alice@example.com|master_user=master")


def test_a_backend_that_is_down_is_unavailable_and_its_return_is_noticed(
    authority: Authority, certificate: Certificate
) -> None:
    """While a server is down its users hear UNAVAILABLE and stay connected; once it is back they get in."""
    with Dovecot(Terms(certificate=certificate), ALICE) as east:
        config = configuration(certificate, {"east": backend(east, authority)})
        with (
            Mailroute(listeners(), config, users(ALICE)) as proxy,
            RawImap("127.0.0.1", proxy.ports["plain"]) as session,
        ):
            session.greeting()
            east.kill()
            start = time.monotonic()
            assert session.command(LOGIN).startswith(b"a NO [UNAVAILABLE] ")
            assert time.monotonic() - start < 2
            assert b"n OK" in session.command("n NOOP")
            east.start()
            assert b"a OK" in session.command(LOGIN)
            proxy.log.wait_for("(?i)refused")


def test_one_backend_down_does_not_trouble_the_users_of_another(
    east: Dovecot, authority: Authority, certificate: Certificate
) -> None:
    """While bob's server is down, alice's works."""
    blocks = {"east": backend(east, authority)}
    blocks["west"] = {**blocks["east"], "imap": f"tcp:127.0.0.1:{free_port()}"}
    with Mailroute(listeners(), configuration(certificate, blocks), users(ALICE, BOB)) as proxy:
        assert b"a NO [UNAVAILABLE] " in answer_to_login(proxy, f'a LOGIN "{BOB.user}" "{BOB.password}"')
        assert b"a OK" in answer_to_login(proxy)


@pytest.mark.parametrize("security", ["starttls", "tls", "none"])
@pytest.mark.parametrize("client", ["plain", "imap", "imaps"])
def test_a_backend_killed_in_mid_session_ends_the_clients_connection(
    authority: Authority, certificate: Certificate, security: str, client: str
) -> None:
    """When a server dies, the client of a running session is told within 2 s, by its connection's end."""
    with Dovecot(Terms(certificate=certificate), ALICE) as east:
        config = configuration(certificate, {"east": at(east, authority, security)})
        with (
            Mailroute(listeners(), config, users(ALICE)) as proxy,
            RawImap("127.0.0.1", proxy.ports[client]) as session,
        ):
            if client == "imaps":
                session.handshake(authority.context())
            session.greeting()
            if client == "imap":
                session.starttls(authority.context())
            assert b"a OK" in session.command(LOGIN)
            session.command("b SELECT INBOX")
            session.send(b"c IDLE\r\n")
            session.read(rb"\+")
            start = time.monotonic()
            east.kill()
            with contextlib.suppress(OSError):  # a broken connection may be passed on as one
                session.rest()
            assert time.monotonic() - start < 2


@pytest.mark.parametrize("security", ["starttls", "tls", "none"])
@pytest.mark.parametrize("client", ["plain", "imap", "imaps"])
def test_a_logout_ends_the_connection_at_once(
    east: Dovecot, authority: Authority, certificate: Certificate, security: str, client: str
) -> None:
    """After LOGOUT the connection is closed as soon as the server has closed it."""
    config = configuration(certificate, {"east": at(east, authority, security)})
    with (
        Mailroute(listeners(), config, users(ALICE)) as proxy,
        RawImap("127.0.0.1", proxy.ports[client]) as session,
    ):
        if client == "imaps":
            session.handshake(authority.context())
        session.greeting()
        if client == "imap":
            session.starttls(authority.context())
        assert b"a OK" in session.command(LOGIN)
        start = time.monotonic()
        session.send(b"b LOGOUT\r\n")
        assert b"b OK" in session.rest()
        assert time.monotonic() - start < 1


def test_a_backends_own_limit_is_passed_on(authority: Authority, certificate: Certificate) -> None:
    """What the server says in a code of its own, such as LIMIT, reaches the client."""
    with Dovecot(Terms(certificate=certificate, per_user_and_address=1), ALICE) as east:
        config = configuration(certificate, {"east": backend(east, authority)})
        with (
            Mailroute(listeners(), config, users(ALICE)) as proxy,
            RawImap("127.0.0.1", proxy.ports["plain"]) as first,
        ):
            first.greeting()
            assert b"a OK" in first.command(LOGIN)
            with (
                RawImap("127.0.0.1", proxy.ports["plain"]) as second,
                RawImap("127.0.0.1", east.imap) as direct,
            ):
                direct.greeting()
                second.greeting()
                expected = direct.command(LOGIN)
                assert second.command(LOGIN) == expected
                assert b"LIMIT" in expected


def answer_to_login(proxy: Mailroute, command: str = LOGIN) -> bytes:
    """Return what a client is told that logs in."""
    with RawImap("127.0.0.1", proxy.ports["plain"]) as session:
        session.greeting()
        return session.command(command)


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_server_is_greeted_before_anybody_comes(
    east: Dovecot, authority: Authority, certificate: Certificate, security: str
) -> None:
    """With warm = 2 there are two connections before a client comes, and clients log in on those."""
    block = at(east, authority, security, warm=2)
    config = configuration(certificate, {"east": block})
    port = int(str(block["imap"]).rpartition(":")[2])
    with Mailroute(listeners(), config, users(ALICE)) as proxy:
        wait_until("two connections", lambda: len(established(port)) >= 2)
        kept = established(port)
        for _ in range(2):
            with RawImap("127.0.0.1", proxy.ports["plain"]) as session:
                session.greeting()
                mark = east.log.mark()
                assert b"a OK" in session.command(LOGIN)
                assert b"1 EXISTS" in session.command("b SELECT INBOX")
                line = east.log.wait_for(LOGGED_IN, mark)
                assert ", TLS" in line[0]
                assert "rip=127.0.0.1" in line[0]
                assert kept & established(port)


def established(port: int) -> set[int]:
    """Return our ends' ports of the connections to a port of this machine."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state = line.split()[:4]
        if state == "01" and int(remote.split(":")[1], 16) == port:
            found.add(int(local.split(":")[1], 16))
    return found
