"""The demo beside IMAP: what one account sends, the other reads on its own server, by POP3 and by IMAP."""

from __future__ import annotations

import contextlib
import poplib
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_process import Demo, running_demo
from servers.processes import PATIENCE, wait_until

from mailroute.demo.backend import USERS, DemoUser

ALICE, BOB = USERS


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with running_demo(tmp_path) as demo:
        yield demo


@contextlib.contextmanager
def pop(demo: Demo, user: DemoUser) -> Iterator[poplib.POP3]:
    client = poplib.POP3("localhost", demo.ports.pop3, timeout=PATIENCE)
    client.stls(demo.trusted)
    client.user(user.name)
    client.pass_(user.password)
    try:
        yield client
    finally:
        with contextlib.suppress(poplib.error_proto, OSError, AttributeError):
            client.quit()


@contextlib.contextmanager
def submission(demo: Demo, user: DemoUser | None) -> Iterator[smtplib.SMTP]:
    with smtplib.SMTP("localhost", demo.ports.submission, timeout=PATIENCE) as client:
        client.starttls(context=demo.trusted)
        if user is not None:
            client.login(user.name, user.password)
        yield client


def letter(sender: DemoUser, recipient: DemoUser, text: str) -> bytes:
    head = f"From: {sender.name}\r\nTo: {recipient.name}\r\nSubject: A letter\r\n\r\n"
    return (head + text.replace("\n", "\r\n")).encode()


@pytest.mark.parametrize(("sender", "recipient"), [(ALICE, BOB), (BOB, ALICE), (ALICE, ALICE)])
def test_what_one_sends_the_other_reads(demo: Demo, sender: DemoUser, recipient: DemoUser) -> None:
    """Mail that is submitted arrives on the addressee's own server, and both POP3 and IMAP show it whole."""
    text = ".\n..dots\nGrüße\n" + "x" * 900 + "\n"
    sent = letter(sender, recipient, text)
    with submission(demo, sender) as client:
        assert client.sendmail(sender.name, [recipient.name], sent, ["BODY=8BITMIME"]) == {}
    with pop(demo, recipient) as client:
        assert client.stat()[0] == 4
        lines = client.retr(4)[1]
        received = b"\r\n".join([*lines, b""])
    assert received.endswith(sent)
    assert f"by {recipient.backend}.example.com".encode() in received
    with demo.tls() as client:
        client.login(recipient.name, recipient.password)
        assert client.select("INBOX") == ("OK", [b"4"])
        _, [(_, content), _] = client.fetch("4", "(BODY.PEEK[])")
        assert content == received
    others = maildir(demo, BOB if recipient is ALICE else ALICE)
    assert len(others) == 3


def maildir(demo: Demo, user: DemoUser) -> list[Path]:
    folder = demo.folder / user.backend / user.name
    return [path for name in ("cur", "new") for path in (folder / name).iterdir()]


def test_the_mail_is_in_maildirs(demo: Demo) -> None:
    """Each message is a file of its account's Maildir, on its own server."""
    for user in USERS:
        assert len(maildir(demo, user)) == 3
        assert all(f"From: The server {user.backend}" in path.read_text() for path in maildir(demo, user))


def test_sizes_are_those_of_the_messages(demo: Demo) -> None:
    """What LIST says is what RETR gives."""
    with pop(demo, ALICE) as client:
        for number in (1, 2, 3):
            size = int(client.list(number).split()[2])
            assert len(b"\r\n".join([*client.retr(number)[1], b""])) == size


def test_deletions_count_at_the_end(demo: Demo) -> None:
    """A message that POP3 deletes is gone after QUIT, for IMAP too; without QUIT it stays."""
    with pop(demo, ALICE) as client:
        client.dele(2)
        client.close()
    wait_until("the message's return", lambda: len(maildir(demo, ALICE)) == 3)
    with pop(demo, ALICE) as client:
        client.dele(2)
    assert len(maildir(demo, ALICE)) == 2
    with demo.tls() as client:
        client.login(ALICE.name, ALICE.password)
        assert client.select("INBOX") == ("OK", [b"2"])
        client.store("1", "+FLAGS", "\\Deleted")
        client.expunge()
    assert len(maildir(demo, ALICE)) == 1
    with pop(demo, ALICE) as client:
        assert client.stat()[0] == 1


def test_an_open_mailbox_is_told_of_new_mail(demo: Demo) -> None:
    """Who has the mailbox open hears of a delivery at the next command."""
    with demo.tls() as mail:
        mail.login(BOB.name, BOB.password)
        mail.select("INBOX")
        with submission(demo, ALICE) as client:
            client.sendmail(ALICE.name, [BOB.name], letter(ALICE, BOB, "Hello.\n"))
        mail.noop()
        assert mail.response("EXISTS")[1][-1] == b"4"


def test_nobody_sends_without_a_login(demo: Demo) -> None:
    """Submission wants a password; the port for deliveries takes mail for the two accounts alone."""
    with submission(demo, None) as client, pytest.raises(smtplib.SMTPSenderRefused) as refused:
        client.sendmail(ALICE.name, [BOB.name], letter(ALICE, BOB, "Hello.\n"))
    assert refused.value.smtp_code == 530
    with smtplib.SMTP("localhost", demo.ports.smtp, timeout=PATIENCE) as client:
        for stranger in ("carol@example.com", "alice@elsewhere.example"):
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                client.sendmail("x@example.net", [stranger], letter(ALICE, BOB, "Hello.\n"))
        assert client.sendmail("x@example.net", [BOB.name], letter(ALICE, BOB, "Hello.\n")) == {}
    assert len(maildir(demo, BOB)) == 4


def test_mail_for_nobody_is_refused(demo: Demo) -> None:
    """What is submitted for an unknown name is refused before it counts as sent."""
    with submission(demo, ALICE) as client, pytest.raises(smtplib.SMTPException):
        client.sendmail(ALICE.name, ["carol@example.com"], letter(ALICE, BOB, "Hello.\n"))
