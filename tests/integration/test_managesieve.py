"""ManageSieve as real clients and real servers speak it, through the proxy."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.accounts import ALICE, BOB, Account
from servers.certificates import Authority, Certificate
from servers.commands import run
from servers.dovecot import Dovecot, Terms
from servers.processes import PATIENCE
from servers.programs import program
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import configuration, users

pytestmark = pytest.mark.integration

SOURCE = "127.0.0.77"
"""An address of this machine that is nobody's unless somebody binds a socket to it."""

MECHANISMS = ["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"]
MASTER = Account("root", "of all", "east")
ACCOUNTS = pytest.mark.parametrize("account", [ALICE, BOB], ids=lambda account: account.backend)
SECURITY = pytest.mark.parametrize("security", ["starttls", "tls"])

SCRIPT = (
    b"".join(b"# %d: a line of a script that is long\r\n" % number for number in range(20_000)) + b"keep;\r\n"
)
"""Some 900 KB: Pigeonhole takes no more than a megabyte."""

ANSWER = rb"(OK|NO|BYE)\b"


@pytest.fixture(scope="module")
def servers(certificate: Certificate) -> Iterator[dict[str, Dovecot]]:
    """Two servers with ManageSieve; west takes a password by no other mechanism than LOGIN."""
    east_terms = Terms(
        certificate=certificate,
        sieve=True,
        tokens=b"k" * 32,
        master=MASTER,
        mechanisms=tuple(name.lower() for name in MECHANISMS),
    )
    west_terms = Terms(certificate=certificate, sieve=True, mechanisms=("login",))
    with Dovecot(east_terms, ALICE) as east, Dovecot(west_terms, BOB) as west:
        yield {"east": east, "west": west}


@pytest.fixture(scope="module")
def tls_ports(servers: dict[str, Dovecot], certificate: Certificate) -> Iterator[dict[str, int]]:
    """Ports with TLS from the first byte, by the servers' names: a mailroute of their own has them.

    Pigeonhole 2.3 can have such ports itself, and a client that answers within microseconds is
    not heard there: of 500 that were connected to one directly, 10 got no answer to AUTHENTICATE.
    """
    listen = {name: {"protocol": "tcp", "security": "tls", "backend": name} for name in servers}
    blocks = {
        name: {"tcp": f"tcp:127.0.0.1:{server.sieve}", "security": "none"} for name, server in servers.items()
    }
    config = configuration(certificate, blocks)
    del config["route"]
    with Mailroute(listen, config) as front:
        yield front.ports


def block(port: int, authority: Authority, security: str, **keys: object) -> dict[str, object]:
    """Return the ``[backend.…]`` block for a server with ManageSieve."""
    there = {"managesieve": f"tcp:127.0.0.1:{port}", "security": security}
    return there | {"verify": "localhost", "ca": str(authority.file)} | keys


NAMES = {"starttls": "starttls", "tls": "tls", "plain": "none"}


def listeners(**keys: object) -> dict[str, dict[str, object]]:
    """Return the listeners of the usual proxy, for ManageSieve."""
    usual = {
        "protocol": "managesieve",
        "mechanisms": MECHANISMS,
        "capabilities": ["SIEVE fileinto vacation"],
    }
    return {name: usual | {"security": security} | keys for name, security in NAMES.items()}


@pytest.fixture(scope="module", params=["starttls", "tls"])
def sieve_proxy(
    request: pytest.FixtureRequest,
    servers: dict[str, Dovecot],
    tls_ports: dict[str, int],
    authority: Authority,
    certificate: Certificate,
) -> Iterator[Mailroute]:
    """The usual proxy for ManageSieve, with TLS to the backends on request or from the first byte."""
    ports = tls_ports if request.param == "tls" else {name: servers[name].sieve for name in servers}
    blocks = {name: block(port, authority, request.param) for name, port in ports.items()}
    with Mailroute(listeners(), configuration(certificate, blocks), users(ALICE, BOB)) as proxy:
        yield proxy


def connect(port: int, authority: Authority, security: str) -> RawImap:
    """Connect with TLS, by STARTTLS or from the first byte; the capabilities have been read."""
    session = RawImap("127.0.0.1", port)
    if security == "starttls":
        before = capabilities(session.read(ANSWER))
        assert b"STARTTLS" in before
        session.send(b"STARTTLS\r\n")
        assert session.read(ANSWER).startswith(b"OK ")
    session.handshake(authority.context())
    after = capabilities(session.read(ANSWER))
    assert after[b"SASL"] != b'""'
    assert b"STARTTLS" not in after
    return session


