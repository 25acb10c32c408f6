"""Asking directories (LDAP, RFC 4511): what they know of somebody, and whether a password is right."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import field, frozen
from OpenSSL import SSL
from sansldap import (
    LDAPFilter,
    LDAPMessage,
    LDAPResultCode,
    SearchResultEntry,
    SearchScope,
)
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.endpoints import connectProtocol, wrapClientTLS
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionClosed,
    DNSLookupError,
)

from mailroute.sources.context import BadAnswer
from mailroute.sources.hosts import Hosts
from mailroute.sources.ldap_connection import (
    Connection,
    DirectoryRefuses,
    DirectorySpeaksOtherwise,
    result,
    succeeded,
)
from mailroute.sources.turns import Turns, all_failed
from mailroute.tls import ClientTLS

MAX_ENTRIES = 2
"""Entries that are asked for: one of them is one too many."""

GOOD_BYE = 1.0
"""Seconds for a server to take the end of a connection: over TLS one that hangs never would."""

_NOT_PLAIN = re.compile(rb"[^A-Za-z0-9@._+=-]")


_FAILURES = (
    DirectoryRefuses,
    DirectorySpeaksOtherwise,
    TookTooLong,
    ConnectError,
    ConnectionClosed,
    DNSLookupError,
    SSL.Error,
)


def escape(value: str) -> str:
    """Return a value as it stands in a filter (RFC 4515 section 3), all escaped that may mean something."""
    return _NOT_PLAIN.sub(lambda found: b"\\%02x" % ord(found[0]), value.encode("utf-8")).decode("ascii")


def parsed(text: str) -> LDAPFilter:
    """Return a filter that is written as RFC 4515 has it.

    :raises ValueError: it is none.
    """
    return LDAPFilter.from_string(text)


@frozen
class Server:
    """A server: where it is, and whether TLS comes first, in between or not at all."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@frozen
class Search:
    """What is searched for."""

    base: str
    scope: SearchScope
    filter: LDAPFilter
    attributes: tuple[str, ...]


@frozen
class Entry:
    """An entry: its name, and the values of its attributes by their names in lower case."""

    name: str
    attributes: Mapping[str, Sequence[bytes]]


@frozen
class Access:
    """How a directory is talked to; the repr does not show the password.

    ``name`` and ``password``: as whom searches are made; anonymously if there is no name.
    """

    starttls: bool
    name: str | None = None
    password: str = field(default="", repr=False)


_Work = Callable[[Connection], Any]


