"""Servers that say back what they were sent, so that a password would get into the log."""

from __future__ import annotations

import base64
from urllib.parse import quote

from mailroute.events import Credentials

LEFT_OUT = "what it says holds what the client has shown, and is left out"
"""Stands for the whole of such a text: a gap in it would tell which of our own words is a password."""


def echoes(text: str, shown: Credentials) -> bool:
    """Tell whether what a client has shown is in a text, in one of the forms in which it may come back."""
    return any(form in text for secret in _secrets(shown) for form in _forms(secret))


def _secrets(shown: Credentials) -> set[bytes]:
    """Return the secret, and of the message of a token each part that may be one."""
    parts = {shown.secret, *(part.rpartition(b" ")[2] for part in shown.secret.split(b"\1") if b" " in part)}
    return parts - {b""}


def _forms(secret: bytes) -> set[str]:
    said = secret.decode("utf-8", "backslashreplace")
    encoded = base64.b64encode(secret).decode("ascii")
    return {said, ascii(said)[1:-1], ascii(secret)[2:-1], quote(secret), encoded}
