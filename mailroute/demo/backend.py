"""A mail server for trying things out: twisted.mail's own, with one account and a few messages."""

# The methods are named as twisted.cred's and twisted.mail's interfaces name them.
# ruff: noqa: N802, N803, N815

from __future__ import annotations

import email.message
import email.policy
import email.utils
from collections.abc import Callable
from typing import Any

from attrs import field, frozen
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory
from twisted.mail import imap4
from zope.interface import Interface, implementer

from mailroute.demo.mailbox import Mailbox


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


class DemoBackend(ServerFactory):
    """Makes the server's side of each connection to one demo server."""

    noisy = False

    def __init__(self, name: str) -> None:
        self.name = name
        checker = InMemoryUsernamePasswordDatabaseDontUse()
        accounts = {}
        for user in USERS:
            if user.backend == name:
                checker.addUser(user.name.encode(), user.password.encode())
                accounts[user.name.encode()] = _account(user)
        self._portal = Portal(_OneAccountEach(accounts), [checker])

    def buildProtocol(self, addr: IAddress | None) -> DemoServer:
        """Make the server's side of one connection."""
        del addr
        server = DemoServer(chal={b"PLAIN": imap4.PLAINCredentials, b"LOGIN": imap4.LOGINCredentials})
        server.IDENT = f"{self.name} is ready".encode()
        server.portal = self._portal
        server.factory = self
        return server


def _account(user: DemoUser) -> DemoAccount:
    account = DemoAccount(user.name)
    inbox = Mailbox()
    for number, (subject, text) in enumerate(_LETTERS, 1):
        words = {"backend": user.backend, "name": user.name}
        inbox.add(_letter(user, number, subject.format(**words), text.format(**words)), ["\\Recent"])
    account.addMailbox("INBOX", inbox)
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
