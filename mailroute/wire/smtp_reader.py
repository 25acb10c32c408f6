"""Bounded readers of SMTP's and LMTP's commands and replies (RFC 5321 sections 2.3.8, 4.2, 4.5.3.1)."""

from __future__ import annotations

import enum
import re

MAX_COMMAND = 4096
"""Bytes in one command line.  RFC 5321 has 512; its extensions add to MAIL and RCPT (SIZE 26, 8BITMIME 17,
SMTPUTF8 10, DSN 500 each); with paths twice as long as RFC 5321's this is beyond what any client sends."""

MAX_REPLY = 4096
"""Bytes in one reply, all its lines together."""

MAX_REPLY_LINES = 64
"""Lines in one reply: EHLO's have some twenty."""


class Stop(enum.Enum):
    """Why the reader has no line to give."""

    MORE = "more bytes are needed"
    TOO_LONG = "a bound was passed; the stream cannot be followed any further"


class LineReader:
    """Cuts a byte stream into lines that end with CR LF, and with nothing else.

    :param longest: bytes that a line may have, with its end.
    """

    __slots__ = ("_buffer", "_longest", "_scanned")

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._buffer = bytearray()
        self._scanned = 0  # so that a line that comes byte by byte is not searched again and again

    def __len__(self) -> int:
        """How many bytes it holds."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        self._buffer += data

    def line(self) -> bytes | Stop:
        """Return the next line without its end; a CR or LF in it stood alone."""
        end = self._buffer.find(b"\r\n", self._scanned, self._longest)
        if end < 0:
            if len(self._buffer) >= self._longest:
                return Stop.TOO_LONG
            self._scanned = max(len(self._buffer) - 1, 0)
            return Stop.MORE
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        self._scanned = 0
        return line

    def take(self, at_most: int) -> bytes:
        """Return the next bytes, whatever they are."""
        data = bytes(self._buffer[:at_most])
        del self._buffer[:at_most]
        self._scanned = 0
        return data

    def give_back(self, data: bytes) -> None:
        """Take bytes that came before those that it holds."""
        self._buffer[:0] = data
        self._scanned = 0

    def forget(self) -> None:
        """Drop what it holds."""
        self._buffer.clear()
        self._scanned = 0


class BadReply(ValueError):
    """What came is no reply; the text says why."""


_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)

WholeReply = tuple[int, tuple[bytes, ...]]
"""A reply's code and the texts of its lines."""


class ReplyReader:
    """Cuts a server's byte stream into replies of one or more lines."""

    __slots__ = ("_code", "_lines", "_reader", "_size")

    def __init__(self) -> None:
        self._reader = LineReader(MAX_REPLY)
        self.forget()

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        self._reader.feed(data)

    def forget(self) -> None:
        """Drop what it holds."""
        self._reader.forget()
        self._code = b""
        self._lines: list[bytes] = []
        self._size = 0

    def reply(self) -> WholeReply | None:
        """Return the next reply, ``None`` if more bytes are needed for one.

        :raises BadReply: no reply can come of what there is; the stream cannot be followed any further.
        """
        while True:
            line = self._reader.line()
            if line is Stop.MORE:
                return None
            if isinstance(line, Stop):
                raise BadReply(f"a reply of over {MAX_REPLY} bytes")
            found = _REPLY_LINE.fullmatch(line)
            if found is None:
                raise BadReply("a line that is no reply")
            code, more, text = found[1], found[2], found[3] or b""
            self._size += len(line)
            self._lines.append(text)
            if self._code not in (b"", code):
                raise BadReply("a reply whose lines have different codes")
            if self._size > MAX_REPLY or len(self._lines) > MAX_REPLY_LINES:
                raise BadReply(f"a reply of over {MAX_REPLY} bytes or {MAX_REPLY_LINES} lines")
            if more == b"-":
                self._code = code
                continue
            lines, self._lines, self._size, self._code = tuple(self._lines), [], 0, b""
            return int(code), lines
