"""The ``http`` source: a web server decides, in the words of nginx's ``auth_http`` or in JSON."""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Annotated, Any
from urllib.parse import urlsplit

from attrs import evolve
from pydantic import Field
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.web.http_headers import Headers
from zope.interface import implementer

from mailroute.events import Client, LoginRefused, Lookup, Reason, Refusal, Route
from mailroute.interfaces import IRouter, IRouteSource
from mailroute.proofs import Proof
from mailroute.routers.answers import Answers
from mailroute.routers.guard import GuardedRouter
from mailroute.routers.questions import question
from mailroute.sources import BadAnswer, BadOption, SlowOptions, SourceContext, read_options, secret
from mailroute.sources.context import shown
from mailroute.sources.trust import tls_for
from mailroute.sources.web import WebServers
from mailroute.sources.web_client import WebAnswer, WebServerFails
from mailroute.wire import nginx_auth
from mailroute.wire.nginx_auth import AuthAnswer, BadAuthAnswer

MAX_URLS = 8
"""Servers of one block: each has its part of the time."""

MIN_WAIT = 0.1
"""Seconds before a server that has said ``WAIT`` is asked again, at the least."""

_NOT_TAKEN = {400, 413, 414, 422, 431}
"""What a server says of a question that it finds wrong, or too long (RFC 9110 section 15.5, RFC 6585)."""

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

    send_password: bool = False
    """In JSON: whether the server gets the password too, to check it; ``false`` unless given."""

    connections: Annotated[int, Field(ge=1, le=1000)] = 50
    """How many requests may be under way at a time; 50 unless given."""

    protocols: dict[str, str] = {"submission": "smtp", "lmtp": "smtp"}  # noqa: RUF012
    """What nginx calls protocols that it has another name for."""


class _WebRouter(GuardedRouter):
    """What both dialects have in common."""

    def __init__(self, options: HttpOptions, context: SourceContext, *, proves: bool) -> None:
        super().__init__(self._find, options, context, by_password=proves)
        self.proves = proves
        self._urls = _urls(options)
        self._servers: WebServers[Any] = WebServers(
            self._urls,
            context.clock,
            tls_for(context, options.ca),
            self._read,
            headers=_headers(options, context),
            patience=options.timeout,
            connections=options.connections,
            label=context.label,
        )

    async def _find(self, lookup: Lookup) -> Route | None:
        raise NotImplementedError

    def _read(self, answer: WebAnswer) -> Any:
        raise NotImplementedError

    def stopService(self) -> Deferred[None]:
        """Close the connections."""
        super().stopService()
        return self._servers.close()


def _unanswered(answer: WebAnswer, what: str) -> Exception:
    """Return what is wrong: with the question, which is somebody's own, or with the server."""
    said = f"status {answer.status}, {what}"
    if answer.status in _NOT_TAKEN:
        return BadAnswer(f"{said}: it does not take the question")
    return WebServerFails(said)


class NginxRouter(_WebRouter):
    """Asks servers that were written for nginx's mail proxy."""

    def __init__(self, options: HttpOptions, context: SourceContext) -> None:
        super().__init__(options, context, proves=True)
        self._answers = Answers(context.backends, options.backend)
        self._protocols = options.protocols
        self._patience = options.timeout

    async def _find(self, lookup: Lookup) -> Route | None:
        headers = self._asked(lookup)
        until = self._clock.seconds() + self._patience
        while True:
            said: AuthAnswer = await self._servers.ask(b"GET", _AsWritten(headers), needs_body=False)
            if not said.again:
                break
            # As nginx does, but no longer than there is time for one answer.
            wait = max(said.wait, MIN_WAIT)
            if self._clock.seconds() + wait >= until:
                # It has answered, so that others may go on asking it.
                detail = f"the auth server wants to be asked again in {wait:g} s, which is too late"
                raise LoginRefused(Refusal(Reason.UNAVAILABLE, detail))
            await deferLater(self._clock, wait, lambda: None)
        if said.refusal is not None:
            reason = Reason.UNAVAILABLE if said.temporary else Reason.AUTHENTICATION_FAILED
            detail = f"the auth server says {shown(said.refusal)}"
            raise LoginRefused(Refusal(reason, detail, wait=said.wait, final=not said.wait))
        route = self._answers.route(
            {"host": _address(said), "port": said.port, "name": said.user, "password": said.password}
        )
        shown_password = headers[b"Auth-Method"] == [b"plain"]
        return None if route is None else evolve(route, proven=shown_password)

    def _asked(self, lookup: Lookup) -> dict[bytes, list[bytes]]:
        """Return the headers of a question.

        :raises LoginRefused: nginx's words cannot carry what the client shows.
        """
        client = lookup.client
        protocol = self._protocols.get(lookup.protocol, lookup.protocol)
        asked = {
            b"Auth-Protocol": protocol.encode("utf-8"),
            b"Auth-Login-Attempt": b"%d" % lookup.attempt,
            b"Client-IP": b"unix:" if client.source is None else client.source.host.encode("ascii"),
            **_shown(lookup),
            **_in_tls(client),
        }
        if protocol == "smtp":
            asked[b"Client-Host"] = nginx_auth.NO_HOST
        return {name: [asked[name]] for name in nginx_auth.NAMES if name in asked}

    def _read(self, answer: WebAnswer) -> AuthAnswer:
        # nginx does not look at the status, and servers answer a wrong password with one of their liking.
        try:
            said = nginx_auth.read(answer.values)
        except BadAuthAnswer as error:
            raise BadAnswer(str(error)) from None
        if said is None:
            raise _unanswered(answer, "and no Auth-Status")
        return said

    def __str__(self) -> str:
        return f"{' or '.join(self._urls)} checks passwords and knows where users live, as for nginx"


