"""The ``sql`` source: a query of the operator's own, to SQLite, PostgreSQL or MariaDB.

The query's parameters are the drivers' own: nothing of what a client sends is
ever part of the text.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import Field
from twisted.internet.defer import Deferred
from zope.interface import implementer

from mailroute.events import Lookup, Route
from mailroute.interfaces import IRouter, IRouteSource
from mailroute.routers.answers import Answers
from mailroute.routers.guard import GuardedRouter
from mailroute.routers.sql.drivers import Driver, driver
from mailroute.routers.sql.pool import Pool, Row
from mailroute.routers.sql.query import translated
from mailroute.sources import CONTROL, BadOption, SlowOptions, SourceContext, read_options, secret

LAST_WORDS = 2.0
"""Seconds that connections have to end when mailroute stops; then it goes on without them."""

MAX_POOL = 100
"""Connections at most: more threads than that would only get into each other's way."""

_ADDRESSES = (ipaddress.IPv4Address, ipaddress.IPv6Address)


class SqlOptions(SlowOptions):
    """The keys of the block."""

    database: str = Field(min_length=1, repr=False, examples=["sqlite:users.db"])
    """``sqlite:`` and a file, relative to the configuration's; or ``postgresql://user@host/database`` or
    ``mariadb://user@host/database``, with what the driver takes (TLS, a UNIX socket) behind a ``?``."""

    query: str = Field(min_length=1, examples=["select host as backend from users where name = :user"])
    """A select whose columns are named as a route's fields, with the parameters ``:user``, ``:local``,
    ``:domain``, ``:protocol`` and ``:client``."""

    password_file: str | None = Field(default=None, examples=["database.secret"])
    """The file with the database's password in its first line."""

    pool: Annotated[int, Field(ge=1, le=MAX_POOL)] = 4
    """Connections at most, in each worker; 4 unless given."""


class SqlRouter(GuardedRouter):
    """Asks a database, over connections that are made when there are questions."""

    def __init__(
        self, options: SqlOptions, context: SourceContext, database: Driver, hidden: str | None
    ) -> None:
        self._driver = database
        self._query = translated(options.query, database.dialect)
        # As it stands in a text too, perhaps, which costs a question and no more.
        asks_for_client = database.dialect.parameter("client") in self._query
        super().__init__(self._find, options, context, by_client=asks_for_client)
        self._size = options.pool
        self._hidden = hidden
        self._answers = Answers(context.backends, options.backend)
        self._pool: Pool | None = None

    def stopService(self) -> Deferred[None] | None:
        """Give up what is asked, and close the connections."""
        super().stopService()
        pool, self._pool = self._pool, None
        if pool is None:
            return None
        # One who can only be waited for is not: the threads do not keep the process from ending.
        return pool.close().addTimeout(LAST_WORDS, self._clock).addErrback(lambda _: None)

    async def _find(self, lookup: Lookup) -> Route | None:
        values = _values(lookup)
        if values is None:
            return None
        if self._pool is None:
            self._pool = Pool(self._driver, self._query, self._size, self._clock, self._hidden)
        row = await self._pool.ask(values)
        return None if row is None else self._answers.route(_plain(row))

    def __str__(self) -> str:
        return f"users are looked up in {self._driver}"


def _values(lookup: Lookup) -> dict[str, str | None] | None:
    """Return the parameters; None: no database has such a user."""
    user = lookup.user
    if CONTROL.search(user) or any("\ud800" <= each <= "\udfff" for each in user):
        return None
    local, _, domain = user.rpartition("@") if "@" in user else (user, "", "")
    source = lookup.client.source
    return {
        "user": user,
        "local": local,
        "domain": domain,
        "protocol": lookup.protocol,
        "client": None if source is None else source.host,
    }


def _plain(row: Row) -> Mapping[str, object]:
    """Return a row with the drivers' own types as the texts and numbers that they stand for."""
    plain: Row = {}
    for name, value in row.items():
        if isinstance(value, Decimal) and value == value.to_integral_value():
            plain[name] = int(value)
        elif isinstance(value, _ADDRESSES):
            plain[name] = str(value)
        else:
            plain[name] = value
    return plain


@implementer(IRouteSource)
class SqlSource:
    """Makes a `SqlRouter`."""

    name = "sql"

    def router(self, options: Mapping[str, object], context: object) -> IRouter:
        """Make the router; see `IRouteSource.router`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        read = read_options(SqlOptions, options, context)
        password = None if read.password_file is None else _password(context, read.password_file)
        database = driver(read.database, password, read.timeout, context)
        return SqlRouter(read, context, database, password or _in_address(read.database))


def _password(context: SourceContext, file: str) -> str:
    try:
        return secret(context, "password_file", file).decode("utf-8")
    except UnicodeDecodeError:
        raise BadOption("password_file", "its first line is no UTF-8, as the password has to be") from None


def _in_address(address: str) -> str | None:
    """Return the password that an address holds, if it is the usual way: to keep it out of the log."""
    try:
        return unquote(urlsplit(address).password or "") or None
    except ValueError:
        return None
