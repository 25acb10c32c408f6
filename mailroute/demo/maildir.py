"""An account's INBOX as a Maildir, which IMAP, POP3 and deliveries share."""

# The methods are named as twisted.mail's interfaces name them.
# ruff: noqa: N802

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from twisted.internet.defer import Deferred
from twisted.mail.maildir import MaildirMailbox, initializeMaildir

from mailroute.demo.mailbox import Mailbox, Message


class Inbox(Mailbox):
    """A mailbox whose messages are the files of a Maildir.

    Files that others put there or take away are noticed by `refresh`.  Flags are
    kept in memory: the mail lives no longer than the process.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        initializeMaildir(bytes(folder))
        self._files: dict[Path, Message] = {}
        self._numbers = itertools.count(1)

    def add(self, content: bytes, flags: Iterable[str] = (), date: str | None = None) -> int:
        """Take a message and return its UID."""
        path = self.folder / "new" / f"{next(self._numbers):06}.demo"
        path.write_bytes(content)
        uid = super().add(content, flags, date)
        self._files[path] = self._messages[-1]
        return uid

    def refresh(self) -> None:
        """Take what has been delivered; forget what is gone, unless somebody has the mailbox open."""
        there = {path for name in ("cur", "new") for path in (self.folder / name).iterdir()}
        if not self._listeners:
            for path in self._files.keys() - there:
                self._messages.remove(self._files.pop(path))
        for path in sorted(there - self._files.keys(), key=lambda path: path.stat().st_mtime_ns):
            super().add(_with_crlf(path.read_bytes()), ["\\Recent"])
            self._files[path] = self._messages[-1]

    def expunge(self) -> list[int]:
        """Remove the deleted messages, their files too."""
        places = super().expunge()
        for path, message in list(self._files.items()):
            if message not in self._messages:
                path.unlink(missing_ok=True)
                del self._files[path]
        return places

    def deliver(self, content: bytes) -> Deferred[None]:
        """Put a message into the Maildir; those who have the mailbox open are told."""
        delivered = MaildirMailbox(bytes(self.folder)).appendMessage(content)
        return delivered.addCallback(lambda _: self.refresh())


class PopMailbox(MaildirMailbox):
    """A Maildir as POP3 wants it: lines end with CR LF, and deletions count at the end of a session."""

    def __init__(self, folder: Path, changed: Callable[[], None]) -> None:
        super().__init__(bytes(folder))
        self._changed = changed
        self._deleted: dict[int, bytes] = {}

    def getMessage(self, i: int) -> IO[bytes]:  # type: ignore[override]
        """Return a message with the ends of lines that twisted.mail's server makes of those that it wants."""
        return io.BytesIO(_content(self.list[i]).replace(b"\r\n", b"\n"))

    def listMessages(self, i: int | None = None) -> int | list[int]:  # type: ignore[override]
        """Return the sizes that the messages have on the way, 0 for one that is deleted."""
        if i is None:
            return [self._size(path) for path in self.list]
        return self._size(self.list[i])

    @staticmethod
    def _size(path: int | bytes) -> int:
        return len(_content(path)) if path else 0

    def deleteMessage(self, i: int) -> None:
        """Have the message gone at the end of the session."""
        path = self.list[i]
        if isinstance(path, int):
            raise IndexError("the message is deleted")
        self._deleted[i] = path
        self.list[i] = 0

    def undeleteMessages(self) -> None:
        """Keep all messages after all."""
        for index, path in self._deleted.items():
            self.list[index] = path
        self._deleted.clear()

    def sync(self) -> None:
        """Have the messages gone that were deleted."""
        for path in self._deleted.values():
            Path(path.decode()).unlink(missing_ok=True)
        self._deleted.clear()
        self._changed()


def _content(path: int | bytes) -> bytes:
    if isinstance(path, int):
        raise IndexError("the message is deleted")
    return _with_crlf(Path(path.decode()).read_bytes())


def _with_crlf(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
