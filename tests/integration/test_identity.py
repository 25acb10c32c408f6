"""The backend learns who the client really is, and both logs call the session by one name."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import pytest
from servers.accounts import ALICE, Account, message
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.processes import NotInTime
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import backend, configuration, listeners, users

pytestmark = pytest.mark.integration

SOURCE = "127.0.0.77"
"""An address of this machine that is nobody's unless somebody binds a socket to it."""

WORDS = ["native", "proxy-v1", "proxy-v2"]
SECURITY = pytest.mark.parametrize("security", ["starttls", "tls", "none"])


@pytest.fixture(scope="module")
def east(certificate: Certificate) -> Iterator[Dovecot]:
    with Dovecot(Terms(certificate=certificate, pop3=True, sieve=True), ALICE) as server:
        server.deliver(ALICE, message("for alice"))
        yield server


def block(server: Dovecot, authority: Authority, security: str, identity: str) -> dict[str, object]:
    """Return the backend's block for a listener of the server that suits."""
    behind = identity.startswith("proxy-")
    port = {
        (False, False): server.imap,
        (False, True): server.imap_behind_proxy,
        (True, False): server.imaps,
        (True, True): server.imaps_behind_proxy,
    }[security == "tls", behind]
    return backend(server, authority, imap=f"tcp:127.0.0.1:{port}", security=security, identity=identity)


def visit(port: int, account: Account = ALICE, source: str = SOURCE) -> None:
    """Log in from the address that is to arrive at the backend, look, and leave."""
    with RawImap("127.0.0.1", port, source) as session:
        session.greeting()
        assert b"a OK" in session.command(f'a LOGIN "{account.user}" "{account.password}"')
        assert b"1 EXISTS" in session.command("b SELECT INBOX")
        session.command("c LOGOUT")


@SECURITY
@pytest.mark.parametrize("identity", WORDS)
def test_the_backends_log_has_the_clients_address(
    east: Dovecot, authority: Authority, certificate: Certificate, identity: str, security: str
) -> None:
    """By ID or by PROXY header, in the clear or inside TLS: the server logs where the client came from."""
    config = configuration(certificate, {"east": block(east, authority, security, identity)})
    with Mailroute(listeners(), config, users(ALICE)) as proxy:
        mark = east.log.mark()
        visit(proxy.ports["plain"])
        line = east.log.wait_for(r"imap-login: .*: user=<alice@example\.com>.*, rip=(\S+), lip=(\S+),", mark)
        assert line[1] == SOURCE
        assert line[2] == "127.0.0.1"


_PLAIN = base64.b64encode(f"\0{ALICE.user}\0{ALICE.password}".encode()).decode()

OTHERS = {
    "pop3": f"AUTH PLAIN {_PLAIN}\r\nQUIT\r\n",
    "managesieve": f'AUTHENTICATE "PLAIN" "{_PLAIN}"\r\nLOGOUT\r\n',
}
"""What a client of another protocol says that logs in and leaves."""


@pytest.mark.parametrize("security", ["starttls", "none"])
@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2"])
@pytest.mark.parametrize("protocol", OTHERS)
def test_login_services_are_told_by_a_header_too(
    east: Dovecot,
    authority: Authority,
    certificate: Certificate,
    protocol: str,
    identity: str,
    security: str,
) -> None:
    """A server of POP3 or ManageSieve that wants a PROXY header has the client's address from it."""
    port = {"pop3": east.pop3_behind_proxy, "managesieve": east.sieve_behind_proxy}[protocol]
    keys = {protocol: f"tcp:127.0.0.1:{port}", "identity": identity, "security": security}
    config = configuration(certificate, {"east": backend(east, authority, **keys)})
    mark = east.log.mark()
    with (
        Mailroute({"in": {"protocol": protocol, "security": "none"}}, config, users(ALICE)) as proxy,
        RawImap("127.0.0.1", proxy.ports["in"], SOURCE) as client,
    ):
        client.send(OTHERS[protocol].encode())
        client.rest()
    line = east.log.wait_for(
        rf"{protocol}-login: .*: user=<{re.escape(ALICE.user)}>.*, rip=(\S+), lip=", mark
    )
    assert line[1] == SOURCE


