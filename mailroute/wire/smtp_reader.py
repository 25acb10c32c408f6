"""A bounded reader of SMTP's and LMTP's replies (RFC 5321 section 4.2)."""

from __future__ import annotations

import re

from mailroute.wire.lines import LineReader, Malformed, Parts, Stop

MAX_REPLY = 4096
"""Bytes in one reply, all its lines together."""

MAX_REPLY_LINES = 64
"""Lines in one reply: EHLO's have some twenty."""

_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)


class ReplyReader(LineReader):
    """Cuts a server's byte stream into replies of one or more lines; these end with CR LF alone."""

    __slots__ = ("_code", "_size", "_texts")

    def __init__(self) -> None:
        super().__init__(MAX_REPLY, strict=True)
        self._begin()

    def _begin(self) -> None:
        self._code = b""
        self._texts: list[bytes] = []
        self._size = 0

    def forget(self) -> None:
        """Drop everything received and not yet given out."""
        super().forget()
        self._begin()

    def unit(self) -> Parts | Stop:
        """Return the next whole reply: its code, and the text of each line.

        :raises Malformed: no reply can come of what there is; the stream cannot be followed any further.
        """
        while True:
            line = self.line(MAX_REPLY)
            if line is Stop.MORE:
                return line
            if isinstance(line, Stop):
                raise Malformed(f"a reply of over {MAX_REPLY} bytes")
            found = _REPLY_LINE.fullmatch(line)
            if found is None:
                raise Malformed("a line that is no reply")
            code, more, text = found[1], found[2], found[3] or b""
            self._size += len(line)
            self._texts.append(text)
            if self._code not in (b"", code):
                raise Malformed("a reply whose lines have different codes")
            if self._size > MAX_REPLY or len(self._texts) > MAX_REPLY_LINES:
                raise Malformed(f"a reply of over {MAX_REPLY} bytes or {MAX_REPLY_LINES} lines")
            if more == b"-":
                self._code = code
                continue
            reply = (code, *self._texts)
            self._begin()
            return reply
