"""The ``ldap`` source: a directory says where accounts live, and may check the password."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any
from urllib.parse import urlsplit

from attrs import evolve
from pydantic import Field
from twisted.internet.defer import Deferred
from zope.interface import implementer

from mailroute.events import LoginRefused, Lookup, Reason, Refusal, Route
from mailroute.interfaces import IRouter, IRouteSource
from mailroute.proofs import Proof
from mailroute.routers.answers import FIELDS, FORWARD, Answers
from mailroute.routers.guard import GuardedRouter
from mailroute.sources import BadAnswer, BadOption, SlowOptions, SourceContext, read_options, secret
from mailroute.sources.trust import tls_for

MAX_URLS = 8
"""Servers of one block: each has its part of the time."""

_PLACES = re.compile(r"\{(user|local|domain)\}")
_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}|[0-9]+(\.[0-9]+)+")


class Scope(Enum):
    """How far below the base is searched; the values are the configuration's words."""

    BASE = "base"
    ONE = "one"
    SUBTREE = "subtree"


class LdapOptions(SlowOptions):
    """The keys of the block."""

    urls: list[str] = Field(min_length=1, max_length=MAX_URLS, examples=[["ldaps://ldap.example.org"]])
    """The servers: ``ldap://host`` or ``ldaps://host``, with or without a port.  The first that answers is
    believed; one that has failed comes last for 30 s."""

    base: str = Field(examples=["ou=people,dc=example,dc=org"])
    """The entry below which is searched."""

    filter: str = Field(examples=["(&(objectClass=person)(mail={user}))"])
    """What is searched for; ``{user}``, ``{local}`` and ``{domain}`` stand for the name, and for what is
    before and behind its last ``@``."""

    scope: Annotated[Scope, Field(strict=False)] = Scope.SUBTREE
    """``base``, ``one`` or ``subtree``, which it is unless given."""

    attributes: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    """The attributes of an entry, and the fields of a route that they are; none unless given."""

    starttls: bool = False
    """Whether TLS begins before anything else on ``ldap://``; ``false`` unless given."""

    ca: str | None = None
    """PEM file with the authorities that may vouch for the servers; the system's unless given."""

    bind_dn: str | None = None
    """The entry as which searches are made; anonymously unless given."""

    bind_password_file: str | None = None
    """File with the password of ``bind_dn``."""

    bind: bool = False
    """Whether the password is checked, by a bind as the entry that was found; ``false`` unless given."""

    connections: Annotated[int, Field(ge=1, le=1000)] = 10
    """How many questions there may be at a time, each on a connection of its own; 10 unless given."""


class LdapRouter(GuardedRouter):
    """Asks one directory."""

    def __init__(self, options: LdapOptions, context: SourceContext) -> None:
        from mailroute.sources import ldap

        super().__init__(self._find, options, context, by_password=options.bind)
        self.proves = options.bind
        self._ldap = ldap
        self._urls = options.urls
        self._template = options.filter
        self._fields = {name.lower(): to for name, to in _fields(options).items()}
        self._base = options.base
        self._scope = _SCOPES[options.scope]
        self._answers = Answers(context.backends, options.backend)
        self._filter("x@x")  # whatever is wrong with it is said now
        servers = [ldap.Server(*_server(url, options.starttls)) for url in options.urls]
        self._directory = ldap.Directory(
            servers,
            ldap.Access(options.starttls, options.bind_dn, _bind_password(options, context)),
            context.clock,
            tls_for(context, options.ca),
            patience=options.timeout,
            connections=options.connections,
            label=context.label,
        )

    def stopService(self) -> Deferred[None] | None:
        """Close the connections."""
        super().stopService()
        self._directory.close()
        return None

    async def _find(self, lookup: Lookup) -> Route | None:
        password = _shown(lookup) if self.proves else ""
        ldap = self._ldap
        wanted = ldap.Search(
            self._base,
            ldap.SearchScope(self._scope),
            self._filter(lookup.user),
            tuple(self._fields) or ("1.1",),
        )
        entry = await self._directory.search(wanted)
        if entry is None:
            return None
        if self.proves and not await self._directory.check(entry.name, password):
            raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "the directory refuses the password"))
        answer: dict[str, object] = {}
        for name, to in self._fields.items():
            values = entry.attributes.get(name, ())
            if len(values) > 1:
                raise BadAnswer(f"the attribute for {to} has {len(values)} values, and must have one")
            answer[to] = next(iter(values), None)
        route = self._answers.route(answer)
        return None if route is None else evolve(route, proven=self.proves)

    def _filter(self, user: str) -> Any:
        """Return the filter for a user.

        :raises BadOption: it is none, whoever the user is.
        """
        local, at, domain = user.rpartition("@")
        parts = {"user": user, "local": local if at else user, "domain": domain if at else ""}
        text = _PLACES.sub(lambda found: self._ldap.escape(parts[found[1]]), self._template)
        try:
            return self._ldap.parsed(text)
        except ValueError as error:
            raise BadOption("filter", f"is no filter (RFC 4515): {error}") from None

    def __str__(self) -> str:
        return f"{' or '.join(self._urls)} {'checks passwords and ' * self.proves}knows where users live"


