"""How much of what a backend says the client and the log may see."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_SHOWN = 400
"""Bytes of a backend's text to pass on or to log."""

MIN_ECHO = 6
"""Bytes that a word must have to be taken for a piece of a secret: shorter ones occur by chance."""

_UNSHOWABLE = re.compile(rb"[\x00-\x1f\x7f]")
_WORD = re.compile(rb"[^\s\"]{%d,}" % MIN_ECHO)


def said(text: bytes, secrets: Sequence[bytes] = ()) -> str:
    """Return what the backend said, for the log.

    :param secrets: the forms in which a secret was sent; they are taken out.
    """
    return showable(text, secrets).decode("utf-8", "backslashreplace")


def showable(text: bytes, secrets: Sequence[bytes] = ()) -> bytes:
    """Return the text without control characters, and without any secret or a longer piece of one."""
    if secrets:
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            text = text.replace(secret, b"(secret)")

        def hide(word: re.Match[bytes]) -> bytes:
            return b"(secret)" if any(word[0] in secret for secret in secrets) else word[0]

        text = _WORD.sub(hide, text)
    return _UNSHOWABLE.sub(b"?", text)[:MAX_SHOWN]
