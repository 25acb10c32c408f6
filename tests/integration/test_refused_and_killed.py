"""What clients of POP3, submission and SMTP are told where real servers refuse, fail, or are killed."""

from __future__ import annotations

import contextlib
import imaplib
import os
import poplib
import signal
import smtplib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.accounts import ALICE, BOB, Account, message
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.postfix import Postfix, asking
from servers.processes import PATIENCE, free_port, group_is_gone, wait_until
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import configuration, users

pytestmark = pytest.mark.integration

DOWN = Account("down@example.com", "a secret", "down")
NOWHERE = Account("nowhere@example.com", "a secret", "bare")
UNTRUSTED = Account("untrusted@example.com", "a secret", "other")
BUSY = Account("busy@example.com", "a secret", "east")
UNREACHED = "The mail server cannot be reached. Try again later."
MISTAKEN = "454 4.3.5 The mail service is not set up correctly, tell its operator"
LATER = "454 4.7.0 The mail server cannot be reached, try again later"


# --- refused --------------------------------------------------------------------


@pytest.fixture
def dovecot(certificate: Certificate) -> Iterator[Dovecot]:
    """A server of POP3 and submission at which a user may be once."""
    terms = Terms(certificate=certificate, pop3=True, relay=free_port(), lmtp=True, per_user_and_address=1)
    with Dovecot(terms, ALICE, BOB) as server:
        server.deliver(ALICE, message("for alice"))
        yield server


def cannot_check(server: Dovecot) -> None:
    """Take away its file of passwords, and wait until it has noticed: no password is right or wrong then."""
    path = server.folder / "users"
    path.write_text(path.read_text() + "\n")
    path.chmod(0)

    def noticed() -> bool:
        with imaplib.IMAP4(server.host, server.imap, PATIENCE) as session:
            try:
                session.login(BOB.user, "not that")
            except imaplib.IMAP4.error as error:
                return "[UNAVAILABLE]" in str(error)
        return False

    wait_until("Dovecot's notice", noticed)


def backends(authority: Authority, server: Dovecot, submission: int) -> dict[str, dict[str, object]]:
    """Return backends: one that is there, is down, has no TLS, and has a certificate of another name."""
    tls = {"security": "starttls", "verify": "localhost", "ca": str(authority.file)}
    closed, lmtp = free_port(), server.lmtp
    ports = {"east": (server.pop3, submission), "down": (closed, closed), "bare": (lmtp, lmtp)}
    ports["other"] = ports["east"]
    found: dict[str, dict[str, object]] = {
        name: {"pop3": f"tcp:127.0.0.1:{pop3}", "submission": f"tcp:127.0.0.1:{port}", **tls}
        for name, (pop3, port) in ports.items()
    }
    found["other"]["verify"] = "other.example.com"
    return found


def proxy(
    authority: Authority, certificate: Certificate, server: Dovecot, submission: int = 0, warm: int = 0
) -> Mailroute:
    """Return a mailroute before these."""
    blocks = backends(authority, server, submission or server.submission)
    blocks["east"]["warm"] = warm
    config = configuration(certificate, blocks)
    listen = {name: {"protocol": name, "security": "starttls"} for name in ("pop3", "submission")}
    homes = [Account(account.user, account.password, "east") for account in (ALICE, BOB)]
    # A source that says of one user that there are too many logins.
    with contextlib.closing(sqlite3.connect(server.folder / "limits")) as database:
        database.execute("create table if not exists busy (name text unique)")
        database.execute("insert or ignore into busy values (?)", [BUSY.user])
        database.commit()
    query = "select 'limit' as refuse from busy where name = :user"
    config["route"].insert(
        0, {"source": "sql", "database": f"sqlite:{server.folder / 'limits'}", "query": query}
    )
    return Mailroute(listen, config, users(*homes, DOWN, NOWHERE, UNTRUSTED))


def pop3(mailroute: Mailroute, authority: Authority) -> poplib.POP3:
    """Connect, and begin TLS; the codes are announced before and after (RFC 2449, 3206)."""
    session = poplib.POP3("localhost", mailroute.ports["pop3"], timeout=PATIENCE)
    assert {"RESP-CODES", "AUTH-RESP-CODE", "PIPELINING"} <= session.capa().keys()
    session.stls(authority.context())
    assert {"RESP-CODES", "AUTH-RESP-CODE", "PIPELINING"} <= session.capa().keys()
    return session


