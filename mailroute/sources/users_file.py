"""A file with a line a user, read again when it changes."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailroute.sources.context import BadOption, SourceContext, text

POLL = 2.0
"""Seconds between two looks at the file."""

SETTLE = 0.5
"""Seconds for which a changed file must have stayed the same before it is read.

Whoever writes it in place is mostly done by then, and it is far longer than
the tick of the file system's clock, within which two writes look like one.
"""

_MOST_SETTLES = 10  # then read it all the same, lest a file that never rests is never read

Signature = tuple[int, ...]
"""What a file's inode says of its content: if it is the same, so is the content."""

Entry = TypeVar("Entry")


class BadUsersFile(Exception):
    """The file is not what it should be; the message names file, line and reason."""


class Torn(Exception):
    """The file was written while it was being read."""


class LineReader(ABC, Generic[Entry]):
    """Reads the lines of one run through a file; ``users`` has what it has found, by normalised names."""

    digest = b""
    """A hash of all that was read."""

    def __init__(self) -> None:
        self.users: dict[str, Entry] = {}

    @abstractmethod
    def add(self, line: bytes) -> None:
        """Add a line's user.

        :raises ValueError: says what is wrong with it.
        """


# --- reading -------------------------------------------------------------------


def parse(lines: Iterable[bytes], reader: LineReader[Entry], name: str) -> None:
    """Read a file's lines; ``name`` is the file's, for the message.

    :raises BadUsersFile: names the first bad line, and how many more there are.
    """
    first, bad = "", 0
    for number, line in enumerate(lines, 1):
        try:
            reader.add(line)
        except ValueError as error:
            first = first or f"{name}:{number}: {error}"
            bad += 1
    if bad:
        raise BadUsersFile(first if bad == 1 else f"{first} (and {bad - 1} more bad lines)")


def decoded(line: bytes) -> str:
    """Return a line's text without its end.

    :raises ValueError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _signature(found: os.stat_result) -> Signature:
    # ctime too: it moves when a tool puts the old mtime back.
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def look(path: Path) -> Signature | str:
    """Return the file's signature, or why it cannot be had."""
    try:
        return _signature(path.stat())
    except OSError as error:
        return error.strerror or str(error)


def read(
    path: Path, context: SourceContext, reader: LineReader[Entry], *, in_background: bool = False
) -> Signature:
    """Read the file, and return its signature.

    :param in_background: take longer and leave the interpreter to others meanwhile.
    :raises BadUsersFile: it is not what it should be.
    :raises Torn: it was written meanwhile.
    :raises OSError: it cannot be read.
    """
    with path.open("rb") as file:
        signature = _signature(os.fstat(file.fileno()))
        # All at once: the parser then never waits for the disk, and each wait for
        # it would set back the reactor's turn at the interpreter, without end.
        content = file.read()
    reader.digest = blake2b(content).digest()
    context.copies.keep(path, content)
    # A new file under the old name counts as well: hence the path, not the open file.
    if look(path) != signature:
        raise Torn(f"{path} was written while it was being read")
    lines = _lines(content)
    parse(_with_pauses(lines) if in_background else lines, reader, str(path))
    return signature


def _lines(content: bytes) -> Iterable[bytes]:
    return BytesIO(content.removeprefix(b"\xef\xbb\xbf"))  # some editors' UTF-8 mark