def _shown(lookup: Lookup) -> dict[bytes, bytes]:
    """Return what the client shows, or for whom mail is."""
    credentials = lookup.credentials
    user = lookup.user.encode("utf-8")
    if credentials is not None and credentials.proof is Proof.CERTIFICATE:
        # Which somebody else has checked: the listener, and an authenticator.
        return {b"Auth-Method": b"external", b"Auth-User": nginx_auth.escape(user), b"Auth-Pass": b""}
    if credentials is not None and credentials.proof is not Proof.PASSWORD:
        detail = f"an auth server as for nginx has no word for a {credentials.proof.value}"
        raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, detail))
    if credentials is None or not credentials.user:
        to = b"RCPT TO:<%s>" % nginx_auth.escape(user)
        return {b"Auth-Method": b"none", b"Auth-User": b"", b"Auth-Pass": b"", b"Auth-SMTP-To": to}
    if credentials.authorize_as not in (b"", credentials.user):
        # It would check one name's password, and another one's account would be opened.
        detail = "an auth server as for nginx cannot tell who may act for whom"
        raise LoginRefused(Refusal(Reason.AUTHORIZATION_FAILED, detail))
    password = nginx_auth.escape(credentials.secret)
    if len(password) > nginx_auth.MAX_PASSWORD:
        detail = f"the password takes more than {nginx_auth.MAX_PASSWORD} bytes in a header"
        raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, detail))
    return {b"Auth-Method": b"plain", b"Auth-User": nginx_auth.escape(user), b"Auth-Pass": password}


def _in_tls(client: Client) -> dict[bytes, bytes]:
    """Return what is told of a client's TLS; of its certificate only if it has shown one."""
    told = {
        b"Auth-SSL": client.tls and "on",
        b"Auth-SSL-Protocol": client.tls,
        b"Auth-SSL-Cipher": client.cipher,
    }
    certificate = client.certificate
    if certificate is not None:
        told |= {
            b"Auth-SSL-Verify": "SUCCESS",
            b"Auth-SSL-Subject": certificate.subject,
            b"Auth-SSL-Issuer": certificate.issuer,
            b"Auth-SSL-Serial": certificate.serial,
            b"Auth-SSL-Fingerprint": certificate.fingerprint,
        }
    return {name: value.encode("ascii") for name, value in told.items() if value}


def _address(said: AuthAnswer) -> str:
    """Return where the server sends the client, which has to be an address as in nginx.

    :raises BadAnswer: it is none.
    """
    host = (said.server or b"").decode("ascii", "replace")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        raise BadAnswer("Auth-Server must be an IP address, not {}", host) from None


class _AsWritten(Headers):
    """Headers with the capitals of nginx's, for servers that look at them."""

    def getAllRawHeaders(self) -> Iterator[tuple[bytes, Any]]:
        """Yield names and values."""
        for name, values in super().getAllRawHeaders():
            yield _CAPITALS.get(name.lower(), name), values


_CAPITALS = {name.lower(): name for name in nginx_auth.NAMES}


class JsonRouter(_WebRouter):
    """Asks servers in JSON."""

    def __init__(self, options: HttpOptions, context: SourceContext) -> None:
        super().__init__(options, context, proves=options.send_password)
        self._answers = Answers(context.backends, options.backend, proves=self.proves)

    async def _find(self, lookup: Lookup) -> Route | None:
        asked = json.dumps(question(lookup, with_password=self.proves)).encode("ascii")
        headers = Headers({b"Content-Type": [b"application/json"], b"Accept": [b"application/json"]})
        answer: Mapping[str, object] | None = await self._servers.ask(b"POST", headers, asked)
        return None if answer is None else self._answers.route(answer)

    def _read(self, answer: WebAnswer) -> Mapping[str, object] | None:
        if answer.status in (204, 404):
            return None
        kind = b"".join(answer.values(b"Content-Type")).split(b";")[0].strip().lower()
        if answer.status != 200 or kind != b"application/json":
            raise _unanswered(answer, f"Content-Type {shown(kind)}")
        try:
            said = json.loads(answer.body)
        except (ValueError, RecursionError):
            raise BadAnswer("its answer is no JSON") from None
        if said is not None and not isinstance(said, dict):
            raise BadAnswer("its answer must be an object or null, not {}", said)
        return said

    def __str__(self) -> str:
        return f"{' or '.join(self._urls)} {'checks passwords and ' * self.proves}knows where users live"


@implementer(IRouteSource)
class HttpSource:
    """Makes a `NginxRouter` or a `JsonRouter`."""

    name = "http"

    def router(self, options: Mapping[str, object], context: object) -> IRouter:
        """Make the router; see `IRouteSource.router`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        read = read_options(HttpOptions, options, context)
        if read.dialect is Dialect.JSON:
            if "protocols" in read.model_fields_set:
                raise BadOption("protocols", 'goes with dialect = "nginx": in JSON there are our own names')
            return JsonRouter(read, context)
        if "send_password" in read.model_fields_set:
            raise BadOption("send_password", 'goes with dialect = "json": nginx always sends it')
        if read.backend is None:
            raise BadOption("backend", "missing: its settings hold for the addresses that the server names")
        return NginxRouter(read, context)


def _urls(options: HttpOptions) -> list[str]:
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


def _headers(options: HttpOptions, context: SourceContext) -> dict[bytes, bytes]:
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
