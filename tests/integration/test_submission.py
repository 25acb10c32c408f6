"""Mail submitted through mailroute to a real Dovecot, which relays it, and to a real Postfix."""

from __future__ import annotations

import base64
import contextlib
import email
import hashlib
import smtplib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from aiosmtpd.controller import Controller
from attrs import evolve, frozen
from servers.accounts import ALICE, BOB, Account, message
from servers.certificates import Authority, Certificate
from servers.commands import run
from servers.dovecot import Dovecot, Terms
from servers.postfix import Postfix, asking
from servers.processes import PATIENCE, Log, free_port, wait_until
from servers.programs import node_package, program
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import configuration, users

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent

SOURCE = "127.0.0.77"
"""An address of this machine that is nobody's unless somebody binds a socket to it."""

MASTER = Account("root", "master's own", "east")
MECHANISMS = ["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"]
ACCOUNTS = pytest.mark.parametrize("account", [ALICE, BOB], ids=lambda account: account.backend)
SECURITY = pytest.mark.parametrize("security", ["starttls", "tls"])


class Sink:
    """A mail server that keeps what it gets: what the Dovecot passes on."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        # Without a bound of its own: the messages are those of the tests.
        self._controller = Controller(self, "127.0.0.1", free_port(), data_size_limit=None)
        self.port: int = self._controller.port

    def __enter__(self) -> Self:
        self._controller.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._controller.stop()

    async def handle_DATA(self, _: object, __: object, envelope: Any) -> str:  # noqa: N802
        self.messages.append(envelope.content)
        return "250 2.0.0 taken"


@frozen
class Server:
    """A backend: its ports, its log, how that tells who has logged in from where, and what it has taken."""

    starttls: int
    tls: int
    behind_proxy: int
    log: Log
    login: str
    taken: Callable[[], list[bytes]]
    token: Callable[[Account], str] | None = None


@pytest.fixture(scope="module")
def servers(certificate: Certificate) -> Iterator[dict[str, Server]]:
    """East is a Dovecot that relays; west a Postfix that asks a Dovecot for passwords and delivers there."""
    words = tuple(name.lower() for name in MECHANISMS)
    west_terms = Terms(certificate=certificate, lmtp=True, mechanisms=("plain", "login"))
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Sink())
        east_terms = Terms(certificate=certificate, relay=sink.port, tokens=b"k" * 32, mechanisms=words)
        east = stack.enter_context(Dovecot(evolve(east_terms, master=MASTER), ALICE))
        mailboxes = stack.enter_context(Dovecot(west_terms, BOB))
        settings = {
            **asking(mailboxes.sasl),
            "smtpd_tls_auth_only": "yes",
            "smtpd_relay_restrictions": "permit_sasl_authenticated, reject",
            "smtpd_authorized_xclient_hosts": "127.0.0.1",
            "default_transport": f"lmtp:inet:127.0.0.1:{mailboxes.lmtp}",
            "message_size_limit": "100000000",
        }
        west = stack.enter_context(Postfix(certificate, **settings))
        yield {
            "east": Server(
                east.submission,
                east.submissions,
                east.submission_behind_proxy,
                east.log,
                r"submission-login: .*(Login|Logged in): user=<{user}>.*, rip={address},",
                lambda: sink.messages,
                east.token,
            ),
            "west": Server(
                west.port,
                west.tls_port,
                west.port_behind_proxy,
                west.log,
                r"client=unknown\[{address}\].*sasl_username={user}",
                lambda: mailboxes.delivered(BOB),
            ),
        }


def blocks(servers: dict[str, Server], authority: Authority, **keys: object) -> dict[str, object]:
    """Return the ``[backend.…]`` blocks."""
    security = keys.get("security", "starttls")
    behind = str(keys.get("identity", "")).startswith("proxy-")
    tls = {"verify": "localhost", "ca": str(authority.file)}
    found = {}
    for name, server in servers.items():
        port = server.tls if security == "tls" else server.behind_proxy if behind else server.starttls
        found[name] = {"submission": f"tcp:127.0.0.1:{port}", "security": security, **tls, **keys}
    return found


def listen() -> dict[str, dict[str, object]]:
    """Return the listeners: STARTTLS, TLS from the first byte, and none."""
    usual = {"protocol": "submission", "mechanisms": MECHANISMS, "host_name": "mail.example.com"}
    usual["capabilities"] = ["8BITMIME", "SIZE 100000000", "CHUNKING"]
    return {name: {**usual, "security": name} for name in ("starttls", "tls", "none")}


@pytest.fixture(scope="module", params=["starttls", "tls"])
def submission(
    request: pytest.FixtureRequest,
    servers: dict[str, Server],
    authority: Authority,
    certificate: Certificate,
) -> Iterator[Mailroute]:
    """A proxy with TLS on the way to the backends on request or from the first byte."""
    config = configuration(certificate, blocks(servers, authority, security=request.param))
    with Mailroute(listen(), config, users(ALICE, BOB)) as proxy:
        yield proxy


def connect(proxy: Mailroute, authority: Authority, security: str = "tls") -> smtplib.SMTP:
    """Connect with TLS, by STARTTLS or from the first byte."""
    context, port = authority.context(), proxy.ports[security]
    if security == "tls":
        return smtplib.SMTP_SSL("localhost", port, timeout=PATIENCE, context=context)
    session = smtplib.SMTP("localhost", port, timeout=PATIENCE)
    session.ehlo()
    assert session.has_extn("starttls")
    assert not session.has_extn("auth")
    session.starttls(context=context)
    return session


def body(text: bytes) -> bytes:
    """Return what stands behind the head."""
    return text.replace(b"\r\n", b"\n").partition(b"\n\n")[2]


def arrived(server: Server, subject: str) -> bytes:
    """Return the message with that subject, once the server has passed it on."""

    def find() -> bytes | None:
        for text in server.taken():
            if email.message_from_bytes(text[:65536])["Subject"] == subject:
                return text
        return None

    return wait_until(f"the message {subject!r}", find)


@SECURITY
@ACCOUNTS
def test_smtplib_sends_a_message(
    submission: Mailroute, servers: dict[str, Server], authority: Authority, account: Account, security: str
) -> None:
    """After STARTTLS or in TLS from the first byte, a user's message goes to that user's own server."""
    subject = f"smtplib {security} {submission.ports['tls']}"
    text = message(subject, "Hello.\n.\n..dots\n")
    with connect(submission, authority, security) as session:
        session.ehlo()
        assert session.esmtp_features["size"] == "100000000"
        session.login(account.user, account.password)
        assert session.sendmail(account.user, [BOB.user], text) == {}
    assert body(arrived(servers[account.backend], subject)) == body(text)


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize(
    ("account", "mechanism"), [(ALICE, name) for name in MECHANISMS] + [(BOB, "PLAIN"), (BOB, "LOGIN")]
)
def test_every_mechanism_logs_in(
    submission: Mailroute,
    servers: dict[str, Server],
    authority: Authority,
    account: Account,
    mechanism: str,
    initial: bool,
) -> None:
    """Passwords and tokens get through, with and without an initial response."""
    token = servers["east"].token(account)
    messages = {
        "PLAIN": [f"\0{account.user}\0{account.password}"],
        "LOGIN": [account.user, account.password],
        "XOAUTH2": [f"user={account.user}\1auth=Bearer {token}\1\1"],
        "OAUTHBEARER": [f"n,a={account.user},\1auth=Bearer {token}\1\1"],
    }
    encoded = [base64.b64encode(text.encode()).decode() for text in messages[mechanism]]
    with connect(submission, authority) as session:
        session.ehlo()
        line = f"AUTH {mechanism} {encoded.pop(0)}" if initial else f"AUTH {mechanism}"
        code, _ = session.docmd(line)
        for text in encoded:
            assert code == 334
            code, _ = session.docmd(text)
        assert code == 235
        assert session.mail(account.user)[0] == 250


@ACCOUNTS
def test_a_wrong_password_and_an_unknown_user_are_told_alike(
    submission: Mailroute, authority: Authority, account: Account
) -> None:
    """Both are told 535 in the same words; the client stays, and the right password is taken."""
    with connect(submission, authority) as session:
        for user in (account.user, f"nobody@{account.backend}.example.org", "nobody@nowhere.example.org"):
            session.ehlo()
            with pytest.raises(smtplib.SMTPAuthenticationError) as error:
                session.login(user, "not that")
            assert error.value.args == (535, b"5.7.8 Authentication failed")
        assert session.docmd("MAIL FROM:<a@b.example>")[0] == 530
        session.login(account.user, account.password)
        assert session.mail(account.user)[0] == 250


def test_nothing_but_tls_before_tls(submission: Mailroute) -> None:
    """In the clear mail and passwords are refused, and a command behind STARTTLS ends the connection."""
    with smtplib.SMTP("localhost", submission.ports["starttls"], timeout=PATIENCE) as session:
        session.ehlo()
        assert session.docmd("MAIL FROM:<a@b.example>") == (
            530,
            b"5.7.0 Must issue a STARTTLS command first",
        )
        assert session.docmd("AUTH PLAIN AGEAYg==")[0] == 538
    with RawImap("127.0.0.1", submission.ports["starttls"]) as client:
        client.send(b"EHLO me\r\nSTARTTLS\r\nMAIL FROM:<a@b.example>\r\n")
        assert client.rest().splitlines()[-1] == b"501 5.5.2 Nothing may follow STARTTLS before TLS is on"


@ACCOUNTS
def test_a_session_in_one_segment(
    submission: Mailroute, servers: dict[str, Server], account: Account
) -> None:
    """What stands behind AUTH in the same segment is the first that the backend gets, and all of it."""
    plain = base64.b64encode(f"\0{account.user}\0{account.password}".encode()).decode()
    subject = f"one segment {submission.ports['tls']}"
    commands = [
        "EHLO me.example",
        f"AUTH PLAIN {plain}",
        f"MAIL FROM:<{account.user}>",
        f"RCPT TO:<{BOB.user}>",
        "DATA",
    ]
    with socket.create_connection(("127.0.0.1", submission.ports["none"]), timeout=PATIENCE) as client:
        client.sendall("".join(f"{line}\r\n" for line in commands).encode())
        answers = client.makefile("rb")
        codes = []
        while codes[-1:] != [b"354"]:
            line = answers.readline()
            assert line, codes
            if line[3:4] == b" ":
                codes.append(line[:3])
        assert codes == [b"220", b"250", b"235", b"250", b"250", b"354"]
        client.sendall(message(subject) + b".\r\nQUIT\r\n")
        assert [line[:3] for line in answers] == [b"250", b"221"]
    arrived(servers[account.backend], subject)


@ACCOUNTS
def test_chunks(
    submission: Mailroute, servers: dict[str, Server], authority: Authority, account: Account
) -> None:
    """A message that comes by BDAT goes through as it is."""
    subject = f"chunks {submission.ports['tls']}"
    text = message(subject, "Hello.\n.\n..\nend", number=4)
    with connect(submission, authority) as session:
        session.login(account.user, account.password)
        session.mail(account.user)
        assert session.rcpt(BOB.user)[0] == 250
        for piece, last in ((text[:50], b""), (text[50:], b" LAST")):
            session.send(b"BDAT %d%s\r\n" % (len(piece), last) + piece)
            assert session.getreply()[0] == 250
    assert body(arrived(servers[account.backend], subject)) == body(text)


@ACCOUNTS
def test_a_large_message_arrives_whole(
    submission: Mailroute, servers: dict[str, Server], authority: Authority, account: Account
) -> None:
    """50 MB arrive byte for byte, and mailroute grows by a few megabytes at most."""
    line = bytes(b".abcdefgh \xe9\xff"[number * number % 12] for number in range(996)) + b"\r\n"
    lines = [line[n % 900 :] for n in range(95000)]
    subject = f"large {submission.ports['tls']}"
    text = message(subject).replace(b"Content-Type", b"X-Was") + b"".join(lines)
    assert len(text) > 50_000_000
    before = submission.memory()
    with connect(submission, authority) as session:
        session.login(account.user, account.password)
        assert session.sendmail(account.user, [BOB.user], text, ["BODY=8BITMIME"]) == {}
    assert submission.memory() - before < 10_000_000
    found = arrived(servers[account.backend], subject)
    assert hashlib.sha256(body(found)).hexdigest() == hashlib.sha256(body(text)).hexdigest()


@pytest.mark.parametrize(
    ("identity", "warm"), [("native", 0), ("native", 2), ("proxy-v1", 0), ("proxy-v2", 0)]
)
@ACCOUNTS
def test_the_backends_log_has_the_clients_address(
    servers: dict[str, Server],
    authority: Authority,
    certificate: Certificate,
    account: Account,
    identity: str,
    warm: int,
) -> None:
    """By XCLIENT, over a connection that was kept ready too, or by PROXY header, the server learns it."""
    server = servers[account.backend]
    config = configuration(certificate, blocks(servers, authority, identity=identity, warm=warm))
    mark = server.log.mark()
    with Mailroute(listen(), config, users(ALICE, BOB)) as proxy:
        ready = len(proxy.ports) + warm * len(servers)
        wait_until("the connections kept ready", lambda: proxy.sockets() == ready)
        port = proxy.ports["none"]
        with smtplib.SMTP("127.0.0.1", port, source_address=(SOURCE, 0)) as session:
            session.login(account.user, account.password)
            session.sendmail(account.user, [BOB.user], message(f"from afar by {identity}"))
    server.log.wait_for(server.login.format(user=account.user, address=SOURCE.replace(".", r"\.")), mark)


def test_a_master_logs_in_for_the_user(
    servers: dict[str, Server], authority: Authority, certificate: Certificate
) -> None:
    """Where mailroute checks passwords, it may log in as a master: the server's log has the user's name."""
    east = servers["east"]
    master = {"login": "master", "master_user": MASTER.user, "master_password_file": "master"}
    config = configuration(certificate, blocks({"east": east}, authority, **master))
    files = {"passwd": f"{ALICE.user}:checked here", "master": MASTER.password, **users(ALICE)}
    listeners = {"none": {**listen()["none"], "mechanisms": ["PLAIN"], "authenticate": "file:passwd"}}
    mark = east.log.mark()
    with (
        Mailroute(listeners, config, files) as proxy,
        smtplib.SMTP("127.0.0.1", proxy.ports["none"], source_address=(SOURCE, 0)) as session,
    ):
        session.login(ALICE.user, "checked here")
        assert session.mail(ALICE.user)[0] == 250
    east.log.wait_for(east.login.format(user=ALICE.user, address=SOURCE.replace(".", r"\.")), mark)


@ACCOUNTS
def test_nobody_becomes_another_after_the_login(
    servers: dict[str, Server], authority: Authority, certificate: Certificate, account: Account
) -> None:
    """A client whose address the backend has been told cannot give itself another name by XCLIENT."""
    config = configuration(certificate, blocks(servers, authority))
    with (
        Mailroute(listen(), config, users(ALICE, BOB)) as proxy,
        smtplib.SMTP("127.0.0.1", proxy.ports["none"], source_address=(SOURCE, 0)) as session,
    ):
        session.ehlo()
        assert session.docmd("XCLIENT ADDR=192.0.2.1 LOGIN=boss@example.com")[0] == 502
        session.login(account.user, account.password)
        assert session.docmd("XCLIENT ADDR=192.0.2.1 LOGIN=boss@example.com")[0] in (502, 550)


def test_a_backend_may_be_told_who_has_logged_in(
    servers: dict[str, Server], authority: Authority, certificate: Certificate
) -> None:
    """Where mailroute checks passwords and does not log in, Postfix takes its word by XCLIENT's LOGIN."""
    west = servers["west"]
    config = configuration(certificate, blocks({"west": west}, authority, login="none"))
    files = {"passwd": f"{BOB.user}:{BOB.password}\n", **users(BOB)}
    listeners = {"none": {**listen()["none"], "mechanisms": ["PLAIN"], "authenticate": "file:passwd"}}
    mark = west.log.mark()
    with (
        Mailroute(listeners, config, files) as proxy,
        smtplib.SMTP("127.0.0.1", proxy.ports["none"], source_address=(SOURCE, 0)) as session,
    ):
        session.ehlo()
        with pytest.raises(smtplib.SMTPAuthenticationError):
            session.login(BOB.user, "wrong")
        session.login(BOB.user, BOB.password)
        session.sendmail(BOB.user, [BOB.user], message("on mailroute's word"))
    west.log.wait_for(west.login.format(user=BOB.user, address=SOURCE.replace(".", r"\.")), mark)


