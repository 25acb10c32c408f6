"""The ``passwd-file`` source: a Dovecot passwd-file, whose extra fields say where accounts live.

A line is ``name:password:uid:gid:gecos:home:shell:extra fields``, of which the
name and the extra fields count here: who knows the password is asked elsewhere.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen
from pydantic import Field
from zope.interface import implementer

from mailroute.events import LoginRefused, Lookup, Reason, Refusal, Route
from mailroute.interfaces import IRouter, IRouteSource
from mailroute.routers.answers import Answers
from mailroute.sources import (
    CONTROL,
    BadAnswer,
    Options,
    SourceContext,
    UsersFile,
    read_options,
)
from mailroute.sources.dovecot import route_fields
from mailroute.sources.users_file import LineReader, decoded
from mailroute.wire import dovecot_auth

_EXTRA = 7
"""How many fields stand before the extra fields: name, password, uid, gid, gecos, home, shell."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class PasswdFileOptions(Options):
    """The keys of the block."""

    file: str = Field(examples=["users"])
    """The file."""

    backend: str | None = None
    """The backend of the users whose line names none, and whose block holds where a line names a host;
    unless given, users without ``host=`` are not known here."""


@frozen
class Entry:
    """What a line says of a user: its route, or why not; ``networks``: whence alone it may come."""

    route: Route | None = field(repr=False)
    refusal: Refusal | None = None
    networks: tuple[Network, ...] = ()


class _Reader(LineReader[Entry]):
    """Reads lines."""

    def __init__(self, context: SourceContext, answers: Answers) -> None:
        super().__init__()
        self._context = context
        self._answers = answers

    def add(self, line: bytes) -> None:
        """Add a line's user (`LineReader.add`)."""
        text = decoded(line)
        if not text or text.isspace() or text.startswith("#"):
            return
        if CONTROL.search(text.replace("\t", " ")):
            raise ValueError("a control character")
        name, *others = text.split(":", _EXTRA)
        if not name or not others:
            raise ValueError("a line is name:password:uid:gid:gecos:home:shell:extra fields")
        extra = others[_EXTRA - 1] if len(others) >= _EXTRA else ""
        name = self._context.normalise(name)
        if name in self.users:
            raise ValueError(f"{name} is listed twice")
        try:
            self.users[name] = self._entry(dovecot_auth.fields(word.encode() for word in extra.split()))
        except BadAnswer as error:
            raise ValueError(f"{name}: {error}") from None

    def _entry(self, fields: dovecot_auth.Fields) -> Entry:
        networks = tuple(
            ipaddress.ip_network(part, strict=False)
            for part in fields.get("allow_nets", b"").decode().split(",")
            if part
        )
        try:
            answer = dict(route_fields(fields, self._context.backends))
            if self._answers.everywhere or answer.get("host") or "backend" in answer:
                answer.setdefault("name", fields.get("user"))
            route = self._answers.route(answer)
        except LoginRefused as refused:
            return Entry(None, refused.refusal, networks)
        return Entry(route, None, networks)


@implementer(IRouter)
class PasswdFileRouter(UsersFile[Entry]):
    """Knows the users of a file."""

    def __init__(self, path: Path, context: SourceContext, answers: Answers) -> None:
        self._answers = answers
        super().__init__(path, context)

    def _reader(self) -> LineReader[Entry]:
        return _Reader(self._context, self._answers)

    def route(self, lookup: Lookup) -> Route | None:
        """Return the user's route, if the file has one.

        :raises LoginRefused: the line says that the user may not log in, or not from there.
        """
        entry = self.users.get(lookup.user)
        if entry is None:
            return None
        if entry.networks and not _within(lookup, entry.networks):
            detail = "allow_nets does not have the client's address"
            raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, detail))
        if entry.refusal is not None:
            raise LoginRefused(entry.refusal)
        return entry.route

    def __str__(self) -> str:
        return f"users are looked up in the passwd-file {self.path}, which has {len(self)} now"


def _within(lookup: Lookup, networks: tuple[Network, ...]) -> bool:
    if lookup.client.source is None:
        return False
    address = ipaddress.ip_address(lookup.client.source.host)
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in networks)


@implementer(IRouteSource)
class PasswdFileSource:
    """Makes a `PasswdFileRouter`."""

    name = "passwd-file"

    def router(self, options: Mapping[str, object], context: object) -> IRouter:
        """Make the router; see `IRouteSource.router`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        read = read_options(PasswdFileOptions, options, context)
        answers = Answers(context.backends, read.backend)
        return PasswdFileRouter.of({"file": read.file}, context, answers)