def capabilities(said: bytes) -> dict[bytes, bytes]:
    *lines, last = said.splitlines()
    assert last.startswith(b"OK ")
    return {line.split()[0].strip(b'"'): line.partition(b" ")[2] for line in lines}


def command(session: RawImap, line: bytes) -> bytes:
    session.send(line + b"\r\n")
    return session.read(ANSWER)


def plain(user: str, password: str) -> bytes:
    return b'AUTHENTICATE "PLAIN" "%s"' % base64.b64encode(f"\0{user}\0{password}".encode())


def fetch(session: RawImap, name: str) -> bytes:
    """Return a script."""
    session.send(f'GETSCRIPT "{name}"\r\n'.encode())
    size = re.match(rb"\{(\d+)\}", session.read(rb"\{"))
    script = session.exactly(int(size[1]))
    assert session.read(ANSWER).splitlines()[-1].startswith(b"OK ")
    return script


def digest(script: bytes) -> str:
    return hashlib.sha256(script).hexdigest()


@SECURITY
@ACCOUNTS
def test_scripts_are_put_listed_and_fetched(
    sieve_proxy: Mailroute, authority: Authority, account: Account, security: str
) -> None:
    """A large script comes back with the same hash, and the list of scripts is the account's own."""
    session = connect(sieve_proxy.ports[security], authority, security)
    with session:
        assert command(session, plain(account.user, account.password)) == b'OK "Logged in."\r\n'
        session.send(b'PUTSCRIPT "large" {%d+}\r\n' % len(SCRIPT) + SCRIPT + b"\r\n")
        assert session.read(ANSWER).startswith(b"OK ")
        assert command(session, b'SETACTIVE "large"').startswith(b"OK ")
        assert command(session, b"LISTSCRIPTS").splitlines()[:-1] == [b'"large" ACTIVE']
        assert digest(fetch(session, "large")) == digest(SCRIPT)
        assert command(session, b'SETACTIVE ""').startswith(b"OK ")
        assert command(session, b'DELETESCRIPT "large"').startswith(b"OK ")
        assert command(session, b"LISTSCRIPTS").splitlines()[:-1] == []
        assert command(session, b"LOGOUT").startswith(b"OK ")
        assert session.rest() == b""


_TEMPORARY = re.compile(rb"\d+\.M\d+P\d+\.\S+\.tmp")
"""How Pigeonhole 2.4 calls a script that it checks, where 0.5 calls it by no name."""


@ACCOUNTS
def test_after_the_login_all_is_as_without_mailroute(
    sieve_proxy: Mailroute, servers: dict[str, Dovecot], authority: Authority, account: Account
) -> None:
    """The answer to the login and whatever follows it are the server's, capabilities included."""
    seen = []
    for port in (servers[account.backend].sieve, sieve_proxy.ports["starttls"]):
        with connect(port, authority, "starttls") as session:
            name, password = (base64.b64encode(text.encode()) for text in (account.user, account.password))
            session.send(b'AUTHENTICATE "LOGIN"\r\n')
            answers = [session.read(b'"')]
            session.send(b'"%s"\r\n' % name)
            answers.append(session.read(b'"'))
            answers.append(command(session, b"{%d+}\r\n%s" % (len(password), password)))
            commands = (
                b"CAPABILITY",
                b'NOOP "x"',
                b'CHECKSCRIPT "nonsense"',
                b'GETSCRIPT "none"',
                b"STARTTLS",
            )
            answers += [command(session, line) for line in commands]
            seen.append([_TEMPORARY.sub(b"", answer) for answer in answers])
    assert seen[0] == seen[1]
    assert b'"MAXREDIRECTS"' in seen[1][3]


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_logs_in(
    sieve_proxy: Mailroute, authority: Authority, servers: dict[str, Dovecot], mechanism: str, initial: bool
) -> None:
    """Passwords and tokens get through by SASL, with and without an initial response."""
    token = servers["east"].token(ALICE)
    messages = {
        "PLAIN": [f"\0{ALICE.user}\0{ALICE.password}"],
        "LOGIN": [ALICE.user, ALICE.password],
        "XOAUTH2": [f"user={ALICE.user}\1auth=Bearer {token}\1\1"],
        "OAUTHBEARER": [f"n,a={ALICE.user},\1auth=Bearer {token}\1\1"],
    }
    encoded = [base64.b64encode(text.encode()).decode() for text in messages[mechanism]]
    with connect(sieve_proxy.ports["tls"], authority, "tls") as session:
        first = f'AUTHENTICATE "{mechanism}"' + (f' "{encoded.pop(0)}"' if initial else "")
        session.send(first.encode() + b"\r\n")
        for text in encoded:
            session.read(b'"')
            session.send(f'"{text}"\r\n'.encode())
        assert session.read(ANSWER) == b'OK "Logged in."\r\n'
        assert command(session, b"LISTSCRIPTS").startswith(b"OK ")


