"""POP3 as real clients and real servers speak it, through the proxy."""

from __future__ import annotations

import base64
import hashlib
import poplib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.accounts import ALICE, BOB, Account, message
from servers.certificates import Authority, Certificate
from servers.commands import run
from servers.dovecot import Dovecot, Terms
from servers.processes import PATIENCE
from servers.programs import program
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import backend, configuration, users

pytestmark = pytest.mark.integration

SOURCE = "127.0.0.77"
"""An address of this machine that is nobody's unless somebody binds a socket to it."""

MECHANISMS = ["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"]
LARGE = Account("large@east.example.org", "a secret", "east")
SPACED = Account("spaced@east.example.org", " two words ", "east")
LARGE_MESSAGE = b"Subject: large\r\n\r\n" + b"".join(
    b"%08d %s\r\n" % (number, b"x" * 66) for number in range(50 * 1000 * 1000 // 77)
)
ACCOUNTS = pytest.mark.parametrize("account", [ALICE, BOB], ids=lambda account: account.backend)
SECURITY = pytest.mark.parametrize("security", ["pop3", "pop3s"])


@pytest.fixture(scope="module")
def servers(certificate: Certificate) -> Iterator[dict[str, Dovecot]]:
    """Two servers with POP3; west takes a password by no other mechanism than LOGIN."""
    east_terms = Terms(
        certificate=certificate,
        pop3=True,
        tokens=b"k" * 32,
        mechanisms=tuple(name.lower() for name in MECHANISMS),
    )
    west_terms = Terms(certificate=certificate, pop3=True, mechanisms=("login",))
    with Dovecot(east_terms, ALICE, SPACED, LARGE) as east, Dovecot(west_terms, BOB) as west:
        for server, account in ((east, ALICE), (east, SPACED), (west, BOB)):
            server.deliver(account, message(f"for {account.user}"))
        east.deliver(LARGE, LARGE_MESSAGE)
        yield {"east": east, "west": west}


@pytest.fixture(scope="module", params=["starttls", "tls"])
def pop3_proxy(
    request: pytest.FixtureRequest,
    servers: dict[str, Dovecot],
    authority: Authority,
    certificate: Certificate,
) -> Iterator[Mailroute]:
    """The usual proxy for POP3, with TLS on the way to the backends on request or from the first byte."""
    blocks = {}
    for name, server in servers.items():
        port = server.pop3 if request.param == "starttls" else server.pop3s
        block = backend(server, authority, security=request.param, pop3=f"tcp:127.0.0.1:{port}")
        del block["imap"]
        blocks[name] = block
    listen = {
        "pop3": {"protocol": "pop3", "security": "starttls", "mechanisms": MECHANISMS},
        "pop3s": {"protocol": "pop3", "security": "tls", "mechanisms": MECHANISMS},
        "plain": {"protocol": "pop3", "security": "none", "mechanisms": MECHANISMS},
    }
    with Mailroute(listen, configuration(certificate, blocks), users(ALICE, BOB, SPACED, LARGE)) as proxy:
        yield proxy


def connect(proxy: Mailroute, authority: Authority, security: str = "pop3s") -> poplib.POP3:
    """Connect with TLS, by STLS or from the first byte."""
    context, port = authority.context(), proxy.ports[security]
    if security == "pop3s":
        return poplib.POP3_SSL("localhost", port, timeout=PATIENCE, context=context)
    session = poplib.POP3("localhost", port, timeout=PATIENCE)
    assert "STLS" in session.capa()
    assert "SASL" not in session.capa()
    session.stls(context)
    return session


def subject(session: poplib.POP3) -> str:
    """Return the subject of the first message."""
    lines = session.retr(1)[1]
    return next(line for line in lines if line.startswith(b"Subject: "))[9:].decode()


@SECURITY
@pytest.mark.parametrize("account", [ALICE, BOB, SPACED], ids=lambda account: account.user)
def test_poplib_reads_its_mail(
    pop3_proxy: Mailroute, authority: Authority, security: str, account: Account
) -> None:
    """USER and PASS open the account at its own backend, whichever way that takes a password."""
    session = connect(pop3_proxy, authority, security)
    assert "USER" in session.capa()
    session.user(account.user)
    assert session.pass_(account.password) == b"+OK Logged in."
    assert session.noop() == b"+OK"
    assert session.stat()[0] == 1
    assert subject(session) == f"for {account.user}"
    session.quit()


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_logs_in(
    pop3_proxy: Mailroute, authority: Authority, servers: dict[str, Dovecot], mechanism: str, initial: bool
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
    session = connect(pop3_proxy, authority)
    if initial:
        session._putcmd(f"AUTH {mechanism} {encoded.pop(0)}")
    else:
        session._putcmd(f"AUTH {mechanism}")
    for text in encoded:
        assert session._getline()[0].startswith(b"+ ")
        session._putcmd(text)
    assert session._getresp() == b"+OK Logged in."
    assert subject(session) == f"for {ALICE.user}"
    session.quit()


@ACCOUNTS
def test_a_wrong_password_and_an_unknown_user_are_told_alike(
    pop3_proxy: Mailroute, authority: Authority, account: Account
) -> None:
    """Both are told [AUTH] in the same words; the client stays, and the right password is taken."""
    session = connect(pop3_proxy, authority)
    for user in (account.user, f"nobody@{account.backend}.example.org", "nobody@nowhere.example.org"):
        session.user(user)
        with pytest.raises(poplib.error_proto, match=r"-ERR \[AUTH\] Authentication failed\."):
            session.pass_("not that")
    session.user(account.user)
    session.pass_(account.password)
    assert session.stat()[0] == 1
    session.quit()


@ACCOUNTS
def test_a_session_in_one_segment(pop3_proxy: Mailroute, account: Account) -> None:
    """A client that sends USER, PASS, STAT and QUIT at once gets all of it answered, in order."""
    with socket.create_connection(("127.0.0.1", pop3_proxy.ports["plain"]), timeout=PATIENCE) as client:
        client.sendall(f"USER {account.user}\r\nPASS {account.password}\r\nSTAT\r\nQUIT\r\n".encode())
        answers = client.makefile("rb").read().splitlines()
    assert answers[:3] == [b"+OK mailroute ready.", b"+OK Send the password.", b"+OK Logged in."]
    assert answers[3].startswith(b"+OK 1 ")
    assert answers[4].startswith(b"+OK")
    assert len(answers) == 5


def test_nothing_is_taken_from_before_stls(pop3_proxy: Mailroute) -> None:
    """A command in the clear behind STLS ends the connection before a handshake."""
    with RawImap("127.0.0.1", pop3_proxy.ports["pop3"]) as client:
        client.send(b"STLS\r\nUSER bob\r\n")
        assert client.rest().splitlines()[1:] == [
            b"-ERR Nothing may follow STLS.",
            b"-ERR Nothing may follow STLS before TLS is on.",
        ]


def test_another_protocols_client_is_refused(pop3_proxy: Mailroute, authority: Authority) -> None:
    """A client that asks by ALPN for HTTP gets no TLS; one that asks for POP3 gets it."""
    for name, expected in (("pop3", "pop3"), ("http/1.1", None)):
        context = authority.context()
        context.set_alpn_protocols([name])
        address = ("127.0.0.1", pop3_proxy.ports["pop3s"])
        with socket.create_connection(address, timeout=PATIENCE) as client:
            if expected is None:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    context.wrap_socket(client, server_hostname="localhost")
            else:
                with context.wrap_socket(client, server_hostname="localhost") as session:
                    assert session.selected_alpn_protocol() == expected


@ACCOUNTS
def test_the_backends_log_has_the_clients_address(
    pop3_proxy: Mailroute, servers: dict[str, Dovecot], account: Account
) -> None:
    """By XCLIENT the server learns where the client came from, and what mailroute calls the session."""
    log = servers[account.backend].log
    mark = log.mark()
    with RawImap("127.0.0.1", pop3_proxy.ports["plain"], SOURCE) as client:
        client.send(f"USER {account.user}\r\nPASS {account.password}\r\nQUIT\r\n".encode())
        client.rest()
    line = log.wait_for(r"pop3-login: .*: user=<(\S+)>.*, rip=(\S+), lip=\S+,.* session=<(\S+)>", mark)
    assert line[1] == account.user
    assert line[2] == SOURCE
    assert pop3_proxy.log.wait_for(rf"session {line[3]} ended: .*client={SOURCE}")


@SECURITY
@pytest.mark.parametrize("option", ["AUTH=PLAIN", "AUTH=LOGIN", ""])
def test_curl_fetches_a_message(
    pop3_proxy: Mailroute, authority: Authority, tmp_path: Path, security: str, option: str
) -> None:
    """With every way that curl has to log in, it fetches the account's message."""
    done = run(
        [
            program("curl", "curl"),
            *("--silent", "--show-error", "--ssl-reqd", "--cacert", authority.file),
            *("--user", f"{ALICE.user}:{ALICE.password}"),
            *(["--login-options", option] if option else []),
            f"{security}://localhost:{pop3_proxy.ports[security]}/1",
        ],
        tmp_path,
    )
    assert f"Subject: for {ALICE.user}".encode() in done.stdout


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_curl_fetches_a_message_with_a_token(
    pop3_proxy: Mailroute,
    servers: dict[str, Dovecot],
    authority: Authority,
    tmp_path: Path,
    mechanism: str,
    initial: bool,
) -> None:
    """A token gets in, with an initial response or without; with a wrong one curl is denied (status 67)."""

    def fetch(token: str) -> subprocess.CompletedProcess[bytes]:
        command = [
            program("curl", "curl"),
            *("--silent", "--show-error", "--cacert", authority.file, *(["--sasl-ir"] if initial else [])),
            *("--user", ALICE.user, "--oauth2-bearer", token, "--login-options", f"AUTH={mechanism}"),
            f"pop3s://localhost:{pop3_proxy.ports['pop3s']}/1",
        ]
        return run(command, tmp_path, check=False)

    assert f"Subject: for {ALICE.user}".encode() in fetch(servers["east"].token(ALICE)).stdout
    assert fetch("nonsense").returncode == 67


def test_curl_with_a_wrong_password_fails(
    pop3_proxy: Mailroute, authority: Authority, tmp_path: Path
) -> None:
    """It says that it was denied (its status 67), and ends."""
    done = run(
        [
            program("curl", "curl"),
            *("--silent", "--show-error", "--cacert", authority.file),
            *("--user", f"{ALICE.user}:wrong", f"pop3s://localhost:{pop3_proxy.ports['pop3s']}/1"),
        ],
        tmp_path,
        check=False,
    )
    assert done.returncode == 67, done.stderr


# --- getmail and fetchmail ------------------------------------------------------

GETMAIL = """\
[retriever]
type = SimplePOP3{ssl}Retriever
server = localhost
port = {port}
username = {account.user}
password = {account.password}
{more}

[destination]
# It delivers into no Maildir as root.
type = MDA_external
path = /bin/sh
arguments = ("-c", "cat >> {home}/delivered")
allow_root_commands = true

[options]
delete = false
read_all = true
delivered_to = false
received = false
"""


@pytest.mark.parametrize("security", ["plain", "pop3s"])
@ACCOUNTS
def test_getmail_fetches_the_mail(
    pop3_proxy: Mailroute, authority: Authority, account: Account, security: str, tmp_path: Path
) -> None:
    """What getmail delivers is the account's whole message."""
    tls = security == "pop3s"
    (tmp_path / "getmailrc").write_text(
        GETMAIL.format(
            ssl="SSL" if tls else "",
            port=pop3_proxy.ports[security],
            account=account,
            home=tmp_path,
            more=f"ca_certs = {authority.file}" if tls else "",
        )
    )
    run([program("getmail", "getmail6"), f"--getmaildir={tmp_path}", "--rcfile=getmailrc"], tmp_path)
    delivered = (tmp_path / "delivered").read_bytes().replace(b"\r\n", b"\n")
    # It puts a Return-Path in front.
    assert delivered.endswith(b"\n" + message(f"for {account.user}").replace(b"\r\n", b"\n"))


@SECURITY
@ACCOUNTS
def test_fetchmail_fetches_the_mail(
    pop3_proxy: Mailroute, authority: Authority, account: Account, security: str, tmp_path: Path
) -> None:
    """What fetchmail delivers is the account's message, by STLS and with TLS from the first byte."""
    delivered, settings = tmp_path / "delivered", tmp_path / "fetchmailrc"
    tls = "ssl" if security == "pop3s" else "sslproto TLS1.2+"
    settings.write_text(
        f"set invisible\nset no bouncemail\n"
        f"poll localhost service {pop3_proxy.ports[security]} protocol pop3 auth password\n"
        f'  user "{account.user}" password "{account.password}" {tls} sslcertck\n'
        f'  sslcertfile "{authority.file}" keep fetchall no rewrite mda "cat >> {delivered}"\n'
    )
    settings.chmod(0o600)
    binary = program("fetchmail", "fetchmail")
    run([binary, "--fetchmailrc", settings, "--pidfile", tmp_path / "pid", "--nosyslog"], tmp_path)
    assert f"Subject: for {account.user}\n" in delivered.read_text()


# --- a large message ------------------------------------------------------------


@SECURITY
def test_a_large_message_comes_whole(pop3_proxy: Mailroute, authority: Authority, security: str) -> None:
    """50 MB arrive as they were delivered, by their hash."""
    session = connect(pop3_proxy, authority, security)
    session.user(LARGE.user)
    session.pass_(LARGE.password)
    got = hashlib.sha256()
    for line in session.retr(1)[1]:
        got.update(line + b"\r\n")
    assert got.digest() == hashlib.sha256(LARGE_MESSAGE).digest()
    session.quit()
