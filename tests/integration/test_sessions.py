"""What happens behind the login: bytes pass, all of them, in order, and at once."""

from __future__ import annotations

import hashlib
import imaplib
import time

import pytest
from servers.accounts import ALICE, BOB, Account, message
from servers.raw import RawImap
from servers.site import PROXIED, Site

pytestmark = pytest.mark.integration

BOTH_ACCOUNTS = pytest.mark.parametrize("account", [ALICE, BOB], ids=["alice", "bob"])
SECURITY = pytest.mark.parametrize("security", ["starttls", "tls", "none"])


def connect(site: Site, way: str, account: Account, security: str) -> RawImap:
    """Connect and read the greeting, in the way and with the security asked for."""
    door = site.door(way, account)
    if security == "none":
        session = RawImap("127.0.0.1", door.imap if way != PROXIED else site.proxy.ports["plain"])
        session.greeting()
    elif security == "tls":
        session = RawImap("127.0.0.1", door.imaps)
        session.handshake(door.authority.context())
        session.greeting()
    else:
        session = RawImap("127.0.0.1", door.imap)
        session.greeting()
        session.starttls(door.authority.context())
    return session


def log_in(session: RawImap, account: Account) -> bytes:
    """Log in and return the answer."""
    answer = session.command(f'in LOGIN "{account.user}" "{account.password}"')
    assert b"in OK" in answer
    return answer


@BOTH_ACCOUNTS
@SECURITY
def test_each_account_reaches_its_own_server(site: Site, account: Account, security: str) -> None:
    """Through the same port alice gets the mail of one server, and bob that of the other."""
    with connect(site, PROXIED, account, security) as session:
        log_in(session, account)
        session.command("a SELECT INBOX")
        subjects = session.command("b FETCH 1:* BODY.PEEK[HEADER.FIELDS (SUBJECT)]")
        assert f"Subject: {account.backend} 1".encode() in subjects
        other = "west" if account.backend == "east" else "east"
        assert other.encode() not in subjects


@SECURITY
def test_the_answer_to_a_login_carries_the_servers_capabilities(site: Site, way: str, security: str) -> None:
    """A client needs not ask what it may use: the tagged OK says it, or an untagged line before it."""
    with connect(site, way, ALICE, security) as session:
        answer = log_in(session, ALICE)
        assert b"CAPABILITY IMAP4rev1" in answer
        for word in (b"IDLE", b"UIDPLUS", b"MOVE", b"CONDSTORE", b"SORT"):
            assert word in answer.split()
        assert b"AUTH=" not in answer
        assert b"STARTTLS" not in answer


@SECURITY
def test_commands_sent_along_with_the_login_are_answered(site: Site, way: str, security: str) -> None:
    """A client that does not wait for the login's answer loses nothing of what it sent behind it."""
    with connect(site, way, BOB, security) as session:
        session.send(
            f'a LOGIN "{BOB.user}" "{BOB.password}"\r\n'.encode()
            + b"b SELECT INBOX\r\nc FETCH 1:* (UID)\r\nd NOOP\r\ne APPEND Nowhere {2+}\r\n\r\n\r\nf CLOSE\r\n"
            + b"g LOGOUT\r\n"
        )
        answer = session.rest()
    tagged = [line for line in answer.splitlines() if line[1:2] == b" " and line[:1] in b"abcdefg"]
    assert [line[:5] for line in tagged] == [
        b"a OK ",
        b"b OK ",
        b"c OK ",
        b"d OK ",
        b"e NO ",
        b"f OK ",
        b"g OK ",
    ]
    assert b"* 2 FETCH (UID 2)" in answer
    assert b"* BYE" in answer


def test_commands_behind_a_login_may_come_in_any_pieces(site: Site, way: str) -> None:
    """A login and what follows it, one byte at a time, are answered like whole lines."""
    with connect(site, way, ALICE, "none") as session:
        for byte in f'a LOGIN "{ALICE.user}" "{ALICE.password}"\r\nb SELECT INBOX\r\nc LOGOUT\r\n'.encode():
            session.send(bytes([byte]))
        answer = session.rest()
    assert b"\r\nb OK [READ-WRITE]" in answer
    assert answer.endswith(b"\r\n")
    assert b"\r\nc OK" in answer


