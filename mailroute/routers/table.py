"""The ``table`` source: a file with a line a user, read again when it changes.

A line is ``name backend [name-at-the-backend]``, fields apart by spaces or
tabs; a field that starts with ``#`` begins a comment; the file is UTF-8.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.events import Lookup, Route
from mailroute.interfaces import IRouter, IRouteSource
from mailroute.routers.context import (
    CONTROL,
    BadOption,
    SourceContext,
    only,
    text,
    unknown_backend,
)

POLL = 2.0
"""Seconds between two looks at the file."""

SETTLE = 0.5
"""Seconds for which a changed file must have stayed the same before it is read.

Whoever writes it in place is mostly done by then, and it is far longer than
the tick of the file system's clock, within which two writes look like one.
"""

_MOST_SETTLES = 10  # then read it all the same, lest a file that never rests is never read

Users = dict[str, "Route | str"]
"""What a table holds, by normalised name.

All users of one backend who keep their name share one `Route`.  One who has
another name there is the string ``backend name``: a `Route` each would cost
twice the memory, and Python's garbage collector would visit each of them.
"""

Signature = tuple[int, ...]
"""What a file's inode says of its content: if it is the same, so is the content."""


class BadTable(Exception):
    """The file cannot be a table; the message names file, line and reason."""


class Torn(Exception):
    """The file was written while it was being read."""


# --- reading -------------------------------------------------------------------


def parse(lines: Iterable[bytes], context: SourceContext, name: str) -> Users:
    """Read a table's lines; ``name`` is the file's, for the message.

    :raises BadTable: names the first bad line, and how many more there are.
    """
    users: Users = {}
    reader = _LineReader(context)
    first, bad = "", 0
    for number, line in enumerate(lines, 1):
        try:
            reader.read(line, users)
        except ValueError as error:
            first = first or f"{name}:{number}: {error}"
            bad += 1
    if bad:
        raise BadTable(first if bad == 1 else f"{first} (and {bad - 1} more bad lines)")
    return users


class _LineReader:
    """Reads lines; one thing for all, so that they share what is the same in all."""

    def __init__(self, context: SourceContext) -> None:
        self._context = context
        self._routes = {name: Route(name) for name in context.backends}

    def read(self, line: bytes, users: Users) -> None:
        """Add a line to the users.

        :raises ValueError: says what is wrong with it.
        """
        try:
            decoded = line.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("not UTF-8") from None
        decoded = decoded.rstrip("\r\n").replace("\t", " ")
        if CONTROL.search(decoded):
            raise ValueError("a control character")
        # Only the space parts fields: str.split() would take every Unicode blank.
        fields = [part for part in decoded.split(" ") if part]
        if "#" in decoded:
            fields = _without_comment(fields)
        if not fields:
            return
        if len(fields) not in (2, 3):
            fault = "the backend is missing" if len(fields) == 1 else f"{len(fields)} fields"
            raise ValueError(f"{fault}: a line is name backend [name-at-the-backend]")
        route = self._routes.get(fields[1])
        if route is None:
            raise ValueError(unknown_backend(fields[1], self._routes))
        name = self._context.normalise(fields[0])
        if name in users:
            raise ValueError(f"{name} is listed twice")
        users[name] = route if len(fields) == 2 else f"{fields[1]} {fields[2]}"


def _without_comment(fields: list[str]) -> list[str]:
    for index, part in enumerate(fields):
        if part.startswith("#"):
            return fields[:index]
    return fields


def _signature(found: os.stat_result) -> Signature:
    # ctime too: it moves when a tool puts the old mtime back.
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def look(path: Path) -> Signature | str:
    """Return the file's signature, or why it cannot be had."""
    try:
        return _signature(path.stat())
    except OSError as error:
        return error.strerror or str(error)


def read(path: Path, context: SourceContext, *, in_background: bool = False) -> tuple[Users, Signature]:
    """Read the file; ``in_background`` takes longer and leaves the interpreter to others meanwhile.

    :raises BadTable: it is no table.
    :raises Torn: it was written meanwhile.
    :raises OSError: it cannot be read.
    """
    with path.open("rb") as file:
        signature = _signature(os.fstat(file.fileno()))
        # All at once: the parser then never waits for the disk, and each wait for
        # it would set back the reactor's turn at the interpreter, without end.
        content = file.read()
    context.copies.keep(path, content)
    # A new file under the old name counts as well: hence the path, not the open file.
    if look(path) != signature:
        raise Torn(f"{path} was written while it was being read")
    lines = _lines(content)
    return parse(_with_pauses(lines) if in_background else lines, context, str(path)), signature