def test_a_bad_token_is_explained(sieve_proxy: Mailroute, authority: Authority) -> None:
    """The server's error document reaches the client as a challenge, and the NO comes behind its answer."""
    message = base64.b64encode(f"n,a={ALICE.user},\1auth=Bearer nonsense\1\1".encode())
    with connect(sieve_proxy.ports["tls"], authority, "tls") as session:
        session.send(b'AUTHENTICATE "OAUTHBEARER" "%s"\r\n' % message)
        document = base64.b64decode(session.read(b'"').strip(b'"\r\n'))
        assert b'"status":"invalid_token"' in document
        assert command(session, b'"AQ=="') == b'NO "Authentication failed."\r\n'


@ACCOUNTS
def test_a_wrong_password_and_an_unknown_user_are_told_alike(
    sieve_proxy: Mailroute, authority: Authority, account: Account
) -> None:
    """Both are told in the same words; the client stays, and the right password is taken."""
    with connect(sieve_proxy.ports["tls"], authority, "tls") as session:
        for user in (account.user, f"nobody@{account.backend}.example.org", "nobody@nowhere.example.org"):
            assert command(session, plain(user, "not that")) == b'NO "Authentication failed."\r\n'
        assert command(session, plain(account.user, account.password)) == b'OK "Logged in."\r\n'
        assert command(session, b"LISTSCRIPTS").startswith(b"OK ")


@ACCOUNTS
def test_a_session_in_one_segment(sieve_proxy: Mailroute, account: Account) -> None:
    """A client that sends all of its commands at once, literals too, gets all answered, in order."""
    lines = [
        plain(account.user, account.password),
        b'PUTSCRIPT "a" {7+}\r\nkeep;\r\n',
        b"LISTSCRIPTS",
        b'DELETESCRIPT "a"',
        b"LOGOUT",
    ]
    with RawImap("127.0.0.1", sieve_proxy.ports["plain"]) as client:
        client.read(ANSWER)
        client.send(b"".join(line + b"\r\n" for line in lines))
        answers = client.rest().splitlines()
    assert answers[0] == b'OK "Logged in."'
    assert answers[2] == b'"a"'
    assert [line[:3] for line in answers] == [b"OK ", b"OK ", b'"a"', b"OK ", b"OK ", b"OK "]


def test_a_client_that_has_finished_sending_gets_its_answer(sieve_proxy: Mailroute) -> None:
    """One that shuts its writing side behind GETSCRIPT still gets the whole script."""
    with RawImap("127.0.0.1", sieve_proxy.ports["plain"]) as client:
        client.read(ANSWER)
        assert command(client, plain(ALICE.user, ALICE.password)).startswith(b"OK ")
        client.send(b'PUTSCRIPT "half" {%d+}\r\n' % len(SCRIPT) + SCRIPT + b"\r\n")
        assert client.read(ANSWER).startswith(b"OK ")
        client.send(b'GETSCRIPT "half"\r\n')
        client.socket.shutdown(socket.SHUT_WR)
        size, _, rest = client.rest().partition(b"\r\n")
    assert size == b"{%d}" % len(SCRIPT)
    assert digest(rest[: len(SCRIPT)]) == digest(SCRIPT)
    assert rest[len(SCRIPT) :].startswith(b"\r\nOK ")
    with RawImap("127.0.0.1", sieve_proxy.ports["plain"]) as client:
        client.read(ANSWER)
        assert command(client, plain(ALICE.user, ALICE.password)).startswith(b"OK ")
        assert command(client, b'DELETESCRIPT "half"').startswith(b"OK ")