def test_the_clients_own_name_arrives(
    submission: Mailroute, servers: dict[str, Server], authority: Authority
) -> None:
    """What the client calls itself is what the backend writes into the message's head."""
    subject = f"named {submission.ports['tls']}"
    with connect(submission, authority) as session:
        session.ehlo("its-own-name.example")
        session.login(BOB.user, BOB.password)
        session.sendmail(BOB.user, [BOB.user], message(subject))
    head = arrived(servers["west"], subject).partition(b"\n\n")[0]
    assert b"its-own-name.example" in head


@SECURITY
@pytest.mark.parametrize("option", ["AUTH=PLAIN", "AUTH=LOGIN", ""])
@ACCOUNTS
def test_curl_sends_a_message(
    submission: Mailroute,
    servers: dict[str, Server],
    authority: Authority,
    tmp_path: Path,
    account: Account,
    security: str,
    option: str,
) -> None:
    """With every way that curl has to log in, its message arrives."""
    subject = f"curl {security} {option} {submission.ports['tls']}"
    letter = tmp_path / "letter"
    letter.write_bytes(message(subject))
    scheme = "smtps" if security == "tls" else "smtp"
    run(
        [
            program("curl", "curl"),
            *("--silent", "--show-error", "--ssl-reqd", "--cacert", authority.file),
            *("--user", f"{account.user}:{account.password}"),
            *(["--login-options", option] if option else []),
            *("--mail-from", account.user, "--mail-rcpt", BOB.user, "--upload-file", letter),
            f"{scheme}://localhost:{submission.ports[security]}",
        ],
        tmp_path,
    )
    arrived(servers[account.backend], subject)


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_curl_sends_a_message_with_a_token(
    submission: Mailroute,
    servers: dict[str, Server],
    authority: Authority,
    tmp_path: Path,
    mechanism: str,
    initial: bool,
) -> None:
    """A token gets in, with an initial response or without; with a wrong one curl is denied (status 67)."""
    subject = f"curl {mechanism} {initial} {submission.ports['tls']}"
    letter = tmp_path / "letter"
    letter.write_bytes(message(subject))

    def send(token: str) -> int:
        command = [
            program("curl", "curl"),
            *("--silent", "--show-error", "--cacert", authority.file, *(["--sasl-ir"] if initial else [])),
            *("--user", ALICE.user, "--oauth2-bearer", token, "--login-options", f"AUTH={mechanism}"),
            *("--mail-from", ALICE.user, "--mail-rcpt", BOB.user, "--upload-file", letter),
            f"smtps://localhost:{submission.ports['tls']}",
        ]
        return run(command, tmp_path, check=False).returncode

    assert send(servers["east"].token(ALICE)) == 0
    arrived(servers["east"], subject)
    assert send("nonsense") == 67


