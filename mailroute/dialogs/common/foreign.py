"""Clients that did not come for mail, by what they begin with."""

from __future__ import annotations

from mailroute.events import Farewell
from mailroute.wire.lines import is_http, is_proxy_header


def foreign(line: bytes) -> Farewell | None:
    """Return why whoever sends such a line for a command is sent away; ``None`` if a mail client may.

    A PROXY header that is here was not wanted: those that are have been read before anything was said.
    """
    if is_http(line):
        return Farewell.NOT_THIS_PROTOCOL
    return Farewell.PROXY_HEADER if is_proxy_header(line) else None
