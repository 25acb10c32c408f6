"""Telling an IMAP backend who the client is: the ID command that Dovecot takes from trusted hosts.

The keys are those of Dovecot's login_trusted_networks; a backend that does not
trust us ignores them.
"""

from __future__ import annotations

from mailroute.events import Client, LoginOrder, Method
from mailroute.wire.imap_syntax import MAX_ID_PAIRS, quote

FIRST_TTL = 7
"""Proxies that a connection may pass; Dovecot's number."""

_TTL_KEY = b"x-proxy-ttl"

Pairs = tuple[tuple[bytes, bytes], ...]


class LoopDetected(Exception):
    """The connection has passed through too many proxies; the text is for the log."""


def id_command(order: LoginOrder, client_pairs: Pairs) -> bytes:
    """Return the ID command (RFC 2971), its end included, its tag not.

    The client's own pairs go along, except those that would speak in our name:
    whatever begins with ``x-`` is ours to say.

    :raises LoopDetected: the client says that it has been through too many proxies.
    """
    ours = _our_pairs(order, _ttl(client_pairs))
    theirs = [pair for pair in client_pairs if not pair[0].lower().startswith(b"x-")]
    words: list[bytes] = []
    for key, value in (*ours, *theirs[: MAX_ID_PAIRS - len(ours)]):
        quoted = quote(key), quote(value)
        if quoted[0] is not None and quoted[1] is not None:
            words += (quoted[0], quoted[1])
    return b"ID (" + b" ".join(words) + b")\r\n"


def _ttl(client_pairs: Pairs) -> int:
    """One less than the client says.  Nobody gains by lying: a higher number counts as the first."""
    ttl = FIRST_TTL
    for key, value in client_pairs:
        if key.lower() == _TTL_KEY and value.isdigit():
            ttl = min(ttl, int(value[:9]))
    if ttl <= 1:
        raise LoopDetected("the connection has passed through too many proxies: do the routes form a loop?")
    return ttl - 1


def _our_pairs(order: LoginOrder, ttl: int) -> list[tuple[bytes, bytes]]:
    client: Client = order.client
    pairs = [("x-session-id", client.session_id)]
    if client.source is not None:
        pairs += [("x-originating-ip", client.source.host), ("x-originating-port", str(client.source.port))]
    if client.destination is not None:
        pairs += [
            ("x-connected-ip", client.destination.host),
            ("x-connected-port", str(client.destination.port)),
        ]
    pairs.append((_TTL_KEY.decode("ascii"), str(ttl)))
    pairs.append(("x-client-transport", "TLS" if client.tls else "insecure"))
    if client.server_name:
        pairs.append(("x-connected-name", client.server_name))
    if order.method is Method.NONE:
        # Without a login this is the only way in which the backend learns the name.
        pairs.append(("x-forward-user", order.user))
    return [(key.encode("ascii"), value.encode("utf-8")) for key, value in pairs]
