"""A bounded reader of lines with literals (RFC 9051 section 4.3, RFC 7888; RFC 5804 section 4).

IMAP and ManageSieve share it, and both directions.  A command or response
comes out as its *parts*: text and literals in turn, beginning and ending with
text, the ``{n}`` of each literal taken off.  ``a LOGIN {3}`` CR LF ``bob {1}`` CR LF ``x`` CR LF gives
``(b"a LOGIN ", b"bob", b" ", b"x", b"")``.
"""

from __future__ import annotations

import re

from mailroute.wire.lines import LineReader, Parts, Stop

MAX_LINE = 8192
"""Bytes in one line of text; what Dovecot takes, and far above what any client sends before login."""

MAX_LITERAL = 8192
"""Bytes in one literal before login, unless the caller has another bound: a user name or a password."""

MAX_UNIT = 16384
"""Bytes in one whole command or response, literals included, unless the caller has another bound."""

MAX_PARTS = 64
"""Parts in one command: an ID of 30 pairs written in literals would be at the edge."""

_LITERAL = re.compile(rb"\{([0-9]{1,10})(\+?)\}\Z")


_MORE = Stop.MORE  # Python 3.11 is slow to find a member in its class


class LiteralReader(LineReader):
    """Cuts a byte stream into commands or responses, whatever its segments.

    :param synchronising: the peer waits for a go-ahead before a ``{n}``
        literal, as IMAP's clients do; servers send theirs at once.
    :param literal: bytes that one literal may have.
    :param unit: bytes that one command or response may have, literals included.
    """

    __slots__ = ("_max_literal", "_max_unit", "_parts", "_size", "_synchronising", "_wanted")

    def __init__(self, *, synchronising: bool, literal: int = MAX_LITERAL, unit: int = MAX_UNIT) -> None:
        super().__init__(MAX_LINE)
        self._synchronising = synchronising
        self._max_literal = literal
        self._max_unit = unit
        self._parts: list[bytes] = []
        self._size = 0
        self._wanted: int | None = None

    def forget(self) -> None:
        """Drop everything received and not yet given out."""
        self._buffer = b""
        self._at = 0
        self._start_over()

    def unit(self) -> Parts | Stop:
        """Return the next whole command or response as its parts, or why there is none.

        After `Stop.LITERAL` and `Stop.TOO_LONG_LITERAL`, `peek` shows what has
        come; call `unit` again to read the literal, or `abandon` to refuse it.
        """
        buffer, at = self._buffer, self._at
        if not self._parts:
            # Nearly all units are one line, and behind them there is nothing.
            if at == len(buffer):
                return _MORE
            end = buffer.find(b"\n", self._scanned)
            if at <= end <= at + MAX_LINE:
                line = buffer[at:end].removesuffix(b"\r")
                if not line.endswith(b"}"):
                    self._at = self._scanned = end + 1
                    return (line,)
        return self._unit_with_literals()

    def _unit_with_literals(self) -> Parts | Stop:
        while True:
            if self._wanted is not None:
                if len(self) < self._wanted:
                    return Stop.MORE
                self._take_literal(self._wanted)
            line = self.line(MAX_LINE)
            if isinstance(line, Stop):
                return line
            stop = self._add_line(line)
            if stop is not None:
                return stop
            if self._wanted is None:
                parts = tuple(self._parts)
                self._start_over()
                return parts

    def peek(self) -> Parts:
        """The parts of an unfinished unit so far, the announced literal left out."""
        return tuple(self._parts)

    def abandon(self) -> None:
        """Give up an unfinished unit; the literal it announced will not be sent."""
        self._start_over()

    def _start_over(self) -> None:
        self._parts = []
        self._scanned = self._at
        self._size = 0
        self._wanted = None

    def _take_literal(self, size: int) -> None:
        self._parts.append(self._buffer[self._at : self._at + size])
        self._at += size
        self._scanned = self._at
        self._wanted = None

    def _add_line(self, line: bytes) -> Stop | None:
        self._size += len(line)
        literal = _LITERAL.search(line)
        if literal is None:
            self._parts.append(line)
            return Stop.TOO_LONG if self._size > self._max_unit else None
        self._parts.append(line[: literal.start()])
        size = int(literal[1])
        waits = self._synchronising and not literal[2]
        self._size += size
        if size > self._max_literal or self._size > self._max_unit or len(self._parts) > MAX_PARTS:
            return Stop.TOO_LONG_LITERAL if waits else Stop.TOO_LONG
        self._wanted = size
        return Stop.LITERAL if waits else None
