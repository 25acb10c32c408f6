"""Lines of Dovecot's authentication protocols: fields between tabs, with what they must not hold escaped.

Follows Dovecot's document "Authentication Protocol": a client's AUTH, and the
PASS of those whom the server calls masters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MAX_LINE = 8192
"""Bytes of a line, its end included: Dovecot's own bound on those of its clients."""

MAX_ANSWER = 65536
"""Bytes of a line from the server: a passdb's extra fields are as long as an operator makes them."""

_ESCAPED = {0x01: b"\x011", 0x00: b"\x010", 0x09: b"\x01t", 0x0D: b"\x01r", 0x0A: b"\x01n"}
_UNESCAPED = {value[1]: bytes([key]) for key, value in _ESCAPED.items()}

Fields = Mapping[str, bytes]


def escape(value: bytes) -> bytes:
    """Return a value so that it can stand in a field."""
    for byte, escaped in _ESCAPED.items():
        if byte in value:
            value = value.replace(bytes([byte]), escaped)
    return value


def unescape(value: bytes) -> bytes:
    """Return what a field's value stands for.

    :raises ValueError: it ends in the middle of an escape, or has one that there is not.
    """
    first, *others = value.split(b"\x01")
    try:
        return first + b"".join(_UNESCAPED[part[0]] + part[1:] for part in others)
    except (IndexError, KeyError):
        raise ValueError("a malformed escape") from None


def line(words: Iterable[bytes]) -> bytes:
    """Return a line, with its end.

    :raises ValueError: it is longer than `MAX_LINE`.
    """
    made = b"\t".join(escape(word) for word in words) + b"\n"
    if len(made) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE} bytes")
    return made


def split(text: bytes) -> list[bytes]:
    """Return the fields of a line without its end.

    :raises ValueError: one of them is malformed.
    """
    return [unescape(field) for field in text.split(b"\t")]


def fields(words: Iterable[bytes]) -> Fields:
    """Return fields that are ``key=value`` or ``key`` alone, whose value is then empty.

    :raises ValueError: a key is not ASCII.
    """
    found: dict[str, bytes] = {}
    for word in words:
        key, _, value = word.partition(b"=")
        found[key.decode("ascii")] = value
    return found
