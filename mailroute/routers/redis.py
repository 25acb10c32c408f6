"""The ``redis`` source: a key for each user in a Redis server, with a hash or a string."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit

from attrs import frozen
from pydantic import Field
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from zope.interface import implementer

from mailroute.events import Lookup, Route
from mailroute.interfaces import IRouter, IRouteSource
from mailroute.routers.answers import Answers
from mailroute.routers.guard import GuardedRouter
from mailroute.sources import BadAnswer, BadOption, SlowOptions, SourceContext, read_options, secret
from mailroute.sources.hosts import Hosts
from mailroute.sources.redis import Access, Redis
from mailroute.sources.trust import tls_for

PORT = 6379
"""Where a Redis server listens unless it is told otherwise."""

PARTS = ("user", "protocol", "local", "domain")
"""What may stand between braces in a key."""

MAX_DATABASE = 2**31 - 1
"""The highest number that the server itself reads as a database's."""

_FORMS = "redis://host:port/database, rediss://host:port/database, or unix:/path?db=database"


class RedisOptions(SlowOptions):
    """The keys of the block."""

    url: str = Field(examples=["redis://127.0.0.1:6379/0"])
    """The server and the database: ``redis://host:port/number``, ``rediss://…`` with TLS, or
    ``unix:/path?db=number``; port 6379 and database 0 unless given."""

    username: str | None = Field(default=None, min_length=1)
    """The user that the server's ACL knows; its default user unless given."""

    password_file: str | None = None
    """The file with the password for the server; none is sent unless given."""

    ca: str | None = None
    """The PEM file with the authorities that may vouch for a ``rediss`` server; the system's unless given."""

    key: str = "mailroute:{user}"
    """The key for a user, with ``{user}``, ``{local}``, ``{domain}`` and ``{protocol}``."""

    connections: Annotated[int, Field(ge=1, le=100)] = 4
    """Connections at most, one question on each at a time; 4 unless given."""


# --- keys --------------------------------------------------------------------------


class KeyTemplate:
    """Makes the key for a user.

    No two names make the same key: what stands behind a part ends it, and a
    name that has the same text in that part has no key.

    :raises ValueError: says what is wrong with the text.
    """

    def __init__(self, text: str) -> None:
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{text!r} is no template: {error}") from None
        self._names: list[str] = []
        self._literals = [""]  # one in front of each part, and one behind the last
        for literal, name, form, conversion in pieces:
            self._literals[-1] += literal
            if name is None:
                continue
            if name not in PARTS or form or conversion:
                there_are = ", ".join(f"{{{part}}}" for part in PARTS)
                raise ValueError(f"there is no {_braced(name, form, conversion)}; there are {there_are}")
            self._names.append(name)
            self._literals.append("")
        if not {"user", "local", "domain"} & set(self._names):
            raise ValueError("it is the same for all users: use {user}, or {local} and {domain}")
        if not all(self._literals[1:-1]):
            raise ValueError("two parts need something between them, or two users may have the same key")

    def key(self, lookup: Lookup) -> bytes | None:
        """Return the key, or None if the user's name would make one that is somebody else's as well."""
        local, at, domain = lookup.user.rpartition("@")
        if not at:
            local, domain = lookup.user, ""
        elif not domain and "user" not in self._names:
            return None  # "bob@" is not "bob"
        values = {"user": lookup.user, "protocol": lookup.protocol, "local": local, "domain": domain}
        parts = [values[name] for name in self._names]
        for part, behind in zip(parts, self._literals[1:-1], strict=False):
            if (part + behind).find(behind) != len(part):
                return None
        made = [text for pair in zip(self._literals, [*parts, ""], strict=True) for text in pair]
        return "".join(made).encode("utf-8")


def _braced(name: str, form: str | None, conversion: str | None) -> str:
    return "{" + name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "") + "}"


# --- addresses ---------------------------------------------------------------------


