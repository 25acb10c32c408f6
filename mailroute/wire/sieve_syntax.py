"""The grammar of ManageSieve as far as a login needs it (RFC 5804 section 4)."""

from __future__ import annotations

import re
from typing import NamedTuple

from mailroute.wire.lines import Malformed, Parts
from mailroute.wire.strings import Strings, enclose

MAX_QUOTED = 1024
"""Bytes in a quoted string (RFC 5804 section 4); what is longer goes as a literal."""

_COMMAND = re.compile(rb"[A-Za-z]+(?= |\Z)")
_CONDITION = re.compile(rb"(OK|NO|BYE)(?= |\Z)", re.IGNORECASE)
_CODE_NAME = re.compile(rb"[!#-'*-\[\]-z|}~]+(?=[ )])")
_CODE_WORD = re.compile(rb"[!#-'*-\[\]-z|}~]+")
_UNQUOTABLE = re.compile(rb"[\x00\r\n]")


class Arguments(Strings):
    """Reads the arguments of a command one after the other.

    Every method raises `Malformed` if the next argument is not what it reads.
    """

    __slots__ = ()

    def command(self) -> bytes:
        """Read the command's name, and return it in upper case."""
        found = self._match(_COMMAND)
        if found is None:
            raise Malformed("Invalid command")
        return found[0].upper()

    def only_string(self) -> bytes:
        """Read a string that stands alone."""
        found = self._string()
        self.end()
        return found

    def optional_string(self) -> bytes | None:
        """Read a space and a string, if there is anything."""
        return None if self._at_end() else self.string()


class Reply(NamedTuple):
    """OK, NO or BYE, in upper case; the response code's name in upper case, and the text for a person."""

    condition: bytes
    code: bytes
    text: bytes


class _Response(Strings):
    """Reads a response."""

    __slots__ = ()

    def reply(self) -> Reply | None:
        condition = self._match(_CONDITION)
        if condition is None:
            return None
        code = text = b""
        if not self._at_end():
            self._space()
            if self._peek(b"("):
                code = self._code()
                if not self._at_end():
                    text = self.string()
            else:
                text = self._string()
        self.end()
        return Reply(condition[1].upper(), code, text)

    def strings(self) -> tuple[bytes, ...]:
        found = [self._string()]
        while not self._at_end():
            found.append(self.string())
        return tuple(found)

    def _code(self) -> bytes:
        """Read a response code in its parentheses; what follows its name is passed over."""
        self._expect(b"(")
        name = self._match(_CODE_NAME)
        if name is None:
            raise Malformed("Invalid response code")
        depth = 1
        while depth:
            if self._peek(b" "):
                self._space()
            elif self._peek(b"("):
                self._expect(b"(")
                depth += 1
            elif self._peek(b")"):
                self._expect(b")")
                depth -= 1
            elif self._match(_CODE_WORD) is None:
                self._string()
        return name[0].upper()


def read_reply(parts: Parts) -> Reply | None:
    """Read ``OK (CODE argument) "text"`` and its kin; None if it is none.

    :raises Malformed: it begins like one.
    """
    return _Response(parts).reply()


def read_strings(parts: Parts) -> tuple[bytes, ...]:
    """Read a response that is strings alone: a capability and its value, or a challenge.

    :raises Malformed: it is none.
    """
    return _Response(parts).strings()


def quote(value: bytes) -> bytes | None:
    """Return the value as a quoted string, or None if it cannot be one."""
    if len(value) > MAX_QUOTED or _UNQUOTABLE.search(value) or not _is_utf8(value):
        return None
    return enclose(value)


def give_back(value: bytes) -> bytes | None:
    """Return a client's string as a server writes it: a literal if it is more than a line.

    None if it is longer than a quoted string may be, or no UTF-8.
    """
    if len(value) > MAX_QUOTED or not _is_utf8(value):
        return None
    return quote(value) or b"{%d}\r\n%s" % (len(value), value)


def say(text: bytes) -> bytes:
    """Return a text for a person as a quoted string, whatever is in it: less what cannot stand there."""
    # Half of the bound, because each byte may need a backslash.
    shown = _UNQUOTABLE.sub(b"?", text[: MAX_QUOTED // 2])
    return enclose(shown.decode("utf-8", "ignore").encode())


def write(encoded: bytes, mark: bytes = b"") -> bytes:
    """Return a text of base64 as a string.

    :param mark: what stands behind a literal's size: "+" towards a server (literal-c2s), else nothing.
    """
    if len(encoded) <= MAX_QUOTED:
        return b'"%s"' % encoded
    return b"{%d%s}\r\n%s" % (len(encoded), mark, encoded)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
