"""A bounded reader of lines, and what all line protocols' commands have in common."""

from __future__ import annotations

import enum
import re

Parts = tuple[bytes, ...]
"""A command or response: a line, and where the protocol knows literals, these and the text behind them."""

_PROXY = re.compile(rb"PROXY (?:TCP[46]|UNKNOWN)(?: |\Z)")
_IN_SIGNATURE = b"\0"

_HTTP = re.compile(rb"[A-Za-z]+ [^ ]+ HTTP/[0-9.]+\s*\Z", re.IGNORECASE)


class Stop(enum.Enum):
    """Why a reader has nothing whole to give."""

    MORE = "more bytes are needed"
    LITERAL = "a synchronising literal waits for a go-ahead"
    TOO_LONG = "a bound was passed; the stream cannot be followed any further"
    TOO_LONG_LITERAL = "a synchronising literal over the bound; it has not been sent yet"


class Malformed(Exception):
    """A command is not as the grammar wants it; the text may be shown to the client."""


class LineReader:
    """Cuts a byte stream into lines, whatever its segments.

    :param limit: bytes that a line may have.
    :param strict: a line ends with CR LF alone; unless it is, a bare LF will do.
    """

    __slots__ = ("_at", "_buffer", "_end", "_limit", "_scanned")

    def __init__(self, limit: int, *, strict: bool = False) -> None:
        self._limit = limit
        self._end = b"\r\n" if strict else b"\n"
        self._buffer = b""
        self._at = 0  # where in it the bytes begin that are in no unit yet
        self._scanned = 0  # so that a line that comes byte by byte is not searched again and again

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer."""
        self._buffer = self._buffer[self._at :] + data
        self._scanned -= self._at
        self._at = 0

    def __len__(self) -> int:
        """Bytes received that no unit given out contains yet."""
        return len(self._buffer) - self._at

    def rest(self) -> bytes:
        """Return, and forget, the bytes behind the last unit given out."""
        rest = self._buffer[self._at :]
        self.forget()
        return rest

    def forget(self) -> None:
        """Drop everything received and not yet given out."""
        self._buffer = b""
        self._at = self._scanned = 0

    def take(self, at_most: int) -> bytes:
        """Return the next bytes, whatever they are."""
        data = self._buffer[self._at : self._at + at_most]
        self._at = self._scanned = self._at + len(data)
        return data

    def give_back(self, data: bytes) -> None:
        """Take bytes that came before those that it holds."""
        if data:
            self._buffer = data + self._buffer[self._at :]
            self._at = self._scanned = 0

    def line(self, limit: int) -> bytes | Stop:
        """Return the next line without its line end, whatever it holds.

        :param limit: bytes that it may have.
        """
        buffer, at, line_end = self._buffer, self._at, self._end
        end = buffer.find(line_end, self._scanned)
        if end < 0:
            # The first half of an end may be there.
            self._scanned = max(at, len(buffer) + 1 - len(line_end))
            return Stop.TOO_LONG if len(buffer) - at >= limit + len(line_end) else Stop.MORE
        if end - at > limit:
            return Stop.TOO_LONG
        self._at = self._scanned = end + len(line_end)
        return buffer[at:end].removesuffix(b"\r") if line_end == b"\n" else buffer[at:end]

    def unit(self) -> Parts | Stop:
        """Return the next whole command or response, or why there is none: here, a line by itself."""
        line = self.line(self._limit)
        return line if isinstance(line, Stop) else (line,)


def is_http(line: bytes) -> bool:
    """Whether a line is a request of HTTP's: a browser was made to post a form here, and must get no echo."""
    return _HTTP.match(line) is not None


def is_proxy_header(line: bytes) -> bool:
    """Whether a line is a PROXY header of version 1, or the third one in the signature of version 2.

    That signature is made of what no protocol takes; this is the only line in it that no client sends.
    """
    return line == _IN_SIGNATURE or _PROXY.match(line) is not None