def refused(session: poplib.POP3, account: Account) -> str:
    """Return the answer to a login that is refused; the session goes on."""
    session.user(account.user)
    with pytest.raises(poplib.error_proto) as error:
        session.pass_(account.password)
    assert "USER" in session.capa()
    return error.value.args[0].decode()


def test_pop3s_codes(authority: Authority, certificate: Certificate, dovecot: Dovecot) -> None:
    """Every code of a refusal, from mailroute itself and from a Dovecot, is what it should be."""
    with proxy(authority, certificate, dovecot) as mailroute:
        session = pop3(mailroute, authority)
        assert refused(session, Account(ALICE.user, "wrong", "east")).startswith("-ERR [AUTH] ")
        assert refused(session, DOWN).startswith("-ERR [SYS/TEMP] ")
        assert refused(session, NOWHERE) == f"-ERR [SYS/TEMP] {UNREACHED}"
        assert refused(session, UNTRUSTED).startswith("-ERR [SYS/PERM] The mail service ")
        assert refused(session, BUSY).startswith("-ERR [IN-USE] Too many logins")
        first = pop3(mailroute, authority)
        first.user(ALICE.user)
        first.pass_(ALICE.password)
        in_use = refused(session, ALICE)
        first.quit()
        cannot_check(dovecot)
        failed = refused(session, BOB)
        session.quit()
        code = "[IN-USE] " if dovecot.version < (2, 4) else ""
        assert in_use.startswith(f"-ERR {code}Maximum number of connections ")
        assert failed.startswith("-ERR [SYS/TEMP] ")


def submission(mailroute: Mailroute, authority: Authority) -> smtplib.SMTP:
    """Connect, and begin TLS."""
    session = smtplib.SMTP("localhost", mailroute.ports["submission"], timeout=PATIENCE)
    session.starttls(context=authority.context())
    return session


def denied(session: smtplib.SMTP, account: Account) -> str:
    """Return the answer to a login that is refused; the session goes on."""
    with pytest.raises(smtplib.SMTPAuthenticationError) as error:
        session.login(account.user, account.password)
    assert session.docmd("RSET")[0] == 250
    code, text = error.value.args
    return f"{code} {text.decode()}"


def test_submissions_codes(authority: Authority, certificate: Certificate, dovecot: Dovecot) -> None:
    """Commands before a login, and refusals of mailroute itself and of a Dovecot, have their codes."""
    with proxy(authority, certificate, dovecot) as mailroute, submission(mailroute, authority) as session:
        session.ehlo()
        commands = ("NOOP", "RSET", "HELP", "VRFY bob")
        assert [session.docmd(command)[0] for command in commands] == [250, 250, 214, 530]
        wrong = Account(ALICE.user, "wrong", "east")
        assert denied(session, wrong) == "535 5.7.8 Authentication failed"
        assert denied(session, DOWN) == LATER
        assert denied(session, NOWHERE) == MISTAKEN
        assert denied(session, UNTRUSTED) == MISTAKEN
        assert denied(session, BUSY).startswith("454 4.7.0 Too many logins")
        cannot_check(dovecot)
        assert denied(session, BOB) == LATER
        assert session.docmd("MAIL", "FROM:<a@b.example>") == (530, b"5.7.0 Authentication required")
        assert session.quit()[0] == 221


@pytest.mark.parametrize("warm", [0, 1])
def test_a_postfix_whose_dovecot_is_gone(
    authority: Authority, certificate: Certificate, dovecot: Dovecot, warm: int
) -> None:
    """The client is told to try again, whether Postfix says 454 to AUTH or can say nothing at all.

    Over a connection that was kept ready it says so; over a new one it does not get as far.
    Where Dovecot is there and cannot check passwords, Postfix 3.7 says that they are wrong.
    """
    settings = {
        **asking(dovecot.sasl),
        "smtpd_authorized_xclient_hosts": "127.0.0.1",
    }
    with (
        Postfix(certificate, **settings) as postfix,
        proxy(authority, certificate, dovecot, postfix.port, warm=warm) as mailroute,
        submission(mailroute, authority) as session,
    ):
        if warm:
            # The client's, the two listeners, and what is ready.
            wait_until("the connection kept ready", lambda: mailroute.sockets() >= 4)
        dovecot.kill()
        assert denied(session, ALICE) == LATER
        why = r"the backend said: 454 4\.7\.0 " if warm else r"the backend's connection ended"
        mailroute.log.wait_for(rf"login refused: user={ALICE.user} .*{why}")


