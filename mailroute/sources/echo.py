"""Servers that say back what they were sent, so that a password would get into the log."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

from mailroute.events import Credentials

RUN = 16
"""Characters of a secret by which it is recognised where a server has cut it: so many of a token say too
much, and are in no other text by chance."""

LEFT_OUT = "what it says holds what the client has shown, and is left out"
"""Stands for the whole of such a text: a gap in it would tell which of our own words is a password."""


def echoes(text: str, shown: Credentials) -> bool:
    """Tell whether what a client has shown is in a text, in one of the forms in which it may come back.

    Of what is longer than `RUN` characters, so many in a row are enough.
    """
    whole = shown.secret
    parts = {part.rpartition(b" ")[2] for part in whole.split(b"\1") if b" " in part}
    # What is around the token in its message, such as the user's name, is no secret, unless it is encoded.
    is_message = b"\1" in whole
    searched = [
        form for secret in (parts if is_message else {whole, *parts}) - {b""} for form in _forms(secret)
    ]
    if is_message:
        if any(form in text for form in _forms(whole)):
            return True
        searched.append(_encoded(whole))
    return any(_repeats(text, form) for form in searched)


def _repeats(text: str, form: str) -> bool:
    if len(form) <= RUN:
        return form in text
    # Whatever has a run in common has a piece in common of half its length, and there are few of these.
    half = RUN // 2
    return any(
        form[start : start + RUN] in text
        for at in range(0, len(form) - half + 1, half)
        if form[at : at + half] in text
        for start in range(max(at - half, 0), min(at, len(form) - RUN) + 1)
    )


def _encoded(secret: bytes) -> str:
    return base64.b64encode(secret).decode("ascii")


def _forms(secret: bytes) -> set[str]:
    said = secret.decode("utf-8", "backslashreplace")
    in_json = json.dumps(said)[1:-1]
    return {said, in_json, ascii(said)[1:-1], ascii(secret)[2:-1], quote(secret), _encoded(secret)}