def _with_pauses(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Let the reactor's thread run about every two milliseconds; by itself Python makes it wait for five."""
    for number, line in enumerate(lines):
        if number % 1000 == 999:
            time.sleep(0.0005)
        yield line


# --- serving -------------------------------------------------------------------


class UsersFile(Service, Generic[Entry]):
    """Has the users of a file; while it runs as a service, it reads the file again when it changes.

    A changed file that is not what it should be, or a file that is gone, is
    logged once and changes nothing: the users read before stay.  Each kind of
    file is a class of its own, which says how its lines are read (`_reader`).

    :raises BadUsersFile: the file is not what it should be.
    :raises OSError: the file cannot be read.
    """

    _log = Logger()
    _watching: Deferred[None] | None = None

    def __init__(self, path: Path, context: SourceContext) -> None:
        self.path = path
        self._context = context
        self.users: dict[str, Entry]
        """What the file has, by the users' normalised names."""
        self._seen: Signature | str = ""
        self._digest = b""
        self._read_first()

    @classmethod
    def of(cls, options: Mapping[str, object], context: SourceContext, *more: Any) -> Self:
        """Make one from the option ``file``.

        :param more: what the class takes besides.
        :raises BadOption: says what is wrong with it, or with the file.
        """
        path = context.folder / text(options, "file")
        try:
            return cls(path, context, *more)
        except OSError as error:
            raise BadOption("file", f"cannot read {path}: {error.strerror or error}") from None
        except (BadUsersFile, Torn) as error:
            raise BadOption("file", str(error)) from None

    @abstractmethod
    def _reader(self) -> LineReader[Entry]:
        """Return what reads the lines of one run through the file."""

    def _take(self, reader: LineReader[Entry]) -> None:
        """Have the users that have been read."""
        self.users = reader.users

    def _read_now(self) -> Signature:
        reader = self._reader()
        signature = read(self.path, self._context, reader)
        self._digest = reader.digest
        self._take(reader)
        return signature

    def _read_first(self) -> None:
        try:
            signature = self._read_now()
        except Torn:
            signature = self._read_now()
        except (OSError, BadUsersFile):
            copy = self._context.copies.of(self.path)
            if copy is None:
                raise
            # Somebody could read it a moment ago; `_catch_up` will tell what is wrong with it.
            reader = self._reader()
            parse(_lines(copy), reader, str(self.path))
            self._take(reader)
            return
        # A write that follows within the tick of the file system's clock cannot be
        # told from the one that was read: a file this young is read a second time.
        if time.time() - max(signature[-2:]) / 1e9 > POLL:
            self._seen = signature

    def __len__(self) -> int:
        return len(self.users)

    def __bool__(self) -> bool:
        return True

    def startService(self) -> None:
        """Begin to watch the file.

        :raises BadOption: it was read long ago in another process, and is not what it should be any more.
        """
        super().startService()
        if self._context.copies.of(self.path) is not None:
            self._catch_up()
        self._watching = Deferred.fromCoroutine(self._watch())
        self._watching.addErrback(_unless_cancelled)

    def stopService(self) -> None:
        """Watch it no longer."""
        super().stopService()
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()

    def _catch_up(self) -> None:
        """Read a file that has changed since another process has read it.

        The other workers may know the changes: going on with users of long
        ago would send mail to where they no longer live.
        """
        found = look(self.path)
        if found == self._seen:
            return
        try:
            self._seen = self._read_now()
        except Torn:
            pass  # the first poll finds it changed
        except OSError as error:
            self._keep(f"cannot read {self.path}: {error.strerror}", found)
        except BadUsersFile as error:
            raise BadOption("file", str(error)) from None

    async def _watch(self) -> None:
        while True:
            await self._sleep(POLL)
            try:
                found = await self._look()
                if found != self._seen:
                    await self._changed(await self._settled(found))
            except CancelledError:
                raise
            except Exception:
                self._log.failure("cannot watch {path}; trying again", path=str(self.path))

    async def _settled(self, found: Signature | str) -> Signature | str:
        """Wait until the file stays the same for a moment."""
        for _ in range(_MOST_SETTLES):
            await self._sleep(SETTLE)
            before, found = found, await self._look()
            if found == before:
                break
        return found

    async def _changed(self, found: Signature | str) -> None:
        if isinstance(found, str):
            self._keep(f"cannot read {self.path}: {found}", found)
            return
        reader = self._reader()
        again = partial(read, self.path, self._context, reader, in_background=True)
        try:
            signature = await self._context.in_thread(again)
        except Torn:
            return  # the next poll finds it changed again
        except OSError as error:
            self._keep(f"cannot read {self.path}: {error.strerror}", found)
        except BadUsersFile as error:
            self._keep(str(error), found)
        else:
            # The second reading of a young file is nobody's business, unless something comes of it.
            told = self._seen != "" or reader.digest != self._digest
            self._take(reader)
            self._seen, self._digest = signature, reader.digest
            if told:
                self._log.info("read {path} again: {users} users", path=str(self.path), users=len(self))

    def _keep(self, fault: str, seen: Signature | str) -> None:
        self._seen = seen
        self._log.error("{fault}; the {users} users read before stay", fault=fault, users=len(self.users))

    def _look(self) -> Deferred[Signature | str]:
        return self._context.in_thread(partial(look, self.path))

    def _sleep(self, seconds: float) -> Deferred[None]:
        return deferLater(self._context.clock, seconds, lambda: None)


def _unless_cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)