@frozen
class Address:
    """Where a server is: a host and a port, or a path; and which database."""

    host: str = ""
    port: int = PORT
    path: str = ""
    tls: bool = False
    database: int = 0

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def read_url(url: str) -> Address:
    """Return what an address means.

    :raises ValueError: says what is wrong with it, and does not repeat it: there may be a password in it.
    """
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError:
        raise ValueError(f"is no address: it is {_FORMS}") from None
    if "@" in split.netloc:
        raise ValueError("must not hold a name or a password: give username and password_file")
    if split.fragment or split.scheme not in ("redis", "rediss", "unix"):
        raise ValueError(f"must be {_FORMS}")
    if split.scheme == "unix":
        if split.netloc or not split.path:
            raise ValueError("must be unix:/path, with one slash before the path")
        return Address(path=unquote(split.path), database=_of_query(split.query))
    if not split.hostname or split.query:
        raise ValueError(f"must be {_FORMS}")
    database = _database(split.path.removeprefix("/") or "0")
    return Address(split.hostname, port or PORT, "", split.scheme == "rediss", database)


def _of_query(query: str) -> int:
    if not query:
        return 0
    given = parse_qs(query, keep_blank_values=True)
    if set(given) != {"db"} or len(given["db"]) != 1:
        raise ValueError("may have ?db= with the database's number behind a path, and nothing else")
    return _database(given["db"][0])


def _database(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > MAX_DATABASE:
        raise ValueError("must end with the number of a database, such as /0")
    return int(text)


# --- asking ------------------------------------------------------------------------


class RedisRouter(GuardedRouter):
    """Asks one server."""

    def __init__(
        self, options: RedisOptions, context: SourceContext, server: Redis, template: KeyTemplate, shown: str
    ) -> None:
        super().__init__(self._find, options, context)
        self._answers = Answers(context.backends, options.backend)
        self._server = server
        self._template = template
        self._shown = shown

    def stopService(self) -> Deferred[None] | None:
        """Give up what is asked, and close the connections."""
        stopped = super().stopService()
        self._server.close()
        return stopped

    async def _find(self, lookup: Lookup) -> Route | None:
        key = self._template.key(lookup)
        if key is None:
            return None
        found = await self._server.find(key)
        if found is None:
            return None
        return self._answers.route(_of_string(found) if isinstance(found, bytes) else _of_hash(found))

    def __str__(self) -> str:
        return f"the Redis at {self._shown} knows where users live"


def _of_hash(found: Mapping[bytes, bytes]) -> Mapping[str, object]:
    return {name.decode("utf-8", "backslashreplace"): value for name, value in found.items()}


def _of_string(found: bytes) -> Mapping[str, object]:
    """Return the fields of an answer that is a string: a JSON object, or a backend's name.

    :raises BadAnswer: it is neither.
    """
    if not found.lstrip().startswith(b"{"):
        return {"backend": found.strip()}
    try:
        answer: dict[str, object] = json.loads(found.decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadAnswer("what the key holds begins as a JSON object does, and is none") from None
    return answer


@implementer(IRouteSource)
class RedisSource:
    """Makes a `RedisRouter`."""

    name = "redis"

    def router(self, options: Mapping[str, object], context: object) -> IRouter:
        """Make the router; see `IRouteSource.router`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        read = read_options(RedisOptions, options, context)
        try:
            address = read_url(read.url)
        except ValueError as error:
            raise BadOption("url", str(error)) from None
        try:
            template = KeyTemplate(read.key)
        except ValueError as error:
            raise BadOption("key", str(error)) from None
        if read.username is not None and read.password_file is None:
            raise BadOption("username", 'goes with a password: give password_file = "…"')
        if read.ca is not None and not address.tls:
            raise BadOption("ca", "is for TLS: begin url with rediss://")
        password = (
            None if read.password_file is None else secret(context, "password_file", read.password_file)
        )
        server = Redis(
            _endpoint(address, read, context),
            Access(read.username, password, address.database),
            context.clock,
            shown=str(address),
            connections=read.connections,
        )
        return RedisRouter(read, context, server, template, str(address))


def _endpoint(address: Address, options: RedisOptions, context: SourceContext) -> IStreamClientEndpoint:
    reactor: Any = context.clock
    if address.path:
        return UNIXClientEndpoint(reactor, str(context.folder / Path(address.path)), options.timeout)
    endpoint: Any = Hosts(reactor).endpoint(address.host, address.port, options.timeout)
    if not address.tls:
        return endpoint  # type: ignore[no-any-return]
    tls = tls_for(context, options.ca)
    try:
        return wrapClientTLS(tls(address.host), endpoint)
    except ValueError as error:
        raise BadOption("url", f"no certificate can carry the host's name: {error}") from None
