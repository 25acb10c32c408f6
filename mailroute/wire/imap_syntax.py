"""The grammar of IMAP as far as a login needs it (RFC 9051 section 9)."""

from __future__ import annotations

import re
from typing import NamedTuple

from mailroute.wire.lines import Malformed, Parts
from mailroute.wire.strings import Strings, enclose

MAX_TAG = 126
"""Bytes in a client's tag; Dovecot's bound."""

MAX_ID_PAIRS = 30
"""Pairs in an ID command (RFC 2971 section 3.3)."""

MAX_ID_KEY = 30
"""Bytes in a key of an ID command (RFC 2971 section 3.3)."""

MAX_ID_VALUE = 1024
"""Bytes in a value of an ID command (RFC 2971 section 3.3)."""

# tag: any ASTRING-CHAR except "+".
_TAG = re.compile(rb"[!#$&',\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]{1,%d}(?= |\Z)" % MAX_TAG)
_ATOM_ARGUMENT = re.compile(rb" +([!#$&'+,\-./0-9:;<=>?@A-Z\[^_`a-z|}~]+)")
# More than the grammar's ASTRING-CHAR: clients send names such as DOMAIN\bob and
# passwords with "%", "*", "]" or 8-bit bytes bare, and servers take them.
_LOOSE_ATOM = re.compile(rb'[^\x00-\x20\x7f"(){]+')
_BARE_ARGUMENT = re.compile(rb' +([^\x00-\x20\x7f"(){]+)(?=[ )]|\Z)')
_WORD = re.compile(rb"[^ ]+")
_NIL = re.compile(rb"NIL(?=[ )]|\Z)", re.IGNORECASE)
_QUOTABLE = re.compile(rb"[\x20-\x7e]*\Z")
_CONDITIONS = frozenset({b"OK", b"NO", b"BAD", b"BYE", b"PREAUTH"})


class Arguments(Strings):
    """Reads the arguments of a command one after the other.

    Every method raises `Malformed` if the next argument is not what it reads.
    """

    __slots__ = ()

    def tag(self) -> bytes:
        """Read the command's tag."""
        found = self._match(_TAG)
        if found is None:
            raise Malformed("Invalid tag")
        return found[0]

    def word(self) -> bytes:
        """Read a space and an atom, and return the atom in upper case."""
        found = self._match(_ATOM_ARGUMENT)
        if found is None:
            self._space()
            raise Malformed("Missing or invalid argument")
        return found[1].upper()

    def astring(self) -> bytes:
        """Read a space and an atom, quoted string or literal."""
        if not self._more:
            # What nearly all names and passwords are.
            found = self._match(_BARE_ARGUMENT)
            if found is not None:
                return found[1]
        self._space()
        return self._astring()

    def optional_bytes(self) -> bytes | None:
        """Read a space and whatever stands up to the next space or the end, if anything does."""
        if self._at_end():
            return None
        self._space()
        found = self._match(_WORD)
        if found is None:
            raise Malformed("Missing argument")
        return found[0]

    def id_pairs(self) -> tuple[tuple[bytes, bytes], ...]:
        """Read a space and the list of an ID command, or NIL; pairs whose value is NIL are left out."""
        self._space()
        if self._nil():
            return ()
        self._expect(b"(")
        pairs: list[tuple[bytes, bytes]] = []
        count = 0
        while not self._peek(b")"):
            count += 1
            if count > MAX_ID_PAIRS:
                raise Malformed("Too many ID pairs")
            if count > 1:
                self._space()
            key = self._astring()
            self._space()
            value = None if self._nil() else self._astring()
            if len(key) > MAX_ID_KEY or len(value or b"") > MAX_ID_VALUE:
                raise Malformed("ID key or value too long")
            if value is not None:
                pairs.append((key, value))
        self._expect(b")")
        return tuple(pairs)

    # --- the pieces ---

    def _nil(self) -> bool:
        found = _NIL.match(self._text, self._at)
        if found is None or (self._more and found.end() == len(self._text)):
            return False
        self._at = found.end()
        return True

    def _astring(self) -> bytes:
        atom = self._match(_LOOSE_ATOM)
        if atom is None:
            return self._string()
        self._delimited()
        return atom[0]


def quote(value: bytes) -> bytes | None:
    """Return the value as a quoted string, or None if it has a byte that may not stand in one."""
    if _QUOTABLE.match(value) is None:
        return None
    return enclose(value)


class Status(NamedTuple):
    """A status response: the condition and its code in upper case, the text with the code and less it."""

    condition: bytes
    code: bytes
    argument: bytes
    text: bytes
    plain: bytes


def read_response(parts: Parts) -> tuple[bytes, bytes]:
    """Read a response without literals: its tag (``*`` and ``+`` too), and what follows it.

    The tag of anything else is empty.
    """
    line = parts[0]
    if len(parts) != 1 or b"\0" in line or b"\r" in line:
        return b"", b""
    tag, _, text = line.partition(b" ")
    return tag, text


def read_status(text: bytes) -> Status | None:
    """Read ``OK [CODE argument] text`` and its kin; None if it is none."""
    condition, _, text = text.partition(b" ")
    condition = condition.upper()
    if condition not in _CONDITIONS:
        return None
    end = text.find(b"]") if text.startswith(b"[") else -1
    if end > 0:
        code, _, argument = text[1:end].partition(b" ")
        if code.replace(b"-", b"").isalnum():
            return Status(condition, code.upper(), argument, text, text[end + 1 :].removeprefix(b" "))
    return Status(condition, b"", b"", text, text)