# --- killed ---------------------------------------------------------------------


def has_unread(port: int) -> bool:
    """Tell whether a connection to a server's port has bytes that the server has not read."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1].rpartition(":")[2], 16) == port and int(words[4].rpartition(":")[2], 16):
            return True
    return False


def to_the_end(client: RawImap, begin: list[bytes], postfix: Postfix, step: str) -> None:
    """Send a message, and kill the server at that step."""
    for command in begin:
        client.send(command + b"\r\n")
    client.read(rb"354 ")
    text = message("killed", "line\n" * 10_000)
    client.send(text[: len(text) // 2])
    if step == "end":
        # Stopped, it cannot answer before it dies.
        os.killpg(postfix.pid, signal.SIGSTOP)
        client.send(text[len(text) // 2 :] + b".\r\n")
        wait_until("the message's end at the server", lambda: has_unread(postfix.port))
    postfix.kill()
    if step == "half":
        with contextlib.suppress(ConnectionError):
            client.send(text[len(text) // 2 :] + b".\r\n")


STEPS = pytest.mark.parametrize("step", ["half", "end"])


def answers(client: RawImap, *, quit_first: bool) -> list[bytes]:
    """Return the codes that come until the connection ends, be it by a reset."""
    if quit_first:
        client.send(b"QUIT\r\n")
    try:
        return [line[:3] for line in client.rest().splitlines()]
    except ConnectionError:
        return []


@STEPS
def test_a_postfix_killed_in_a_submitted_message(
    certificate: Certificate, dovecot: Dovecot, step: str
) -> None:
    """The client's connection ends, and it has been told of no success."""
    settings = {
        **asking(dovecot.sasl),
        "smtpd_authorized_xclient_hosts": "127.0.0.1",
        "default_transport": "discard:",
    }
    with Postfix(certificate, **settings) as postfix:
        block = {"submission": f"tcp:127.0.0.1:{postfix.port}", "security": "none"}
        listen = {"none": {"protocol": "submission", "security": "none"}}
        with (
            Mailroute(listen, configuration(certificate, {"west": block}), users(BOB)) as mailroute,
            RawImap("127.0.0.1", mailroute.ports["none"]) as client,
        ):
            client.read(rb"220 ")
            client.send(b"EHLO me.example\r\nAUTH PLAIN AGJvYkBleGFtcGxlLmNvbQBidWlsZGVy\r\n")
            client.read(rb"235 ")
            begin = [b"MAIL FROM:<bob@example.com>", b"RCPT TO:<someone@example.net>", b"DATA"]
            to_the_end(client, begin, postfix, step)
            assert [code for code in answers(client, quit_first=False) if not code.startswith(b"4")] == []
            wait_until("the session's end", mailroute.idle)


@pytest.mark.parametrize("protocol", ["smtp", "split"])
@STEPS
def test_a_postfix_killed_in_a_delivered_message(protocol: str, step: str) -> None:
    """The sender is told to try again, and stays connected; a success is never told."""
    with Postfix(default_transport="discard:") as postfix:
        mx = {"smtp": f"tcp:127.0.0.1:{postfix.port}", "security": "none"}
        listener = {"protocol": "smtp", "security": "none", "backend": "mx", "split": protocol == "split"}
        with (
            Mailroute({"smtp": listener}, {"backend": {"mx": mx}}) as mailroute,
            RawImap("127.0.0.1", mailroute.ports["smtp"]) as client,
        ):
            client.read(rb"220 ")
            client.send(b"EHLO me.example\r\n")
            client.read(rb"250 ")
            begin = [b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.net>", b"DATA"]
            to_the_end(client, begin, postfix, step)
            assert answers(client, quit_first=True) == [b"451", b"221"]
            wait_until("the session's end", mailroute.idle)


def test_a_postfix_that_is_stopped_is_gone() -> None:
    """Its master leaves the group of the command that has started it, and ends all the same."""
    with Postfix() as postfix:
        master = postfix.pid
        assert not group_is_gone(master)
    assert group_is_gone(master)
