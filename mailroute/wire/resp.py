"""Commands and replies of Redis (RESP, version 2): as much as whoever only reads has to know.

Follows the "Redis serialization protocol specification".  A client that does
not say HELLO is answered in version 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mailroute.wire.lines import LineReader, Stop

MAX_REPLY = 65536
"""Bytes of the values in a reply: far more than the fields of a route have together."""

MAX_ITEMS = 256
"""Values in a reply: a route has some twenty fields, each with its name."""

MAX_LINE = 1024
"""Bytes of a line between the values: the longest are the texts of errors."""

_CODE = re.compile(rb"[A-Z][A-Z0-9_]{0,31}(?= |\Z)")
_NUMBER = re.compile(rb"-?[0-9]{1,18}")


class Malformed(ValueError):
    """What the server sends is not the protocol."""


class TooLong(ValueError):
    """The reply passes a bound."""


@dataclass(frozen=True, slots=True)
class Error:
    """The server does not do what it was asked for.

    ``code`` is the first word of its text, such as ``WRONGTYPE``.  The rest is not
    kept: of a command that it does not know a server repeats the arguments.
    """

    code: str


Reply = bytes | int | Error | tuple["bytes | int | Error | None", ...] | None


def command(words: Iterable[bytes]) -> bytes:
    """Return a command; its words may hold any bytes."""
    listed = list(words)
    return b"*%d\r\n" % len(listed) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in listed)


class ReplyReader:
    """Cuts a byte stream into replies, whatever its segments.

    A status, such as OK, is bytes as any other text.
    """

    def __init__(self) -> None:
        self._lines = LineReader(MAX_LINE, strict=True)
        self._bulk: int | None = None  # bytes of the value that comes next
        self._items: list[bytes | int | Error | None] | None = None
        self._missing = 0
        self._size = 0  # bytes of the values so far

    def feed(self, data: bytes) -> None:
        """Take bytes from the server."""
        self._lines.feed(data)

    def __len__(self) -> int:
        """Bytes received that no reply given out contains yet."""
        return len(self._lines)

    def reply(self) -> Reply | Stop:
        """Return the next whole reply, or `Stop.MORE`.

        :raises Malformed: it is none; the stream cannot be followed any further.
        :raises TooLong: it passes a bound; likewise.
        """
        while True:
            value = self._next()
            if isinstance(value, Stop):
                return value
            if self._items is None:
                self._size = 0
                return value
            if isinstance(value, tuple):
                raise Malformed("an array within another")
            self._items.append(value)
            self._missing -= 1
            if not self._missing:
                items, self._items, self._size = tuple(self._items), None, 0
                return items

    def _next(self) -> Reply | Stop:
        """Return the next value, or an array that is empty; begin one that is not."""
        if self._bulk is not None:
            return self._value(self._bulk)
        line = self._lines.line(MAX_LINE)
        if line is Stop.MORE:
            return line
        if isinstance(line, Stop):
            raise TooLong("a line")
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            code = _CODE.match(rest)
            return Error("ERR" if code is None else code[0].decode("ascii"))
        if kind in (b":", b"$", b"*") and _NUMBER.fullmatch(rest):
            return self._numbered(kind, int(rest))
        raise Malformed("no reply")

    def _numbered(self, kind: bytes, number: int) -> Reply | Stop:
        """Take a line that is a number, or says how long a value or an array is."""
        if kind == b":":
            return number
        if number == -1:
            return None
        if number < 0:
            raise Malformed("a length below 0")
        if kind == b"*":
            return self._array(number)
        self._size += number
        if self._size > MAX_REPLY:
            raise TooLong("the values")
        self._bulk = number
        return self._value(number)

    def _array(self, count: int) -> Reply | Stop:
        if self._items is not None:
            raise Malformed("an array within another")
        if count > MAX_ITEMS:
            raise TooLong("the array")
        if not count:
            return ()
        self._items, self._missing = [], count
        return self._next()

    def _value(self, length: int) -> bytes | Stop:
        if len(self._lines) < length + 2:
            return Stop.MORE
        value = self._lines.take(length + 2)
        if not value.endswith(b"\r\n"):
            raise Malformed("a value with another length")
        self._bulk = None
        return value[:-2]
