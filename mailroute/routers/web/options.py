"""The keys of an ``http`` block, and what is wrong with them."""

from __future__ import annotations

import base64
import re
from enum import Enum
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from mailroute.sources import BadOption, SlowOptions, SourceContext, secret

MAX_URLS = 8
"""Servers of one block: each has its part of the time."""

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_VALUE = re.compile(r"[\x20-\x7e]{0,1024}")
_OURS = {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding"}


class Dialect(Enum):
    """What a server is asked in; the values are the configuration's words."""

    NGINX = "nginx"
    JSON = "json"


class HttpOptions(SlowOptions):
    """The keys of the block."""

    url: str | None = Field(default=None, examples=["http://127.0.0.1:9000/auth"])
    """The server; this or ``urls`` is required."""

    urls: list[str] | None = Field(default=None, min_length=1, max_length=MAX_URLS)
    """Several servers, of which the first that answers is believed; one that failed comes last for 30 s."""

    dialect: Annotated[Dialect, Field(strict=False)] = Dialect.NGINX
    """``nginx``: as nginx's ``auth_http`` asks, the password among it; ``json``: an object over POST."""

    ca: str | None = None
    """PEM file with the authorities that may vouch for ``https`` servers; the system's unless given."""

    headers: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    """Further headers for every request, as nginx's ``auth_http_header``; none unless given."""

    bearer_file: str | None = None
    """File with a token for ``Authorization: Bearer``."""

    username: str | None = None
    """The name for basic authentication at the server, with ``password_file``."""

    password_file: str | None = None
    """File with the password for basic authentication."""

    pass_client_cert: bool = False
    """As for nginx: whether the server gets the whole certificate of a client that has shown one, as with
    nginx's ``auth_http_pass_client_cert``; ``false`` unless given."""

    envelope: bool = True
    """As for nginx: whether the server is told of mail what the client calls itself, and from whom it is.  If
    not, one answer is kept for all mail to a recipient; ``true`` unless given."""

    send_password: bool = False
    """In JSON: whether the server gets the password too, to check it; ``false`` unless given."""

    connections: Annotated[int, Field(ge=1, le=1000)] = 50
    """How many requests may be under way at a time; 50 unless given."""

    protocols: dict[str, str] = {"submission": "smtp", "lmtp": "smtp"}  # noqa: RUF012
    """What nginx calls protocols that it has another name for."""


def urls_of(options: HttpOptions) -> list[str]:
    """Return the servers' addresses.

    :raises BadOption: there is none, or one that is wrong.
    """
    if (options.url is None) is (options.urls is None):
        raise BadOption("url", 'give one of url = "…" and urls = ["…", …]')
    key, found = ("url", [options.url]) if options.url is not None else ("urls", options.urls or [])
    for url in found:
        fault = _fault(url)
        if fault:
            raise BadOption(key, f"{fault}: write it as http://host:port/path or https://host/path")
    return found


def _fault(url: str) -> str:
    """Return what is wrong with a URL; it is not shown where it may hold a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is no URL"
    if "@" in parts.netloc:
        return "a URL must not hold a name or a password, for which there are username and password_file"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return f"{url!r} is no URL of a web server"
    if not url.isascii() or not url.isprintable() or " " in url or parts.fragment:
        return f"{url!r} holds what cannot be asked for"
    return ""


def headers_of(options: HttpOptions, context: SourceContext) -> dict[bytes, bytes]:
    """Return the headers of every request.

    :raises BadOption: one of them cannot be sent.
    """
    for name, value in options.headers.items():
        if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
            raise BadOption("headers", f"{name!r} is no header that can be given")
        if not _VALUE.fullmatch(value):
            raise BadOption(
                "headers", f"the value of {name} must be printable ASCII, at most 1024 characters"
            )
    headers = {name.encode("ascii"): value.encode("ascii") for name, value in options.headers.items()}
    if (options.username is None) is not (options.password_file is None):
        raise BadOption("username", "goes with password_file: give both or none")
    if options.bearer_file is not None:
        token = secret(context, "bearer_file", options.bearer_file)
        if options.username is not None or not re.fullmatch(rb"[\x21-\x7e]+", token):
            raise BadOption("bearer_file", "must hold a token without spaces, and goes without username")
        headers[b"Authorization"] = b"Bearer " + token
    elif options.username is not None and options.password_file is not None:
        if ":" in options.username:
            raise BadOption("username", "must not hold a colon, which ends it (RFC 7617 section 2)")
        password = secret(context, "password_file", options.password_file)
        pair = options.username.encode("utf-8") + b":" + password
        headers[b"Authorization"] = b"Basic " + base64.b64encode(pair)
    return headers
