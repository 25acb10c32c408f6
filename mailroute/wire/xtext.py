"""xtext: how SMTP puts any byte into a parameter's value (RFC 3461 section 4)."""

from __future__ import annotations

import re

_PLAIN = re.compile(rb"[!-*,-<>-~]*")
_TO_ESCAPE = re.compile(rb"[^!-*,-<>-~]")


def xtext(value: bytes) -> bytes:
    """Return the value as xtext: nothing in it can end the value, the parameter or the line."""
    if _PLAIN.fullmatch(value):
        return value
    return _TO_ESCAPE.sub(lambda found: b"+%02X" % found[0][0], value)