def test_nothing_is_taken_from_before_starttls(sieve_proxy: Mailroute) -> None:
    """A command in the clear behind STARTTLS ends the connection before a handshake."""
    with RawImap("127.0.0.1", sieve_proxy.ports["starttls"]) as client:
        client.read(ANSWER)
        client.send(b"STARTTLS\r\n" + plain(ALICE.user, ALICE.password) + b"\r\n")
        assert client.rest().splitlines() == [
            b'NO "Nothing may follow STARTTLS."',
            b'BYE "Nothing may follow STARTTLS before TLS is on."',
        ]


def test_no_password_is_taken_in_the_clear(sieve_proxy: Mailroute) -> None:
    """Before STARTTLS a login is refused with the code for it, and no mechanism is listed."""
    with RawImap("127.0.0.1", sieve_proxy.ports["starttls"]) as client:
        assert capabilities(client.read(ANSWER))[b"SASL"] == b'""'
        answer = command(client, plain(ALICE.user, ALICE.password))
        assert answer == b'NO (ENCRYPT-NEEDED) "Logins need TLS. Use STARTTLS first."\r\n'


def test_another_protocols_client_is_refused(sieve_proxy: Mailroute, authority: Authority) -> None:
    """A client that asks by ALPN for HTTP gets no TLS; one that asks for ManageSieve gets it."""
    address = ("127.0.0.1", sieve_proxy.ports["tls"])
    for name, expected in (("managesieve", "managesieve"), ("http/1.1", None)):
        context = authority.context()
        context.set_alpn_protocols([name])
        with socket.create_connection(address, timeout=PATIENCE) as client:
            if expected is None:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    context.wrap_socket(client, server_hostname="localhost")
            else:
                with context.wrap_socket(client, server_hostname="localhost") as session:
                    assert session.selected_alpn_protocol() == expected


@ACCOUNTS
def test_the_backends_log_has_the_clients_address(
    sieve_proxy: Mailroute, servers: dict[str, Dovecot], account: Account
) -> None:
    """By XCLIENT the server learns where the client came from, and what mailroute calls the session."""
    log = servers[account.backend].log
    mark = log.mark()
    with RawImap("127.0.0.1", sieve_proxy.ports["plain"], SOURCE) as client:
        client.send(plain(account.user, account.password) + b"\r\nLOGOUT\r\n")
        client.rest()
    line = log.wait_for(r"managesieve-login: .*: user=<(\S+)>.*, rip=(\S+), lip=\S+,.* session=<(\S+)>", mark)
    assert line[1] == account.user
    assert line[2] == SOURCE
    assert sieve_proxy.log.wait_for(rf"session {line[3]} ended: .*client={SOURCE}")


def test_a_server_that_does_not_trust_mailroute(authority: Authority, certificate: Certificate) -> None:
    """It lists no XCLIENT, so that it is told nothing, and lets the user in."""
    terms = Terms(certificate=certificate, sieve=True, trusted=())
    with Dovecot(terms, ALICE) as east:
        blocks = {"east": block(east.sieve, authority, "starttls")}
        with (
            Mailroute(listeners(), configuration(certificate, blocks), users(ALICE)) as proxy,
            RawImap("127.0.0.1", proxy.ports["plain"], SOURCE) as client,
        ):
            client.send(plain(ALICE.user, ALICE.password) + b"\r\nLOGOUT\r\n")
            assert b'\r\nOK "Logged in."\r\n' in client.rest()
        assert east.log.wait_for(r"managesieve-login: .*: user=<alice\S+>.*, rip=127\.0\.0\.1,")


def test_a_master_user_logs_in_for_the_client(
    servers: dict[str, Dovecot], authority: Authority, certificate: Certificate
) -> None:
    """The password is checked by mailroute, and the account is opened by the master user's."""
    keys = {"login": "master", "master_user": MASTER.user, "master_password_file": "master"}
    blocks = {"east": block(servers["east"].sieve, authority, "starttls", **keys)}
    files = {**users(ALICE), "master": MASTER.password, "passwd": f"{ALICE.user}:another\n"}
    listen = listeners(authenticate="file:passwd", mechanisms=["PLAIN"])
    with (
        Mailroute(listen, configuration(certificate, blocks), files) as proxy,
        connect(proxy.ports["tls"], authority, "tls") as session,
    ):
        assert command(session, plain(ALICE.user, ALICE.password)) == b'NO "Authentication failed."\r\n'
        assert command(session, plain(ALICE.user, "another")) == b'OK "Logged in."\r\n'
        assert command(session, b"LISTSCRIPTS").startswith(b"OK ")


