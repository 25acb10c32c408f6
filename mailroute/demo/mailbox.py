"""Messages and mailboxes in memory, as twisted.mail's IMAP server wants them."""

# The methods are named as twisted.mail's interfaces name them.
# ruff: noqa: N802

from __future__ import annotations

import email.parser
import email.policy
import email.utils
import io
from collections.abc import Iterable
from typing import BinaryIO

from twisted.internet.defer import Deferred, succeed
from twisted.mail import imap4
from zope.interface import implementer

from mailroute.demo.search import matches

FLAGS = ("\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft", "\\Recent")


@implementer(imap4.IMessage, imap4.IMessageFile)
class Message:
    """One message: the bytes of it, and its flags."""

    def __init__(self, uid: int, content: bytes, flags: Iterable[str], date: str) -> None:
        self.uid = uid
        self.content: bytes = content
        self.flags = set(flags)
        self._date = date
        parsed = email.parser.BytesParser(policy=email.policy.compat32).parsebytes(content, headersonly=True)
        self._headers = {name.lower(): str(value) for name, value in parsed.items()}
        self.body: bytes = content.partition(b"\r\n\r\n")[2]

    def getUID(self) -> int:
        """Return the number that the message keeps for good."""
        return self.uid

    def getFlags(self) -> list[str]:
        """Return the flags that are set."""
        return sorted(self.flags)

    def getInternalDate(self) -> str:
        """Return the date of arrival, as in a Date header."""
        return self._date

    def getHeaders(self, negate: bool, *names: str | bytes) -> dict[str, str]:
        """Return the headers with these names, or with any other if ``negate``.

        The server asks in ``bytes`` for its client and in ``str`` for itself.
        """
        wanted = {(name.decode("ascii") if isinstance(name, bytes) else name).lower() for name in names}
        return {name: value for name, value in self._headers.items() if (name in wanted) != bool(negate)}

    def getBodyFile(self) -> BinaryIO:
        """Return what follows the headers."""
        return io.BytesIO(self.body)

    def getSize(self) -> int:
        """Return the number of bytes in all."""
        return len(self.content)

    def isMultipart(self) -> bool:
        """Say that the message is never taken apart."""
        return False

    def getSubPart(self, part: int) -> Message:
        """Say that there is no such part."""
        raise IndexError(part)

    def open(self) -> BinaryIO:
        """Return the message as it came."""
        return io.BytesIO(self.content)


@implementer(imap4.IMailbox, imap4.ISearchableMailbox)
class Mailbox:
    """A mailbox that every session of its account shares."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._next_uid = 1
        self._listeners: list[imap4.IMailboxListener] = []
        self._gone = False

    # --- what it is ---

    def getFlags(self) -> list[str]:
        """Return the flags that a message may have."""
        return ["\\Noselect"] if self._gone else list(FLAGS)

    def getHierarchicalDelimiter(self) -> str:
        """Return what stands between the parts of a mailbox's name."""
        return "/"

    def getUIDValidity(self) -> int:
        """Return 1: the mail lives no longer than the process."""
        return 1

    def getUIDNext(self) -> int:
        """Return the UID of the next message."""
        return self._next_uid

    def getUID(self, message: int) -> int:
        """Return the UID of a message."""
        return self._messages[message - 1].uid

    def getMessageCount(self) -> int:
        """Count the messages."""
        return len(self._messages)

    def getRecentCount(self) -> int:
        """Count the messages that nobody has been told of."""
        return sum("\\Recent" in message.flags for message in self._messages)

    def getUnseenCount(self) -> int:
        """Count the messages that nobody has read."""
        return sum("\\Seen" not in message.flags for message in self._messages)

    def isWriteable(self) -> bool:
        """Say that it may be changed."""
        return True

    def requestStatus(self, names: Iterable[str]) -> dict[str, int]:
        """Answer a STATUS command."""
        status: dict[str, int] = imap4.statusRequestHelper(self, names)
        return status

    def destroy(self) -> None:
        """Stop being a mailbox."""
        self._gone = True
        self._messages.clear()

    # --- who listens ---

    def addListener(self, listener: imap4.IMailboxListener) -> None:
        """Tell this session of changes from now on."""
        self._listeners.append(listener)

    def removeListener(self, listener: imap4.IMailboxListener) -> None:
        """Tell this session no more."""
        self._listeners.remove(listener)

    # --- what it does ---

    def add(self, content: bytes, flags: Iterable[str] = (), date: str | None = None) -> int:
        """Take a message and return its UID."""
        message = Message(self._next_uid, content, flags, date or email.utils.formatdate())
        self._next_uid += 1
        self._messages.append(message)
        for listener in self._listeners:
            listener.newMessages(self.getMessageCount(), None)
        return message.uid

    def addMessage(
        self, message: BinaryIO, flags: Iterable[str] = (), date: str | bytes | None = None
    ) -> Deferred[int]:
        """Take a message that a client appends or copies here."""
        # A client's own date is in another form than getInternalDate's; for
        # trying things out, today's will do.
        del date
        return succeed(self.add(message.read(), flags))

    def expunge(self) -> list[int]:
        """Remove the deleted messages and return where they stood, the last one first."""
        places = [n for n, message in enumerate(self._messages, 1) if "\\Deleted" in message.flags]
        self._messages = [message for message in self._messages if "\\Deleted" not in message.flags]
        return places[::-1]

    def fetch(self, messages: imap4.MessageSet, uid: bool) -> list[tuple[int, Message]]:
        """Return the messages with these numbers, each with its place."""
        messages.last = (self._next_uid - 1) if uid else len(self._messages)
        return [
            (place, message)
            for place, message in enumerate(self._messages, 1)
            if (message.uid if uid else place) in messages
        ]

    def store(
        self, messages: imap4.MessageSet, flags: Iterable[str], mode: int, uid: bool
    ) -> dict[int, list[str]]:
        """Add flags (mode 1), take them away (-1) or replace them (0)."""
        changed = {}
        for place, message in self.fetch(messages, uid):
            if mode < 0:
                message.flags.difference_update(flags)
            else:
                message.flags = set(flags) | (message.flags if mode else set())
            changed[place] = message.getFlags()
        return changed

    def search(self, query: list[object], uid: bool) -> list[int]:
        """Return the places of the messages that a query finds; the server makes UIDs of them."""
        del uid
        last_uid, last_place = self._next_uid - 1, len(self._messages)
        return [
            place
            for place, message in enumerate(self._messages, 1)
            if matches(query, message, place, last_place, last_uid)
        ]
