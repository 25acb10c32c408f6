"""Python's own IMAP library, and imapclient, see through mailroute what they see without it."""

from __future__ import annotations

import imaplib

import imapclient
import pytest
from servers.accounts import ALICE, BOB, Account, message
from servers.site import Door, Site, comparable

pytestmark = pytest.mark.integration

SECURITY = pytest.mark.parametrize("security", ["starttls", "tls"])
BOTH_ACCOUNTS = pytest.mark.parametrize("account", [ALICE, BOB], ids=["alice", "bob"])


def open_imaplib(door: Door, security: str) -> imaplib.IMAP4:
    """Connect, and have TLS on."""
    if security == "tls":
        return imaplib.IMAP4_SSL(door.host, door.imaps, ssl_context=door.authority.context())
    session = imaplib.IMAP4(door.host, door.imap)
    session.starttls(door.authority.context())
    return session


def open_imapclient(door: Door, security: str) -> imapclient.IMAPClient:
    """Connect, and have TLS on."""
    context = door.authority.context()
    if security == "tls":
        return imapclient.IMAPClient(door.host, door.imaps, ssl=True, ssl_context=context)
    session = imapclient.IMAPClient(door.host, door.imap, ssl=False)
    session.starttls(context)
    return session


@SECURITY
@BOTH_ACCOUNTS
def test_imaplib_reads_the_same(site: Site, account: Account, security: str) -> None:
    """Everything that imaplib is told about a mailbox is what the account's own server says."""

    def read(door: Door) -> list[str]:
        with open_imaplib(door, security) as session:
            answers: list[object] = [session.login(account.user, account.password)]
            # imaplib adds up what it is told, and it may have been told with the login.
            answers += [session.capability()[1][-1], session.namespace(), session.list(), session.lsub()]
            answers += [session.status("Archive", "(MESSAGES UIDNEXT UIDVALIDITY UNSEEN)")]
            answers += [session.select(), sorted(session.untagged_responses.items())]
            answers += [session.fetch("1:*", "(UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE BODYSTRUCTURE)")]
            answers += [session.fetch("1:*", "(BODY.PEEK[])"), session.search(None, "SUBJECT", "2")]
            answers += [session.uid("SORT", "(REVERSE SUBJECT)", "UTF-8", "ALL"), session.close()]
        return comparable(answers)

    seen = site.same(read, account)
    assert f"Subject: {account.backend} 1" in seen[-4]


@SECURITY
def test_imaplib_changes_the_same(site: Site, security: str) -> None:
    """What imaplib writes has the same effect, and gets the same answers."""

    def change(door: Door, account: Account) -> list[str]:
        with open_imaplib(door, security) as session:
            answers: list[object] = [session.login(account.user, account.password)]
            answers += [session.create("Wörk".encode("utf-7")), session.create("Work"), session.list()]
            answers += [
                session.append("Work", r"(\Flagged)", None, message("new", number=n)) for n in range(3)
            ]
            answers += [
                session.select("Work"),
                session.store("1", "+FLAGS", r"(\Deleted)"),
                session.expunge(),
            ]
            answers += [session.copy("1:2", "INBOX"), session.close(), session.select()]
            answers += [session.fetch("1:*", "(UID FLAGS BODY.PEEK[])"), session.rename("Work", "Done")]
            answers += [session.delete("Done"), session.list(), session.unselect()]
        return comparable(answers)

    direct, proxied = site.account(), site.account()
    expected = change(site.door("direct", direct), direct)
    seen = change(site.door("proxied", proxied), proxied)
    assert seen == expected


@SECURITY
@BOTH_ACCOUNTS
def test_imapclient_reads_the_same(site: Site, account: Account, security: str) -> None:
    """Everything that imapclient is told about a mailbox is what the account's own server says."""

    def read(door: Door) -> list[str]:
        with open_imapclient(door, security) as session:
            answers: list[object] = [session.login(account.user, account.password)]
            answers += [session.capabilities(), session.namespace(), session.list_folders()]
            answers += [session.folder_status("Archive"), session.select_folder("INBOX", readonly=True)]
            answers += [session.search(["SUBJECT", account.backend]), session.sort("SUBJECT")]
            answers += [
                dict(session.fetch(list(range(1, 100)), ["ENVELOPE", "FLAGS", "INTERNALDATE", "BODY.PEEK[]"]))
            ]
            answers += [session.thread(), session.noop(), session.unselect_folder()]
        return comparable(answers)

    site.same(read, account)


@SECURITY
def test_imapclient_is_told_of_a_delivery_while_idle(site: Site, way: str, security: str) -> None:
    """A message that arrives while imapclient idles is announced to it at once."""
    account = site.account("west")
    door = site.door(way, account)
    with open_imapclient(door, security) as idler, open_imapclient(door, security) as sender:
        for session in (idler, sender):
            session.login(account.user, account.password)
        idler.select_folder("INBOX")
        idler.idle()
        sender.append("INBOX", message("news"))
        seen: list[object] = []
        while (1, b"EXISTS") not in seen:
            told = idler.idle_check(timeout=20)
            assert told, f"only {seen} within 20 s"
            seen += told
        idler.idle_done()
        assert idler.search("ALL") == [1]


def test_imapclient_sends_its_id(site: Site, way: str) -> None:
    """An ID before the login is answered, and the login behind it works."""
    with open_imapclient(site.door(way, ALICE), "tls") as session:
        assert session.has_capability("ID")
        assert session.id_({"name": "tests", "version": "1"}) is not None
        session.login(ALICE.user, ALICE.password)
        assert session.id_({"name": "tests"}) is not None
