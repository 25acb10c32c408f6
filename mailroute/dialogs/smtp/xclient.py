"""XCLIENT: telling a backend who the client is (Postfix's XCLIENT_README, and Dovecot's additions to it)."""

from __future__ import annotations

from collections.abc import Sequence

from mailroute.dialogs.smtp.dialect import Dialect, Seam
from mailroute.events import Address, Client
from mailroute.wire.xtext import xtext

MAX_LINE = 512
"""Bytes of one command, its end included: RFC 5321 section 4.5.3.1.4."""

UNAVAILABLE = b"[UNAVAILABLE]"
"""What stands for a value that is not known, and takes the place of the one that the server knows."""


def xclient_commands(listed: Sequence[bytes], client: Client, seam: Seam, dialect: Dialect) -> list[bytes]:
    """Return the command lines, as many as it takes, with the attributes that the backend has listed.

    LOGIN, which would name somebody who has logged in, is never among them.
    """
    lines: list[bytes] = []
    line = b"XCLIENT"
    for name, value in _attributes(client, seam, dialect):
        if name not in listed:
            continue
        word = b" " + name + b"=" + value
        if len(b"XCLIENT" + word) + 2 > MAX_LINE:
            word = b" " + name + b"=" + UNAVAILABLE
        if len(line) + len(word) + 2 > MAX_LINE:
            lines.append(line + b"\r\n")
            line = b"XCLIENT"
        line += word
    return [*lines, line + b"\r\n"] if line != b"XCLIENT" else lines


def _attributes(client: Client, seam: Seam, dialect: Dialect) -> list[tuple[bytes, bytes]]:
    """Return all that can be told; NAME is the client's in the DNS, which nobody here looks up."""
    return [
        (b"NAME", UNAVAILABLE),
        (b"ADDR", _host(client.source)),
        (b"PORT", _port(client.source)),
        (b"DESTADDR", _host(client.destination)),
        (b"DESTPORT", _port(client.destination)),
        (b"PROTO", dialect.proto),
        (b"HELO", xtext(seam.hello) or UNAVAILABLE),
        (b"SESSION", xtext(client.session_id.encode("ascii"))),
        (b"CLIENT-TRANSPORT", b"TLS" if client.tls else b"insecure"),
    ]


def _host(address: Address | None) -> bytes:
    if address is None:
        return UNAVAILABLE
    prefix = b"IPV6:" if ":" in address.host else b""
    return prefix + address.host.encode("ascii")


def _port(address: Address | None) -> bytes:
    return UNAVAILABLE if address is None else b"%d" % address.port
