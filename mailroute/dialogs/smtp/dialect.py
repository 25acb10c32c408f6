"""In what SMTP (RFC 5321), its submission (RFC 6409) and LMTP (RFC 2033) differ."""

from __future__ import annotations

import secrets

from attrs import frozen

from mailroute.dialogs.common.xclient import FIRST_TTL

TOKEN = secrets.token_hex(4).encode("ascii")
"""Tells this mailroute, with all its processes, from every other: a backend that greets with it is itself."""


@frozen
class Dialect:
    """One of the three.

    ``hello``: the command that begins a session.  ``proto``: what XCLIENT
    calls it.  ``splits``: the message's end is answered for each recipient.
    ``port`` and ``tls_port``: where it is usually served.
    """

    name: str
    hello: bytes
    proto: bytes
    splits: bool
    port: int
    tls_port: int | None = None


SMTP = Dialect("smtp", b"EHLO", b"ESMTP", splits=False, port=25)
SUBMISSION = Dialect("submission", b"EHLO", b"ESMTP", splits=False, port=587, tls_port=465)
LMTP = Dialect("lmtp", b"LHLO", b"LMTP", splits=True, port=24)


@frozen
class Seam:
    """What a login at a backend has to know of the client's half: its name for itself, and ours.

    ``ttl``: how many proxies its connection may pass, ourselves among them.
    """

    host_name: str
    hello: bytes = b""
    ttl: int = FIRST_TTL
