"""The demo: two mail servers that know who they are, and mailroute in front of both."""

from __future__ import annotations

import imaplib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import twistd
from attrs import astuple
from demo_process import Demo, running_demo
from imapclient import IMAPClient
from servers.processes import PATIENCE, accepts, wait_until
from servers.programs import program

from mailroute.demo.backend import USERS, DemoUser
from mailroute.demo.instructions import Command, commands, instructions
from mailroute.demo.ports import Ports

ALICE, BOB = USERS
NOWHERE = Path("/nowhere")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(tmp_path_factory.mktemp("demo")) as demo:
        yield demo


@pytest.fixture
def own_demo(tmp_path: Path) -> Iterator[Demo]:
    with running_demo(tmp_path) as demo:
        yield demo


@pytest.fixture
def mail(demo: Demo) -> Iterator[imaplib.IMAP4]:
    with demo.tls() as client:
        client.login(ALICE.name, ALICE.password)
        client.select("INBOX")
        yield client


# --- what it shows ----------------------------------------------------------


@pytest.mark.parametrize("way", ["starttls", "tls"])
@pytest.mark.parametrize("user", USERS, ids=lambda user: user.name)
def test_each_account_is_answered_by_its_own_server(demo: Demo, user: DemoUser, way: str) -> None:
    """Alice's mail comes from east and Bob's from west, whichever port they use."""
    with getattr(demo, way)() as client:
        client.login(user.name, user.password)
        assert client.select("INBOX", readonly=True) == ("OK", [b"3"])
        for number in client.search(None, "ALL")[1][0].split():
            _, [(_, letter), _] = client.fetch(number, "(BODY.PEEK[])")
            assert f"From: The server {user.backend} <".encode() in letter


@pytest.mark.parametrize("command", commands(NOWHERE, Ports()), ids=lambda command: command.title)
def test_every_command_that_it_prints_works(demo: Demo, command: Command) -> None:
    """What the demo says to type can be pasted, and the answer says which server gave it."""
    program("curl", "curl"), program("openssl", "openssl")
    [printed] = [each for each in commands(demo.folder, demo.ports) if each.title == command.title]
    assert printed.line in demo.process.log.text()
    shell = subprocess.run(
        ["bash", "-c", printed.line], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert command.shows in shell.stdout, shell.stderr
    assert shell.returncode == 0


def test_it_says_who_has_which_password_and_where_the_mail_is() -> None:
    """Nothing has to be looked up: names, passwords, servers and ports are all printed."""
    text = instructions(NOWHERE, Ports())
    for user in USERS:
        assert re.search(rf"{user.name} +password {user.password} +lives on {user.backend}\n", text)
    assert "port 1143 (STARTTLS) and port 1993 (TLS)" in text
    assert "POP3 on port 1110 and mail to be sent on port 1587 (both STARTTLS)" in text
    assert "that other servers bring on port 1025" in text


def test_a_wrong_password_can_be_followed_by_the_right_one(demo: Demo) -> None:
    """The servers check passwords, and mailroute passes on what they say."""
    with demo.starttls() as client:
        with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
            client.login(BOB.name, ALICE.password)
        client.login(BOB.name, BOB.password)


def test_each_session_is_logged(demo: Demo) -> None:
    """A line of the log says who was routed where."""
    mark = demo.process.log.mark()
    with demo.tls() as client:
        client.login(BOB.name, BOB.password)
    demo.process.log.wait_for(rf"{re.escape(BOB.name)}.*\bwest\b", since=mark)
    assert BOB.password not in demo.process.log.text(mark)


def test_the_key_can_be_read_by_nobody_else(demo: Demo) -> None:
    """Another user of the machine cannot take the key, nor look into the folder."""
    assert (demo.folder / "key.pem").stat().st_mode & 0o077 == 0
    assert demo.folder.stat().st_mode & 0o077 == 0


def test_nothing_is_left_behind(own_demo: Demo) -> None:
    """When it ends, its ports are free and its files are gone."""
    own_demo.process.stop()
    assert not own_demo.folder.exists()
    assert not any(accepts("127.0.0.1", port) for port in astuple(own_demo.ports))
    assert [path.name for path in own_demo.process.folder.iterdir()] == ["output"]


def test_a_busy_port_is_named(demo: Demo, tmp_path: Path) -> None:
    """A second demo beside the first says which port is taken, and leaves nothing behind."""
    port = str(demo.ports.imap)
    second = twistd.run("-n", "mailroute", "--demo", "--demo-starttls-port", port, folder=tmp_path)
    assert second.returncode == 1
    said = second.stdout + second.stderr
    assert re.search(rf"{port}.*in use", said)
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


# --- what its servers can do ------------------------------------------------


def test_mailboxes_are_listed(mail: imaplib.IMAP4) -> None:
    """LIST and LSUB show the INBOX and one more."""
    for listed in (mail.list(), mail.lsub()):
        assert [line.rpartition(b" ")[2] for line in listed[1]] == [b'"INBOX"', b'"ARCHIVE"']
    assert mail.status("INBOX", "(MESSAGES UNSEEN)")[1] == [b"INBOX (MESSAGES 3 UNSEEN 3)"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("ALL", b"1 2 3"),
        ("UNSEEN", b"1 2 3"),
        ("SEEN", b""),
        ("FROM east", b"1 2 3"),
        ("NOT FROM east", b""),
        ('SUBJECT "hello from"', b"1"),
        ("OR SUBJECT hello SUBJECT goodbye", b"1 3"),
        ("OR (SUBJECT hello UNSEEN) 2", b"1 2"),
        ("HEADER Message-ID alice", b"1 2 3"),
        ("BODY asked", b"2"),
        ("TEXT example.com", b"1 2 3"),
        ("SINCE 1-Jan-2020 SENTSINCE 1-Jan-2020", b"1 2 3"),
        ("BEFORE 1-Jan-2020", b""),
        ("SMALLER 10", b""),
        ("LARGER 10 KEYWORD \\Flagged", b""),
        ("2:*", b"2 3"),
        ("UID 1", b"1"),
    ],
)
def test_mail_can_be_searched(mail: imaplib.IMAP4, query: str, found: bytes) -> None:
    """SEARCH finds by flag, header, text, date, size, number and any mix of those."""
    assert mail.search(None, query) == ("OK", [found])
    assert mail.uid("search", None, query) == ("OK", [found])