@SECURITY
def test_a_delivery_is_pushed_to_an_idle_client(site: Site, way: str, security: str) -> None:
    """A client in IDLE hears of a new message when it arrives, and of the next one."""
    account = site.account("west")
    with connect(site, way, account, security) as idler, connect(site, way, account, security) as sender:
        log_in(idler, account)
        log_in(sender, account)
        idler.command("a SELECT INBOX")
        idler.send(b"b IDLE\r\n")
        idler.read(rb"\+ idling")
        for number in (1, 2):
            letter = message("news", number=number)
            start = time.monotonic()
            assert b"x OK" in sender.command(b"x APPEND INBOX {%d+}\r\n%s" % (len(letter), letter))
            idler.read(rb"\* %d EXISTS" % number)
            assert time.monotonic() - start < 5
        idler.send(b"DONE\r\n")
        idler.read(b"b OK")


@SECURITY
def test_fifty_megabytes_go_up_and_come_down_unharmed(site: Site, way: str, security: str) -> None:
    """A message of 50 MB that is appended is the one that is fetched."""
    account = site.account("east")
    noise = hashlib.shake_256(b"fifty").hexdigest(25_000_000).encode()
    letter = message("large") + b"\r\n".join(noise[at : at + 76] for at in range(0, len(noise), 76)) + b"\r\n"
    with connect(site, way, account, security) as session:
        log_in(session, account)
        session.send(b"a APPEND INBOX {%d}\r\n" % len(letter))
        session.read(rb"\+")
        session.send(letter + b"\r\n")
        assert b"a OK" in session.read(b"a ")
        session.command("b SELECT INBOX")
        session.send(b"c FETCH 1 BODY.PEEK[]\r\n")
        announced = session.read(rb"\* 1 FETCH ")
        size = int(announced.rsplit(b"{", 1)[1].rstrip(b"}\r\n"))
        assert size == len(letter)
        assert hashlib.sha256(session.exactly(size)).digest() == hashlib.sha256(letter).digest()
        assert b"c OK" in session.read(b"c ")


def test_a_logout_ends_the_connection_cleanly(site: Site, way: str) -> None:
    """After LOGOUT the client gets BYE, its OK, TLS's own goodbye, and the end."""
    for security in ("starttls", "tls", "none"):
        with connect(site, way, ALICE, security) as session:
            log_in(session, ALICE)
            session.send(b"z LOGOUT\r\n")
            # Python's TLS raises an error where the connection ends without a close_notify.
            answer = session.rest()
            assert answer.startswith(b"* BYE")
            assert b"\r\nz OK" in answer


def test_a_client_that_goes_away_takes_its_session_at_the_server_with_it(site: Site) -> None:
    """When a client disappears without LOGOUT, its server notices within 3 s.

    One that only stops sending may still want the answers to what it has sent,
    and gets up to 2 s for them where TLS towards the server has no half-close.
    """
    east = site.servers["east"]
    for security in ("starttls", "tls", "none"):
        mark = east.log.mark()
        with connect(site, PROXIED, ALICE, security) as session:
            log_in(session, ALICE)
            session.command("a SELECT INBOX")
        start = time.monotonic()
        east.log.wait_for(r"imap\(alice@example\.com\).*(Disconnected|Connection closed)", mark, patience=5)
        assert time.monotonic() - start < 3


def test_two_sessions_of_one_account_share_a_mailbox(site: Site, way: str) -> None:
    """What one session changes, another one sees."""
    account = site.account("east")
    door = site.door(way, account)
    with imaplib.IMAP4(door.host, door.imap) as one, imaplib.IMAP4(door.host, door.imap) as two:
        for session in (one, two):
            session.starttls(door.authority.context())
            session.login(account.user, account.password)
            session.select()
        one.append("INBOX", None, None, message("shared"))
        assert two.noop()[0] == "OK"
        assert two.response("EXISTS")[1][-1] == b"1"
        two.store("1", "+FLAGS", r"\Flagged")
        one.noop()
        assert rb"\Flagged" in one.fetch("1", "(FLAGS)")[1][0]