def test_curl_with_a_wrong_password_fails(
    submission: Mailroute, authority: Authority, tmp_path: Path
) -> None:
    """It says that it was denied (its status 67), and ends."""
    done = run(
        [
            program("curl", "curl"),
            *("--silent", "--show-error", "--cacert", authority.file),
            *("--user", f"{ALICE.user}:wrong", "--mail-from", ALICE.user, "--mail-rcpt", BOB.user),
            *("--upload-file", "/dev/null", f"smtps://localhost:{submission.ports['tls']}"),
        ],
        tmp_path,
        check=False,
    )
    assert done.returncode == 67, done.stderr


@SECURITY
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@ACCOUNTS
def test_swaks_sends_a_message(
    submission: Mailroute,
    servers: dict[str, Server],
    authority: Authority,
    tmp_path: Path,
    account: Account,
    security: str,
    mechanism: str,
) -> None:
    """The tool that operators test with gets its message through."""
    subject = f"swaks {security} {mechanism} {submission.ports['tls']}"
    run(
        [
            program("swaks", "swaks"),
            *("--server", f"localhost:{submission.ports[security]}"),
            "--tls-on-connect" if security == "tls" else "--tls",
            *("--tls-verify", "--tls-ca-path", authority.file),
            *("--auth", mechanism, "--auth-user", account.user, "--auth-password", account.password),
            *("--from", account.user, "--to", BOB.user, "--header", f"Subject: {subject}"),
        ],
        tmp_path,
    )
    arrived(servers[account.backend], subject)


