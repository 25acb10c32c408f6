"""A message on the wire, as a stream: DATA and its dots (RFC 5321 section 4.5.2), BDAT's content (RFC 3030).

CR LF ends a line, and CR LF . CR LF the message; nothing else does.  Servers
that took a bare CR or LF for a line's end, beside others that did not, have
let strangers put a second message with any sender behind the first ("SMTP
smuggling", 2023).  So whatever a receiver might take for another end than
ours makes the message bad, and a bad message is not passed on any further.
"""

from __future__ import annotations

_END = b"\r\n.\r\n"

_PREFIXES = tuple(_END[:length] for length in (4, 3, 2, 1))


def _is_bad(text: bytes) -> bool:
    """Whether whole lines, or pieces of such, have a CR or LF by itself, or a line that begins with NUL.

    CR LF NUL . CR LF was one of the ends of 2023.
    """
    ends = text.count(b"\r\n")
    return text.count(b"\r") != ends or text.count(b"\n") != ends or b"\n\0" in text


class DataReader:
    """Follows a message that is sent with DATA to its end.

    What it gives is as it stood on the wire, with its dots doubled, and never
    ends in the middle of what could be the message's end.

    :ivar bad: the message has what none may have; nothing more of it is given.
    :ivar done: the message's end has come.
    """

    __slots__ = ("_held", "_virtual", "bad", "done")

    def __init__(self) -> None:
        # DATA's own line end is the first half of an empty message's end.
        self._held = b"\r\n"
        self._virtual = 2
        self.bad = self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take bytes; return what may be passed on, and what stands behind the message's end."""
        text = self._held + data
        end = text.find(_END)
        if end >= 0:
            self.done, self._held = True, b""
            text, rest = text[: end + 2], text[end + 5 :]
        else:
            self._held = next((prefix for prefix in _PREFIXES if text.endswith(prefix)), b"")
            text, rest = text[: len(text) - len(self._held)], b""
        # A line of a dot and NULs is a dot to whoever drops these.
        self.bad = self.bad or _is_bad(text) or b"\n.\0" in text
        if text and self._virtual:
            text, self._virtual = text[2:], 0
        return (b"" if self.bad else text), rest


class ContentCheck:
    """Looks at a message whose size is told beforehand, as BDAT's, piece by piece."""

    __slots__ = ("_cr", "_line_begins")

    def __init__(self) -> None:
        self._cr = b""
        self._line_begins = True

    def is_bad(self, data: bytes) -> bool:
        """Whether the message, so far, has what none may have; a CR at the end may still get its LF."""
        text = self._cr + data
        self._cr = text[-1:] if text.endswith(b"\r") else b""
        text = text[: len(text) - len(self._cr)]
        bad = _is_bad(text) or (self._line_begins and text.startswith(b"\0"))
        if text:
            self._line_begins = text.endswith(b"\n")
        return bad

    def ends_badly(self) -> bool:
        """Whether the message may not end here."""
        return bool(self._cr)


class DotStuffer:
    """Writes a message that was looked at by a `ContentCheck` in the form that DATA wants."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b"\n"  # the last byte written

    def encode(self, data: bytes) -> bytes:
        """Return a piece of the message with its dots doubled."""
        if not data:
            return b""
        text = data.replace(b"\n.", b"\n..")
        if self._tail == b"\n" and text.startswith(b"."):
            text = b"." + text
        self._tail = data[-1:]
        return text

    def end(self) -> bytes:
        """Return the message's end; a last line without an end gets one, as DATA knows no other."""
        return b".\r\n" if self._tail == b"\n" else b"\r\n.\r\n"
