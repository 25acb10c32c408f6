"""Threads that ask a database, each over a connection of its own; a hanging one holds up nobody for ever."""

from __future__ import annotations

import contextlib
from functools import partial
from threading import Lock, Thread
from typing import Any

from twisted.enterprise import adbapi
from twisted.internet.defer import CancelledError, Deferred

from mailroute.routers.sql.drivers import Driver
from mailroute.sources import BadAnswer
from mailroute.sources.context import Unanswered

MAX_SAID = 300
"""Characters of a database's error that get into the log."""

Row = dict[str, object]


class _GivenUp(Exception):
    """Nobody waits for the answer any more."""


class _Job:
    """One question on its way through a thread, which the reactor's thread may give up."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = Lock()
        self._connection: Any = None
        self._given_up = False

    def uses(self, connection: Any) -> None:
        """Tell over which connection it goes now, if any.

        :raises _GivenUp: it goes nowhere any more.
        """
        with self._lock:
            self._connection = connection
            if self._given_up and connection is not None:
                raise _GivenUp

    def check(self) -> None:
        """Look whether it is worth while to begin.

        :raises _GivenUp: it is not.
        """
        if self._given_up:
            raise _GivenUp

    def give_up(self) -> None:
        """Let the thread go on with something else."""
        with self._lock:
            self._given_up = True
            if self._connection is not None:
                self._driver.abort(self._connection)


class _Connection(adbapi.Connection):
    """A thread's connection, made when it is needed; each query is a transaction by itself."""

    def __init__(self, pool: _Connections) -> None:
        self._pool = pool
        self._connection: Any = None

    def commit(self) -> None:
        """The database has done so."""

    def rollback(self) -> None:
        """There is nothing to take back."""

    def current(self, driver: Driver) -> tuple[Any, bool]:
        """Return the thread's connection, and whether it is a new one."""
        known = self._pool.known()
        if known is not None and driver.outdated(known):
            self._pool.disconnect(known)
            known = None
        self._connection = self._pool.connect()
        return self._connection, known is None

    def drop(self) -> None:
        """Do not use this connection again."""
        connection, self._connection = self._connection, None
        self._pool.disconnect(connection)


class _Connections(adbapi.ConnectionPool):
    """Twisted's pool, with threads that are named and that nothing has to wait for at the end."""

    connectionFactory = _Connection  # noqa: N815 - Twisted's name
    noisy = False
    min = 0

    def __init__(self, driver: Driver, size: int, reactor: Any) -> None:
        self._driver = driver
        super().__init__(driver.module, cp_reactor=reactor, cp_max=size)

    def start(self) -> None:
        """Start; called by Twisted when the reactor runs."""
        # Twisted's would also see to it that the end of the reactor waits for all threads.
        if not self.running:
            # It is the one from the beginning: questions may be waiting in it.
            self.threadpool.name = "sql"
            self.threadpool.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]
            self.threadpool.start()
            self.running = True

    def known(self) -> Any:
        """Return this thread's connection, if it has one."""
        return self.connections.get(self.threadID())

    def connect(self) -> Any:
        """Return this thread's connection."""
        connection = self.known()
        if connection is None:
            connection = self.connections[self.threadID()] = self._driver.connect()
        return connection

    def _close(self, connection: Any) -> None:
        with contextlib.suppress(*self._driver.errors):
            connection.close()

    def close(self) -> Deferred[None]:
        """End the threads; the Deferred fires when all have, which may be never."""
        ended: Deferred[None] = Deferred()

        def end() -> None:
            self.finalClose()
            self._reactor.callFromThread(ended.callback, None)

        if self.startID is not None:
            self._reactor.removeSystemEventTrigger(self.startID)
            self.startID = None
        Thread(target=end, name="sql-end", daemon=True).start()
        return ended


class Pool:
    """Asks one query of one database, several at a time.

    :param secret: what must not get into the log, whatever the database says.
    """

    def __init__(self, driver: Driver, query: str, size: int, reactor: Any, secret: str | None) -> None:
        self._driver = driver
        self._query = query
        self._secret = secret
        self._pool = _Connections(driver, size, reactor)

    async def ask(self, values: dict[str, str | None]) -> Row | None:
        """Return the row for these values, by columns; None: there is none.

        :raises BadAnswer: there are two, or the database can do nothing with the values.
        :raises Unanswered: it did not answer.
        """
        job = _Job(self._driver)
        try:
            row: Row | None = await self._pool.runWithConnection(self._in_thread, job, values)
        except CancelledError:
            job.give_up()
            raise
        return row

    def close(self) -> Deferred[None]:
        """End all connections; the Deferred fires when that is done."""
        return self._pool.close()

    def _in_thread(self, connection: _Connection, job: _Job, values: dict[str, str | None]) -> Row | None:
        try:
            return self._ask(connection, job, values)
        except self._driver.errors as error:
            said = self._said(error)
            if self._driver.is_about_the_values(error):
                raise BadAnswer(f"the database cannot take the user's name: {said}") from None
            raise Unanswered(said) from None

    def _ask(self, connection: _Connection, job: _Job, values: dict[str, str | None]) -> Row | None:
        while True:
            job.check()
            raw, fresh = connection.current(self._driver)
            try:
                job.uses(raw)
                if fresh:
                    self._driver.prepare(raw)
                return self._fetch(raw, values)
            except self._driver.errors as error:
                job.uses(None)  # before it is closed: its number may soon be another's
                if self._driver.is_about_the_values(error):
                    raise
                connection.drop()
                # The server may have been started anew since the last question: once more.
                if fresh:
                    raise
            finally:
                job.uses(None)

    def _fetch(self, raw: Any, values: dict[str, str | None]) -> Row | None:
        cursor = raw.cursor()
        try:
            cursor.execute(self._query, values)
            if cursor.description is None:
                raise Unanswered("the query gives no rows: it has to be a select")
            columns = [column[0] for column in cursor.description]
            rows = cursor.fetchmany(2)
        finally:
            cursor.close()
        if not rows:
            return None
        if len(rows) > 1:
            raise BadAnswer("the query gives more than one row for the user")
        if len(set(columns)) < len(columns):
            raise BadAnswer("the query gives two columns of one name")
        return dict(zip(columns, rows[0], strict=True))

    def _said(self, error: Exception) -> str:
        """Return an error for the log: on one line, not long, and without the password."""
        said = " ".join(str(error).split())
        if self._secret:
            said = said.replace(self._secret, "…")
        return f"{type(error).__name__}: {ascii(said[:MAX_SAID])[1:-1]}"
