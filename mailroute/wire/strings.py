"""Strings, quoted or as literals, of IMAP and ManageSieve (RFC 9051 section 4.3, RFC 5804 section 4)."""

from __future__ import annotations

import re

from mailroute.wire.lines import Malformed, Parts

_SPACE = re.compile(rb" +")
_QUOTED = re.compile(rb'"((?:[^"\\\x00\r\n]|\\["\\])*)"')
_ESCAPE = re.compile(rb'\\(["\\])')


class Strings:
    """Reads what a command or response holds, one thing after the other.

    Every method raises `Malformed` if the next thing is not what it reads.
    """

    __slots__ = ("_at", "_more", "_text")

    def __init__(self, parts: Parts) -> None:
        self._text = parts[0]  # the text that is being read; behind its end stands a literal
        self._more = parts[1:]  # that literal, the text behind it, and so on
        self._at = 0

    def string(self) -> bytes:
        """Read a space and a string, quoted or literal."""
        self._space()
        return self._string()

    def end(self) -> None:
        """Nothing but spaces may be left."""
        if not self._at_end():
            raise Malformed("Unexpected argument")

    # --- the pieces ---

    def _match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return found

    def _peek(self, byte: bytes) -> bool:
        return self._text.startswith(byte, self._at)

    def _expect(self, byte: bytes) -> None:
        if not self._peek(byte):
            raise Malformed(f"Missing {byte.decode('ascii')}")
        self._at += 1

    def _space(self) -> None:
        if self._match(_SPACE) is None:
            raise Malformed("Missing argument")

    def _at_end(self) -> bool:
        return not self._more and not self._text[self._at :].strip(b" ")

    def _string(self) -> bytes:
        if self._more and self._at == len(self._text):
            literal, self._text, *_ = self._more
            self._more = self._more[2:]
            self._at = 0
            if b"\0" in literal:
                raise Malformed("NUL in a literal")
            self._delimited()
            return literal
        if not self._peek(b'"'):
            raise Malformed("Missing or invalid argument")
        quoted = self._match(_QUOTED)
        if quoted is None:
            raise Malformed("Invalid quoted string")
        self._delimited()
        return _ESCAPE.sub(rb"\1", quoted[1])

    def _delimited(self) -> None:
        """A string ends at a space, a closing parenthesis or the end of the command."""
        if self._at == len(self._text):
            if not self._more:
                return
        elif self._text[self._at] in b" )":
            return
        raise Malformed("Missing space behind an argument")


def enclose(value: bytes) -> bytes:
    """Return the value between quotes; every byte of it has to be one that may stand there."""
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