@pytest.mark.parametrize("query", ["BOGUS", "SUBJECT", "LARGER much", "SINCE yesterday", "NOT", "0"])
def test_a_search_that_makes_no_sense_is_refused(own_demo: Demo, query: str) -> None:
    """A bad query is answered with BAD, and the session goes on."""
    with own_demo.tls() as client:
        client.login(ALICE.name, ALICE.password)
        client.select("INBOX")
        with pytest.raises(imaplib.IMAP4.error, match="BAD"):
            client.search(None, query)
        assert client.noop()[0] == "OK"


def test_a_mailbox_can_be_changed(own_demo: Demo) -> None:
    """Messages are appended, copied, flagged and expunged, and mailboxes come and go."""
    with IMAPClient(
        "localhost", own_demo.ports.imaps, ssl_context=own_demo.trusted, timeout=PATIENCE
    ) as client:
        client.login(BOB.name, BOB.password)
        client.select_folder("INBOX")
        client.append("INBOX", b"From: bob@example.com\r\nSubject: note\r\n\r\nto myself\r\n")
        [note] = client.search(["SUBJECT", "note"])
        assert client.fetch(note, ["BODY[TEXT]"])[note][b"BODY[TEXT]"] == b"to myself\r\n"
        client.create_folder("Notes")
        client.copy(note, "Notes")
        assert client.folder_status("Notes", ["MESSAGES"]) == {b"MESSAGES": 1}
        client.add_flags(note, [rb"\Flagged"])
        assert rb"\Flagged" in client.get_flags(note)[note]
        client.remove_flags(note, [rb"\Flagged"])
        assert rb"\Flagged" not in client.get_flags(note)[note]
        client.delete_messages(note)
        client.expunge()
        assert note not in client.search()
        client.delete_folder("Notes")
        assert not client.folder_exists("Notes")


def test_new_mail_is_pushed(own_demo: Demo) -> None:
    """A client that idles is told of a message as soon as another one appends it."""
    with (
        IMAPClient(
            "localhost", own_demo.ports.imaps, ssl_context=own_demo.trusted, timeout=PATIENCE
        ) as idler,
        own_demo.starttls() as other,
    ):
        idler.login(ALICE.name, ALICE.password)
        idler.select_folder("INBOX")
        idler.idle()
        other.login(ALICE.name, ALICE.password)
        other.append("INBOX", None, None, b"From: alice@example.com\r\n\r\nhello\r\n")
        assert wait_until("the push", lambda: idler.idle_check(timeout=1)) == [(4, b"EXISTS")]
        idler.idle_done()
