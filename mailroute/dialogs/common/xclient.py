"""Telling a backend who the client is: the command XCLIENT, of which there are two.

Dovecot's login services take one line from their login_trusted_networks.
Where mail is sent, servers list the attributes that they take, in as many
lines as it needs (Postfix's XCLIENT_README, and Dovecot's additions to it).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence

from mailroute.dialogs.common.plan import NoWay
from mailroute.events import Client, LoginOrder, Method
from mailroute.wire.xtext import xtext

MAX_COMMAND = 1022
"""Bytes in the command of one line: Dovecot's bound of 1024, less its end."""

MAX_LISTED = 512
"""Bytes of a command with listed attributes, its end included: RFC 5321 section 4.5.3.1.4."""

FIRST_TTL = 7
"""Proxies that a connection may pass, ourselves among them: Dovecot's number."""

UNAVAILABLE = b"[UNAVAILABLE]"
"""What stands for a listed value that is not known, and takes the place of the one that the server knows."""

# Values are not quoted, and the client chooses the name that it asks for by SNI.
_NAME = re.compile(r"[A-Za-z0-9._:\-]+\Z")


def _known(client: Client, ttl: int) -> dict[str, str | None]:
    """Return what both can tell of a client, whose connection may pass so many proxies."""
    known: dict[str, str | None] = {}
    for prefix, address in (("", client.source), ("DEST", client.destination)):
        known[f"{prefix}ADDR"] = None if address is None else address.host
        # A PROXY header may have 0, where only the address is known; Dovecot takes no such port.
        known[f"{prefix}PORT"] = None if address is None or not address.port else str(address.port)
    return {
        **known,
        "SESSION": client.session_id,
        "TTL": str(ttl - 1),
        "CLIENT-TRANSPORT": "TLS" if client.tls else "insecure",
    }


def xclient(method: Method, order: LoginOrder) -> bytes:
    """Return the command of one line, without its end.

    :raises NoWay: what the route forwards does not fit into it.
    """
    client = order.client
    words = [f"{name}={value}" for name, value in _known(client, FIRST_TTL).items() if value is not None]
    # Without a login this is the only way in which the backend learns the name.
    forward = [("user", order.user)] if method is Method.NONE else []
    forward += order.forward
    if forward:
        words.append(f"FORWARD={forwarded(forward).decode('ascii')}")
    command = " ".join(["XCLIENT", *words])
    if len(command) > MAX_COMMAND:
        raise NoWay(f"the name and what the route forwards do not fit into an XCLIENT of {MAX_COMMAND} bytes")
    if client.server_name and _NAME.match(client.server_name):
        whole = f"{command} DESTNAME={client.server_name}"
        command = whole if len(whole) <= MAX_COMMAND else command
    return command.encode("ascii")


def forwarded(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return fields as the value of FORWARD: Dovecot's words for what a proxy has learnt of the account."""
    return base64.b64encode("\t".join(f"{key}={value}" for key, value in fields).encode())


Attributes = Sequence[tuple[bytes, bytes]]


def xclient_lines(
    listed: Sequence[bytes], client: Client, more: Attributes, ttl: int = FIRST_TTL
) -> list[bytes]:
    """Return the commands, with their ends, for a backend that has listed these attributes.

    :param more: what is told besides, each attribute with its value, which is empty if it is not known.
    :param ttl: how many proxies the connection may pass, ourselves among them.
    :raises NoWay: what the route forwards does not fit into a command.
    """
    lines: list[bytes] = []
    line = b"XCLIENT"
    # NAME is the client's in the DNS, which nobody here looks up.
    for name, value in ((b"NAME", b""), *_written(client, ttl), *more):
        if name not in listed:
            continue
        word = b" " + name + b"=" + (xtext(value) or UNAVAILABLE)
        if len(b"XCLIENT" + word) + 2 > MAX_LISTED:
            if name == b"FORWARD":
                raise NoWay(f"what the route forwards does not fit into an XCLIENT of {MAX_LISTED} bytes")
            word = b" " + name + b"=" + UNAVAILABLE
        if len(line) + len(word) + 2 > MAX_LISTED:
            lines.append(line + b"\r\n")
            line = b"XCLIENT"
        line += word
    return [*lines, line + b"\r\n"] if line != b"XCLIENT" else lines


def _written(client: Client, ttl: int) -> list[tuple[bytes, bytes]]:
    """Return what is known as it is written where attributes are listed."""
    known = _known(client, ttl)
    for name in ("ADDR", "DESTADDR"):
        address = known[name]
        if address is not None and ":" in address:
            known[name] = f"IPV6:{address}"
    return [(name.encode("ascii"), (value or "").encode("ascii")) for name, value in known.items()]
