"""Telling an IMAP backend who the client is: the ID command that Dovecot takes from trusted hosts.

The keys are those of Dovecot's login_trusted_networks; a backend that does not
trust us ignores them.
"""

from __future__ import annotations

from mailroute.dialogs.common.plan import NoWay
from mailroute.dialogs.common.xclient import FIRST_TTL
from mailroute.events import Client, LoginOrder, Method
from mailroute.wire.imap_syntax import MAX_ID_PAIRS, quote

_TTL_KEY = b"x-proxy-ttl"

Pairs = tuple[tuple[bytes, bytes], ...]


def id_command(method: Method, order: LoginOrder, client_pairs: Pairs) -> bytes:
    """Return the ID command (RFC 2971), its end included, its tag not.

    The client's own pairs go along, except those that would speak in our name:
    whatever begins with ``x-`` is ours to say.

    :raises NoWay: the client says that it has been through too many proxies.
    """
    words = _our_words(method, order, _ttl(client_pairs) if client_pairs else FIRST_TTL - 1)
    if client_pairs:
        theirs = [pair for pair in client_pairs if not pair[0].lower().startswith(b"x-")]
        words += filter(None, (_pair(*pair) for pair in theirs[: MAX_ID_PAIRS - len(words)]))
    return b"ID (" + b" ".join(words) + b")\r\n"


def _ttl(client_pairs: Pairs) -> int:
    """One less than the client says.  Nobody gains by lying: a higher number counts as the first."""
    ttl = FIRST_TTL
    for key, value in client_pairs:
        if key.lower() == _TTL_KEY and value.isdigit():
            ttl = min(ttl, int(value[:9]))
    if ttl <= 1:
        raise NoWay("the connection has passed through too many proxies: do the routes form a loop?")
    return ttl - 1


def _our_words(method: Method, order: LoginOrder, ttl: int) -> list[bytes]:
    """Return what we say, each key with its value.

    Numeric addresses and what mailroute itself has made need no quoting; what
    comes from the client does.
    """
    client: Client = order.client
    words = [b'"x-session-id" "%s"' % client.session_id.encode("ascii")]
    if client.source is not None:
        words += (
            b'"x-originating-ip" "%s"' % client.source.host.encode("ascii"),
            b'"x-originating-port" "%d"' % client.source.port,
        )
    if client.destination is not None:
        words += (
            b'"x-connected-ip" "%s"' % client.destination.host.encode("ascii"),
            b'"x-connected-port" "%d"' % client.destination.port,
        )
    words.append(b'"%s" "%d"' % (_TTL_KEY, ttl))
    words.append(b'"x-client-transport" "TLS"' if client.tls else b'"x-client-transport" "insecure"')
    if client.server_name:
        words.append(_pair(b"x-connected-name", client.server_name.encode("utf-8")))
    if method is Method.NONE:
        # Without a login this is the only way in which the backend learns the name.
        words.append(_pair(b"x-forward-user", order.user.encode("utf-8")))
    words += (_pair(b"x-forward-" + key.encode(), value.encode()) for key, value in order.forward)
    return [word for word in words if word]


def _pair(key: bytes, value: bytes) -> bytes:
    """Return a key and its value as quoted strings; nothing if they cannot stand in such."""
    quoted = quote(key), quote(value)
    return b"" if quoted[0] is None or quoted[1] is None else quoted[0] + b" " + quoted[1]