def _lines(content: bytes) -> Iterable[bytes]:
    return BytesIO(content.removeprefix(b"\xef\xbb\xbf"))  # some editors' UTF-8 mark


def _with_pauses(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Let the reactor's thread run about every two milliseconds; by itself Python makes it wait for five."""
    for number, line in enumerate(lines):
        if number % 1000 == 999:
            time.sleep(0.0005)
        yield line


# --- serving -------------------------------------------------------------------


@implementer(IRouter)
class TableRouter(Service):
    """Knows the users of a file; while it runs as a service, it reads the file again when it changes.

    A changed file that is no table, or a file that is gone, is logged once
    and changes nothing: the users read before stay.

    :raises BadTable: the file is no table.
    :raises OSError: the file cannot be read.
    """

    _log = Logger()
    _watching: Deferred[None] | None = None

    def __init__(self, path: Path, context: SourceContext) -> None:
        self.path = path
        self._context = context
        self._users: Users
        self._seen: Signature | str = ""
        self._read_first()

    def _read_first(self) -> None:
        try:
            self._users, signature = read(self.path, self._context)
        except Torn:
            self._users, signature = read(self.path, self._context)
        except (OSError, BadTable):
            copy = self._context.copies.of(self.path)
            if copy is None:
                raise
            # Somebody could read it a moment ago; `_catch_up` will tell what is wrong with it.
            self._users = parse(_lines(copy), self._context, str(self.path))
            return
        # A write that follows within the tick of the file system's clock cannot be
        # told from the one that was read: a file this young is read a second time.
        if time.time() - max(signature[-2:]) / 1e9 > POLL:
            self._seen = signature

    def route(self, lookup: Lookup) -> Route | None:
        """Return the user's route, if the table has one."""
        found = self._users.get(lookup.user)
        if isinstance(found, str):
            backend, _, name = found.partition(" ")
            return Route(backend, name)
        return found

    def __len__(self) -> int:
        return len(self._users)

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return f"users are looked up in {self.path}, which has {len(self)} now"

    def startService(self) -> None:
        """Begin to watch the file.

        :raises BadOption: it was read long ago in another process, and is no table any more.
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
            self._users, self._seen = read(self.path, self._context)
        except Torn:
            pass  # the first poll finds it changed
        except OSError as error:
            self._keep(f"cannot read {self.path}: {error.strerror}", found)
        except BadTable as error:
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
        again = partial(read, self.path, self._context, in_background=True)
        try:
            users, signature = await self._context.in_thread(again)
        except Torn:
            return  # the next poll finds it changed again
        except OSError as error:
            self._keep(f"cannot read {self.path}: {error.strerror}", found)
        except BadTable as error:
            self._keep(str(error), found)
        else:
            self._users, self._seen = users, signature
            self._log.info("read {path} again: {users} users", path=str(self.path), users=len(users))

    def _keep(self, fault: str, seen: Signature | str) -> None:
        self._seen = seen
        self._log.error("{fault}; the {users} users read before stay", fault=fault, users=len(self._users))

    def _look(self) -> Deferred[Signature | str]:
        return self._context.in_thread(partial(look, self.path))

    def _sleep(self, seconds: float) -> Deferred[None]:
        return deferLater(self._context.clock, seconds, lambda: None)


def _unless_cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)


@implementer(IRouteSource)
class TableSource:
    """Makes a `TableRouter` from the key ``file``."""

    name = "table"

    def router(self, options: Mapping[str, object], context: object) -> IRouter:
        """Make the router; see `IRouteSource.router`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        only(options, ("file",))
        path = context.folder / text(options, "file")
        try:
            return TableRouter(path, context)
        except OSError as error:
            raise BadOption("file", f"cannot read {path}: {error.strerror or error}") from None
        except (BadTable, Torn) as error:
            raise BadOption("file", str(error)) from None