def test_swaks_pipelines(
    submission: Mailroute, servers: dict[str, Server], authority: Authority, tmp_path: Path
) -> None:
    """With PIPELINING, MAIL and RCPT go out together, and the message arrives."""
    subject = f"pipelined {submission.ports['tls']}"
    run(
        [
            program("swaks", "swaks"),
            *("--server", f"localhost:{submission.ports['tls']}", "--tls-on-connect", "--pipeline"),
            *("--tls-verify", "--tls-ca-path", authority.file),
            *("--auth", "PLAIN", "--auth-user", BOB.user, "--auth-password", BOB.password),
            *("--from", BOB.user, "--to", BOB.user, "--header", f"Subject: {subject}"),
        ],
        tmp_path,
    )
    arrived(servers["west"], subject)


@SECURITY
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@ACCOUNTS
def test_nodemailer_sends_a_message(
    submission: Mailroute,
    servers: dict[str, Server],
    authority: Authority,
    tmp_path: Path,
    account: Account,
    security: str,
    mechanism: str,
) -> None:
    """Node's library sends a message, and is told what the backend says; a wrong password is told as such."""
    modules = node_package("nodemailer")

    def send(password: str) -> Any:
        command = [
            *(program("node", "nodejs"), HERE / "node" / "send.js"),
            *(str(submission.ports[security]), security, authority.file),
            *(account.user, password, mechanism, BOB.user),
        ]
        return run(command, tmp_path, check=False, environment={"NODE_PATH": str(modules)})

    before = len(servers[account.backend].taken())
    done = send(account.password)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"250 2.0.0 ")
    wait_until("the message", lambda: len(servers[account.backend].taken()) > before)
    assert send("wrong").stderr.startswith(b"535 535 5.7.8 Authentication failed")
