"""The demo's servers beside IMAP: twisted.mail's POP3, and its SMTP for submission and delivery."""

# The methods are named as twisted.mail's interfaces name them.
# ruff: noqa: N802, N803, N815

from __future__ import annotations

import email.utils
from collections.abc import Callable, Mapping
from typing import Any

from twisted.cred.checkers import AllowAnonymousAccess, ICredentialsChecker
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory
from twisted.mail import imap4, pop3, smtp
from zope.interface import Interface, implementer

from mailroute.demo.maildir import Inbox, PopMailbox

MAX_MESSAGE = 10 * 1024 * 1024
"""Bytes of a message that the demo takes."""

Relay = Callable[[bytes, bytes, bytes], Deferred[Any]]
"""Passes a message on: takes its sender, its recipient and its content."""


@implementer(IRealm)
class PostRealm:
    """Hands out the mailboxes of one server's accounts, and leave to send mail.

    Who has logged in may send to anybody, and who has not only to the accounts that are here.

    :param relay: takes what is for somebody else.
    """

    def __init__(self, name: str, inboxes: Mapping[bytes, Inbox], relay: Relay) -> None:
        self._name = name
        self._inboxes = inboxes
        self._relay = relay

    def requestAvatar(
        self, avatarId: bytes | tuple[()], mind: object, *interfaces: type[Interface]
    ) -> tuple[type[Interface], Any, Callable[[], None]]:
        """Return a mailbox for POP3, or what takes mail."""
        del mind
        if pop3.IMailbox in interfaces and isinstance(avatarId, bytes):
            inbox = self._inboxes[avatarId]
            mailbox = PopMailbox(inbox.folder, inbox.refresh)
            return pop3.IMailbox, mailbox, mailbox.undeleteMessages
        if smtp.IMessageDelivery in interfaces:
            relay = self._relay if isinstance(avatarId, bytes) and avatarId else None
            return smtp.IMessageDelivery, _Delivery(self._name, self._inboxes, relay), lambda: None
        raise NotImplementedError("there is nothing but mail here")


@implementer(smtp.IMessageDelivery)
class _Delivery:
    """Takes mail in one session."""

    def __init__(self, name: str, inboxes: Mapping[bytes, Inbox], relay: Relay | None) -> None:
        self._name = name
        self._inboxes = inboxes
        self._relay = relay

    def receivedHeader(self, helo: tuple[bytes, bytes], origin: smtp.Address, recipients: object) -> bytes:
        """Return the trace line (RFC 5321 section 4.4)."""
        del origin, recipients
        date = email.utils.formatdate()
        return f"Received: from {_word(helo[0])} by {self._name}.example.com with ESMTP; {date}".encode()

    def validateFrom(self, helo: object, origin: smtp.Address) -> smtp.Address:
        """Take any sender."""
        del helo
        return origin

    def validateTo(self, user: smtp.User) -> Callable[[], _Message]:
        """Take a recipient who lives here, and anybody else from who has logged in.

        :raises twisted.mail.smtp.SMTPBadRcpt: nobody of that name lives here.
        """
        recipient = bytes(user.dest)
        inbox = self._inboxes.get(recipient.lower())
        if inbox is not None:
            return lambda: _Message(inbox.deliver)
        relay, sender = self._relay, bytes(user.orig)
        if relay is None:
            raise smtp.SMTPBadRcpt(user)
        return lambda: _Message(lambda content: relay(sender, recipient, content))


@implementer(smtp.IMessage)
class _Message:
    """A message while it comes."""

    def __init__(self, deliver: Callable[[bytes], Deferred[Any]]) -> None:
        self._deliver = deliver
        self._lines: list[bytes] = []
        self._size = 0

    def lineReceived(self, line: bytes) -> None:
        """Take a line."""
        self._size += len(line) + 2
        if self._size <= MAX_MESSAGE:
            self._lines.append(line)

    def eomReceived(self) -> Deferred[Any]:
        """Deliver it: only then it is acknowledged.

        :raises twisted.mail.smtp.SMTPServerError: it is too long.
        """
        if self._size > MAX_MESSAGE:
            raise smtp.SMTPServerError(552, b"5.3.4 the demo takes 10 MiB")
        return self._deliver(b"\r\n".join([*self._lines, b""]))

    def connectionLost(self) -> None:
        """Forget it."""
        self._lines.clear()


class DemoSmtp(smtp.ESMTP):
    """twisted.mail's server, which takes 8-bit messages and says so."""

    def extensions(self) -> dict[bytes, list[bytes] | None]:
        """Return what it announces."""
        return {**super().extensions(), b"8BITMIME": None}


class PostFactory(ServerFactory):
    """Makes the server's side of each connection of one kind.

    :param make: makes the protocol.
    """

    noisy = False
    challengers: Mapping[bytes, Any] = {}
    timeOut = 600

    def __init__(self, make: Callable[[], Any], portal: Portal, name: str) -> None:
        self._make = make
        self._portal = portal
        self._name = name

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Make the server's side of one connection."""
        del addr
        server = self._make()
        server.portal = self._portal
        server.factory = self
        server.host = f"{self._name}.example.com".encode()
        return server


def pop3_factory(name: str, realm: PostRealm, checker: ICredentialsChecker) -> PostFactory:
    """Return the POP3 side of a server."""
    return PostFactory(pop3.POP3, Portal(realm, [checker]), name)


def smtp_factory(name: str, realm: PostRealm, checker: ICredentialsChecker) -> PostFactory:
    """Return the SMTP side of a server, for submission and for delivery."""
    mechanisms = {b"PLAIN": imap4.PLAINCredentials, b"LOGIN": imap4.LOGINCredentials}
    portal = Portal(realm, [checker, AllowAnonymousAccess()])
    return PostFactory(lambda: DemoSmtp(chal=mechanisms), portal, name)


def _word(name: bytes) -> str:
    """Return a client's name so that it cannot break the line, nor end a comment."""
    text = name.decode("ascii", "replace")
    return "".join(char if char.isalnum() or char in ".-_[]:" else "?" for char in text)[:255] or "?"