_SCOPES = {Scope.BASE: 0, Scope.ONE: 1, Scope.SUBTREE: 2}


@implementer(IRouteSource)
class LdapSource:
    """Makes an `LdapRouter`."""

    name = "ldap"

    def router(self, options: Mapping[str, object], context: object) -> IRouter:
        """Make the router; see `IRouteSource.router`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        read = read_options(LdapOptions, options, context)
        if not _PLACES.search(read.filter) or re.search(r"[{}]", _PLACES.sub("", read.filter)):
            raise BadOption("filter", "must hold {user} or {local}, and no braces but these and {domain}")
        try:
            return LdapRouter(read, context)
        except ModuleNotFoundError as error:
            if error.name != "sansldap":
                raise
            raise BadOption("", 'needs the package sansldap: pip install "mailroute[ldap]"') from None


def _shown(lookup: Lookup) -> str:
    """Return the password that the client shows.

    :raises LoginRefused: there is none that could be checked.
    """
    shown = lookup.credentials
    if shown is None or not shown.user:
        detail = "the directory is to check passwords, and there is none: a block without bind is for this"
        raise LoginRefused(Refusal(Reason.MISCONFIGURED, detail))
    if shown.authorize_as not in (b"", shown.user):
        # It would check one name's password, and another one's account would be opened.
        detail = "a directory cannot tell who may act for whom"
        raise LoginRefused(Refusal(Reason.AUTHORIZATION_FAILED, detail))
    try:
        password = shown.secret.decode("utf-8")
    except UnicodeDecodeError:
        password = ""
    if shown.proof is not Proof.PASSWORD or not password:
        detail = "what the client shows is no password, or an empty one"
        raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, detail))
    return password


def _fields(options: LdapOptions) -> Mapping[str, str]:
    """Return the attributes, and the fields that they are.

    :raises BadOption: one of them can be none, or two are the same.
    """
    for name, to in options.attributes.items():
        if not _ATTRIBUTE.fullmatch(name):
            raise BadOption("attributes", f"{name!r} is no attribute's name")
        if to not in FIELDS and not to.startswith(FORWARD):
            raise BadOption("attributes", f"there is no field {to!r}; there are {', '.join(FIELDS)}")
    if len(set(options.attributes.values())) < len(options.attributes):
        raise BadOption("attributes", "two attributes cannot be one field")
    if len({name.lower() for name in options.attributes}) < len(options.attributes):
        raise BadOption("attributes", "names one attribute twice")
    if not options.attributes and options.backend is None:
        raise BadOption("attributes", "missing: without a backend for all, an attribute has to say where")
    return options.attributes


def _server(url: str, starttls: bool) -> tuple[str, int, bool]:
    """Return the host, the port, and whether TLS comes first.

    :raises BadOption: it is not the address of a server.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    odd = "@" in parts.netloc or parts.path.strip("/") or parts.query or parts.fragment or not url.isascii()
    if parts.scheme not in ("ldap", "ldaps") or not parts.hostname or port == 0 or odd:
        raise BadOption("urls", "must be such as ldap://host:389 or ldaps://host:636, with nothing behind it")
    secure = parts.scheme == "ldaps"
    if secure and starttls:
        raise BadOption("starttls", "goes with ldap://: on ldaps:// TLS is there from the first byte")
    return parts.hostname, port or (636 if secure else 389), secure


def _bind_password(options: LdapOptions, context: SourceContext) -> str:
    """Return the password to search with.

    :raises BadOption: it cannot be read, or goes with no name.
    """
    if (options.bind_dn is None) is not (options.bind_password_file is None):
        raise BadOption("bind_dn", "goes with bind_password_file: give both or none")
    if options.bind_password_file is None:
        return ""
    if not options.bind_dn:
        raise BadOption("bind_dn", "is empty: a password is somebody's")
    try:
        return secret(context, "bind_password_file", options.bind_password_file).decode("utf-8")
    except UnicodeDecodeError:
        raise BadOption("bind_password_file", "must hold UTF-8") from None