class Directory:
    """Servers of one directory: the first that answers is believed.

    :param tls: makes the client's side of TLS, by the server's name.
    :param patience: seconds for one answer of all of them together.
    :param connections: at most so many questions are asked at a time, each on a connection of its own; as
        many are kept for the next ones.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        access: Access,
        reactor: Any,
        tls: Callable[[str], ClientTLS],
        *,
        patience: float,
        connections: int,
        label: str,
    ) -> None:
        self._servers = Turns(servers, reactor, label)
        self._access = access
        self._reactor = reactor
        self._hosts = Hosts(reactor)
        self._tls = tls
        self._patience = patience / len(servers)
        self._turns = DeferredSemaphore(connections)
        # Those on which a user's password was checked are that user's: no search is made there.
        self._searching: deque[tuple[Server, Connection]] = deque()
        self._checking: deque[tuple[Server, Connection]] = deque()
        self._most = connections
        self._closed = False

    async def search(self, wanted: Search) -> Entry | None:
        """Return the only entry that there is, None if there is none.

        :raises BadAnswer: there is more than one.
        """

        async def work(connection: Connection) -> list[LDAPMessage]:
            messages = await connection.ask(
                lambda session: session.search_request(
                    wanted.base,
                    wanted.scope,
                    size_limit=MAX_ENTRIES,
                    time_limit=math.ceil(self._patience),
                    filter=wanted.filter,
                    attributes=list(wanted.attributes),
                )
            )
            if result(messages) != LDAPResultCode.SIZE_LIMIT_EXCEEDED:
                succeeded(messages)
            return messages

        messages = await self._ask(self._searching, work, bind=True)
        entries = [each for each in messages if isinstance(each, SearchResultEntry)]
        if len(entries) > 1 or result(messages) == LDAPResultCode.SIZE_LIMIT_EXCEEDED:
            raise BadAnswer("there is more than one such entry in the directory")
        return _entry(entries[0]) if entries else None

    async def check(self, name: str, password: str) -> bool:
        """Tell whether this is the entry's password (a simple bind, RFC 4513 section 5.1.3)."""
        if not name or not password:
            return False  # a server would take it for an anonymous bind, and say that it has succeeded

        async def work(connection: Connection) -> bool:
            code = result(await connection.ask(lambda session: session.bind_simple(name, password)))
            if code not in (LDAPResultCode.SUCCESS, *_AGAINST):
                raise DirectoryRefuses(code)
            return code == LDAPResultCode.SUCCESS

        checked: bool = await self._ask(self._checking, work, bind=False)
        return checked

    def close(self) -> None:
        """Close all connections that nobody uses."""
        self._closed = True
        for idle in (self._searching, self._checking):
            while idle:
                self._leave(idle.pop()[1])

    # --- connections ---

    async def _ask(self, idle: deque[tuple[Server, Connection]], work: _Work, *, bind: bool) -> Any:
        failures: list[tuple[Server, Exception]] = []
        for server in self._servers:
            await self._turns.acquire()
            try:
                asking = Deferred.fromCoroutine(self._at(server, idle, work, bind))
                answer = await asking.addTimeout(self._patience, self._reactor)
            except _FAILURES as error:
                failures.append((server, error))
                self._servers.failed(server, error)
            else:
                self._servers.answered(server)
                return answer
            finally:
                self._turns.release()
        raise all_failed(failures)

    async def _at(
        self, server: Server, idle: deque[tuple[Server, Connection]], work: _Work, bind: bool
    ) -> Any:
        """Do the work at one server; on a new connection if the one that was kept turns out to be closed."""
        while (kept := _kept(idle, server)) is not None:
            try:
                return await self._on(kept, server, idle, work)
            except ConnectionClosed:
                continue
        return await self._on(await self._open(server, bind), server, idle, work)

    async def _on(
        self, connection: Connection, server: Server, idle: deque[tuple[Server, Connection]], work: _Work
    ) -> Any:
        try:
            answer = await work(connection)
        except BaseException:
            connection.abort()
            raise
        if self._closed:
            self._leave(connection)
        elif connection.lost is None:
            idle.append((server, connection))
            if len(self._searching) + len(self._checking) > self._most:
                self._leave((self._searching or self._checking).popleft()[1])
        return answer

    def _leave(self, connection: Connection) -> None:
        connection.close()
        if connection.lost is None:
            self._reactor.callLater(GOOD_BYE, connection.abort)

    async def _open(self, server: Server, bind: bool) -> Connection:
        endpoint: Any = self._hosts.endpoint(server.host, server.port, self._patience)
        if server.tls:
            endpoint = wrapClientTLS(self._tls(server.host), endpoint)
        connection = Connection()
        try:
            await connectProtocol(endpoint, connection)
        except ConnectingCancelledError:
            raise CancelledError from None
        access = self._access
        try:
            if access.starttls:
                await connection.starttls(self._tls(server.host))
            if bind and access.name is not None:
                name, password = access.name, access.password
                succeeded(await connection.ask(lambda session: session.bind_simple(name, password)))
        except BaseException:
            connection.abort()
            raise
        return connection


_AGAINST = (
    LDAPResultCode.INVALID_CREDENTIALS,
    LDAPResultCode.INAPPROPRIATE_AUTHENTICATION,
    LDAPResultCode.CONSTRAINT_VIOLATION,
    LDAPResultCode.INSUFFICIENT_ACCESS_RIGHTS,
    LDAPResultCode.UNWILLING_TO_PERFORM,
    LDAPResultCode.NO_SUCH_OBJECT,
)
"""The codes of a bind that let this one user not in, and say nothing of the others."""


def _kept(idle: deque[tuple[Server, Connection]], server: Server) -> Connection | None:
    """Return a connection to a server that nobody uses; those that are closed are forgotten."""
    for each in reversed([*idle]):
        if each[1].lost is not None:
            idle.remove(each)
        elif each[0] == server:
            idle.remove(each)
            return each[1]
    return None


def _entry(message: SearchResultEntry) -> Entry:
    found = {attribute.name.lower(): tuple(attribute.values) for attribute in message.attributes}
    return Entry(message.object_name, found)