@SECURITY
def test_both_logs_call_a_session_by_the_same_name(
    east: Dovecot, authority: Authority, certificate: Certificate, security: str
) -> None:
    """What mailroute calls a session in its log is what the server calls it in its own."""
    config = configuration(certificate, {"east": block(east, authority, security, "native")})
    with Mailroute(listeners(), config, users(ALICE)) as proxy:
        mark = east.log.mark()
        visit(proxy.ports["plain"])
        line = east.log.wait_for(r"user=<alice@example\.com>.*rip=127\.0\.0\.77.*session=<(\S+)>", mark)
        logged = proxy.log.wait_for(re.escape(line[1]) + r".*$")
        whole = next(text for text in proxy.log.text().splitlines() if line[1] in text)
        assert "alice@example.com" in whole, logged
        assert SOURCE in whole
        assert "east" in whole


def test_nothing_is_said_of_the_client_where_nothing_is_to_be_said(
    east: Dovecot, authority: Authority, certificate: Certificate
) -> None:
    """With identity = "none" the server sees mailroute, and no more."""
    config = configuration(certificate, {"east": block(east, authority, "starttls", "none")})
    with Mailroute(listeners(), config, users(ALICE)) as proxy:
        mark = east.log.mark()
        visit(proxy.ports["plain"])
        line = east.log.wait_for(r"imap-login: .*: user=<alice@example\.com>.*, rip=(\S+),", mark)
        assert line[1] == "127.0.0.1"


def test_a_server_that_does_not_trust_mailroute_takes_the_login_all_the_same(
    authority: Authority, certificate: Certificate
) -> None:
    """An ID that the server does not believe does no harm: the login works, from mailroute's address."""
    with Dovecot(Terms(certificate=certificate, trusted=("192.0.2.0/24",)), ALICE) as wary:
        wary.deliver(ALICE, message("for alice"))
        config = configuration(certificate, {"east": block(wary, authority, "starttls", "native")})
        with Mailroute(listeners(), config, users(ALICE)) as proxy:
            visit(proxy.ports["plain"])
            line = wary.log.wait_for(r"imap-login: .*: user=<alice@example\.com>.*, rip=(\S+),")
            assert line[1] == "127.0.0.1"


def test_the_clients_own_id_cannot_pose_as_somebody_else(
    east: Dovecot, authority: Authority, certificate: Certificate
) -> None:
    """A client that claims another address in its own ID is logged with the one it really has."""
    config = configuration(certificate, {"east": block(east, authority, "starttls", "native")})
    with Mailroute(listeners(), config, users(ALICE)) as proxy:
        mark = east.log.mark()
        with RawImap("127.0.0.1", proxy.ports["plain"], SOURCE) as session:
            session.greeting()
            claim = '"x-originating-ip" "192.0.2.9" "x-session-id" "forged" "name" "Honest Mail"'
            assert b"a OK" in session.command(f"a ID ({claim})")
            assert b"b OK" in session.command(f'b LOGIN "{ALICE.user}" "{ALICE.password}"')
        line = east.log.wait_for(r"user=<alice@example\.com>.*rip=(\S+),.*session=<(\S+)>", mark)
        assert line[1] == SOURCE
        assert line[2] != "forged"
        assert "192.0.2.9" not in east.log.text(mark)


def test_a_server_that_expects_a_header_gets_none_and_the_client_is_told_nothing(
    east: Dovecot, authority: Authority, certificate: Certificate
) -> None:
    """A backend that waits for a PROXY header which is not configured is a server that does not answer."""
    keys = {"imap": f"tcp:127.0.0.1:{east.imap_behind_proxy}"}
    config = configuration(certificate, {"east": backend(east, authority, **keys)}, backend_timeout=6)
    with (
        Mailroute(listeners(), config, users(ALICE)) as proxy,
        RawImap("127.0.0.1", proxy.ports["plain"]) as session,
    ):
        session.greeting()
        answer = session.command(f'a LOGIN "{ALICE.user}" "{ALICE.password}"')
        assert b"a NO [UNAVAILABLE] " in answer
        assert b"haproxy" not in answer.lower()
        assert b"b OK" in session.command("b NOOP")


def test_waiting_for_a_line_that_never_comes_ends(east: Dovecot) -> None:
    """The tests' own log reader gives up in time."""
    with pytest.raises(NotInTime):
        east.log.wait_for("nothing like this is ever logged", patience=0.05)