def test_a_server_that_is_down(authority: Authority, certificate: Certificate) -> None:
    """The client is told to try later, and by which code."""
    with Dovecot(Terms(certificate=certificate, sieve=True), ALICE) as east:
        blocks = {"east": block(east.sieve, authority, "starttls")}
        with Mailroute(listeners(), configuration(certificate, blocks), users(ALICE)) as proxy:
            east.kill()
            with connect(proxy.ports["tls"], authority, "tls") as session:
                answer = command(session, plain(ALICE.user, ALICE.password))
                assert answer.startswith(b"NO (TRYLATER) ")
                assert command(session, b"NOOP") == b'OK "Done."\r\n'


def sieve_connect(
    port: int,
    authority: Authority,
    home: Path,
    account: Account,
    *words: str,
    clear: bool = False,
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """Run sieve-connect, which knows STARTTLS and no other TLS, or does without."""
    (home / "password").write_text(account.password + "\n")
    shell = 'exec 9< password; exec "$@"'
    return run(
        [
            *("sh", "-c", shell, "sh", program("sieve-connect", "sieve-connect")),
            *("--server", "localhost", "--port", str(port), "--nosrv", "-4"),
            *("--user", account.user, "--passwordfd", "9", "--authmech", "PLAIN"),
            "--clearchan" if clear else "--noclearchan",
            *("--tlscafile", str(authority.file), *words),
        ],
        home,
        check=check,
    )


@pytest.fixture(scope="module")
def wrapped(sieve_proxy: Mailroute, authority: Authority) -> Iterator[dict[str, int]]:
    """Ports by the client's security, for a client that does not know TLS from the first byte.

    In front of that listener there is a mailroute that makes TLS of what comes in the clear.
    """
    inner = {"tcp": f"tcp:127.0.0.1:{sieve_proxy.ports['tls']}", "security": "tls"}
    inner |= {"verify": "localhost", "ca": str(authority.file)}
    listen = {"outer": {"protocol": "tcp", "security": "none", "backend": "inner"}}
    with Mailroute(listen, {"backend": {"inner": inner}}) as outer:
        yield {
            "starttls": sieve_proxy.ports["starttls"],
            "none": sieve_proxy.ports["plain"],
            "tls": outer.ports["outer"],
        }


@pytest.mark.parametrize("security", ["starttls", "none", "tls"])
@ACCOUNTS
def test_sieve_connect_uploads_and_downloads(
    wrapped: dict[str, int], authority: Authority, tmp_path: Path, account: Account, security: str
) -> None:
    """A script that it uploads is listed and active, and comes back as it was."""
    script = tmp_path / "filter.sieve"
    script.write_bytes(b'require "fileinto";\r\nfileinto "INBOX";\r\n# \xc3\xa9\r\n')

    def say(*words: str) -> bytes:
        port, clear = wrapped[security], security != "starttls"
        return sieve_connect(port, authority, tmp_path, account, *words, clear=clear).stdout

    say("--localsieve", str(script), "--remotesieve", "filter", "--upload")
    say("--remotesieve", "filter", "--activate")
    assert re.search(rb'"filter" ACTIVE', say("--list"))
    back = tmp_path / "back.sieve"
    say("--remotesieve", "filter", "--localsieve", str(back), "--download")
    assert back.read_bytes().split() == script.read_bytes().split()
    say("--deactivate")
    say("--remotesieve", "filter", "--delete")
    assert b"filter" not in say("--list")


def test_sieve_connect_with_a_wrong_password_fails(
    sieve_proxy: Mailroute, authority: Authority, tmp_path: Path
) -> None:
    """It says that it got no further than the login, and ends."""
    wrong = Account(ALICE.user, "not that", ALICE.backend)
    port = sieve_proxy.ports["starttls"]
    done = sieve_connect(port, authority, tmp_path, wrong, "--list", check=False)
    assert done.returncode
    assert b"Authentication refused by server" in done.stdout + done.stderr
