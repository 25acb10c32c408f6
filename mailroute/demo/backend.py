"""A mail server for trying things out: twisted.mail's own, with one account and a few messages."""

# The methods are named as twisted.cred's and twisted.mail's interfaces name them.
# ruff: noqa: N802, N803, N815

from __future__ import annotations

import email.message
import email.policy
import email.utils
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import field, frozen
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory
from twisted.mail import imap4
from zope.interface import Interface, implementer

from mailroute.demo.mailbox import Mailbox
from mailroute.demo.maildir import Inbox
from mailroute.demo.post import PostRealm, Relay, pop3_factory, smtp_factory


@frozen
class DemoUser:
    """An account of the demo, and the name of the server that has it."""

    name: str
    password: str = field(repr=False)
    backend: str


USERS = (
    DemoUser("alice@example.com", "wonderland", "east"),
    DemoUser("bob@example.com", "builder", "west"),
)

_LETTERS = (
    (
        "Hello from {backend}",
        "This mailbox lives on the server {backend}.\nmailroute found the way for {name}.",
    ),
    (
        "One name, one port",
        "You asked mailroute, and {backend} answered.\nThe other account lives elsewhere.",
    ),
    ("Goodbye from {backend}", "That is all that {backend} has for {name}."),
)


class DemoAccount(imap4.MemoryAccount):
    """An account with an INBOX that says which server it is on."""

    def __init__(self, name: str, inbox: Inbox) -> None:
        super().__init__(name)
        self.inbox = inbox
        self.addMailbox("INBOX", inbox)

    def select(self, name: str, rw: bool = True) -> Mailbox | None:
        """Return a mailbox, with what has come into it since the last time."""
        self.inbox.refresh()
        mailbox: Mailbox | None = super().select(name, rw)
        return mailbox

    def _emptyMailbox(self, name: str, id: int) -> Mailbox:  # noqa: A002, ARG002 - twisted.mail's names
        return Mailbox()


@implementer(IRealm)
class _OneAccountEach:
    """Hands out the accounts of one server."""

    def __init__(self, accounts: dict[bytes, DemoAccount]) -> None:
        self._accounts = accounts

    def requestAvatar(
        self,
        avatarId: bytes | tuple[()],
        mind: object,
        *interfaces: type[Interface],
    ) -> tuple[type[Interface], DemoAccount, Callable[[], None]]:
        del mind
        if imap4.IAccount not in interfaces or not isinstance(avatarId, bytes):
            raise NotImplementedError("there is nothing but mail here")
        return imap4.IAccount, self._accounts[avatarId], lambda: None


class DemoServer(imap4.IMAP4Server):
    """twisted.mail's server, and an APPEND without flags, which it would answer with an error."""

    portal: Any = None
    factory: Any = None

    def opt_flags(self, line: bytes) -> tuple[list[bytes], bytes]:
        """Take the flags off the line, if there are any."""
        flags, rest = self.opt_plist(line)
        return flags or [], rest

    auth_APPEND: Any = (
        imap4.IMAP4Server.do_APPEND,
        imap4.IMAP4Server.arg_astring,
        opt_flags,
        imap4.IMAP4Server.opt_datetime,
        imap4.IMAP4Server.arg_literal,
    )
    select_APPEND = auth_APPEND


class DemoBackend:
    """One demo server: for each protocol that it speaks, what makes its side of a connection.

    :param folder: where its Maildirs are made.
    :param relay: takes what is submitted here for somebody who lives elsewhere.
    """

    def __init__(self, name: str, folder: Path, relay: Relay) -> None:
        checker = InMemoryUsernamePasswordDatabaseDontUse()
        accounts = {}
        for user in USERS:
            if user.backend == name:
                checker.addUser(user.name.encode(), user.password.encode())
                accounts[user.name.encode()] = _account(user, folder / user.name)
        realm = PostRealm(name, {user: account.inbox for user, account in accounts.items()}, relay)
        self.imap = _ImapFactory(name, Portal(_OneAccountEach(accounts), [checker]))
        self.pop3 = pop3_factory(name, realm, checker)
        self.smtp = smtp_factory(name, realm, checker)


class _ImapFactory(ServerFactory):
    """Makes the server's side of each IMAP connection."""

    noisy = False

    def __init__(self, name: str, portal: Portal) -> None:
        self.name = name
        self._portal = portal

    def buildProtocol(self, addr: IAddress | None) -> DemoServer:
        """Make the server's side of one connection."""
        del addr
        server = DemoServer(chal={b"PLAIN": imap4.PLAINCredentials, b"LOGIN": imap4.LOGINCredentials})
        server.IDENT = f"{self.name} is ready".encode()
        server.portal = self._portal
        server.factory = self
        return server


def _account(user: DemoUser, folder: Path) -> DemoAccount:
    inbox = Inbox(folder)
    account = DemoAccount(user.name, inbox)
    for number, (subject, text) in enumerate(_LETTERS, 1):
        words = {"backend": user.backend, "name": user.name}
        inbox.add(_letter(user, number, subject.format(**words), text.format(**words)), ["\\Recent"])
    account.addMailbox("Archive")
    for mailbox in ("INBOX", "Archive"):
        account.subscribe(mailbox)
    return account


def _letter(user: DemoUser, number: int, subject: str, text: str) -> bytes:
    letter = email.message.EmailMessage(policy=email.policy.SMTP)
    letter["From"] = f"The server {user.backend} <postmaster@{user.backend}.example.com>"
    letter["To"] = user.name
    letter["Subject"] = subject
    letter["Date"] = email.utils.formatdate()
    letter["Message-ID"] = f"<{number}.{user.name.partition('@')[0]}@{user.backend}.example.com>"
    letter.set_content(text)
    return letter.as_bytes()
