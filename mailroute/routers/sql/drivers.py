"""The three kinds of databases: how each is reached, asked, and let go of while it hangs."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sqlite3
import traceback
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from mailroute.routers.sql.query import MARIADB, POSTGRESQL, SQLITE, Dialect
from mailroute.sources import BadOption, SourceContext
from mailroute.wording import did_you_mean


class Driver(Protocol):
    """One database; all but `abort` is called in the threads of the pool."""

    module: str
    """The name of the DB-API's module."""

    dialect: Dialect

    errors: tuple[type[Exception], ...]
    """What may be raised where the database is at fault, or the way to it."""

    def connect(self) -> Any:
        """Return a new connection, which has the time of one question for that."""

    def prepare(self, connection: Any) -> None:
        """Bring a new connection into its state."""

    def outdated(self, connection: Any) -> bool:
        """Tell whether a connection leads to where the database no longer is."""

    def abort(self, connection: Any) -> None:
        """Make a thread that waits for an answer wait no longer."""

    def is_about_the_values(self, error: Exception) -> bool:
        """Tell whether the error is that of this one question's values, and the database is well."""


# --- SQLite --------------------------------------------------------------------


class _File(sqlite3.Connection):
    """A connection that knows which file it has opened."""

    inode: tuple[int, int] | None = None


class Sqlite:
    """A file of SQLite's, which is only read; while another process has it locked, a question waits."""

    module = "sqlite3"
    dialect = SQLITE
    errors: tuple[type[Exception], ...] = (sqlite3.Error, OSError)

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout

    def connect(self) -> _File:
        """Open the file."""
        inode = self._inode()
        connection = sqlite3.connect(
            f"file:{quote(str(self._path))}?mode=ro",
            timeout=self._timeout,
            isolation_level=None,
            check_same_thread=False,
            factory=_File,
            uri=True,
        )
        connection.inode = inode
        return connection

    def prepare(self, connection: _File) -> None:
        """There is nothing to do."""

    def outdated(self, connection: _File) -> bool:
        """Another file may have been put in its place."""
        return connection.inode != self._inode()

    def _inode(self) -> tuple[int, int]:
        found = self._path.stat()
        return found.st_dev, found.st_ino

    def abort(self, connection: _File) -> None:
        """Stop a query that computes; one that waits for a lock ends by itself."""
        with contextlib.suppress(sqlite3.Error):
            connection.interrupt()

    def is_about_the_values(self, error: Exception) -> bool:
        """Such as a number that is too large."""
        return isinstance(error, sqlite3.DataError)

    def __str__(self) -> str:
        return f"the SQLite file {self._path}"


# --- PostgreSQL ----------------------------------------------------------------


class Postgresql:
    """A PostgreSQL, by psycopg and libpq, to whom the address is given as it is written.

    :raises BadOption: the address is none, or psycopg is not there.
    """

    module = "psycopg"
    dialect = POSTGRESQL
    _FILES: ClassVar = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile")

    def __init__(self, url: str, password: str | None, timeout: float, folder: Path) -> None:
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict
        except ImportError:
            raise _missing("postgresql") from None
        self._psycopg = psycopg
        self.errors: tuple[type[Exception], ...] = (psycopg.Error, OSError)
        try:
            self._told = dict(conninfo_to_dict(url))
        except psycopg.Error as error:
            raise BadOption("database", f"is no address of a PostgreSQL: {_without_values(error)}") from None
        for key in self._FILES:
            if self._told.get(key) not in (None, "system"):
                self._told[key] = str(folder / str(self._told[key]))
        _one_password(self._told.get("password"), password)
        self._password = password
        self._timeout = timeout

    def connect(self) -> Any:
        """Connect, and log in."""
        told = {"connect_timeout": max(2, math.ceil(self._timeout)), "application_name": "mailroute"}
        told |= {key: value for key, value in self._told.items() if value is not None}
        if self._password is not None:
            told["password"] = self._password
        try:
            # Prepared statements would be in the way of a pooler, and of a table that is altered.
            return self._psycopg.connect(**told, autocommit=True, prepare_threshold=None)  # type: ignore[arg-type]
        except self._psycopg.Error as error:
            # psycopg 3.3 leaves the exception in a circle with what it had begun, whose socket is open.
            traceback.clear_frames(error.__traceback__)
            raise

    def prepare(self, connection: Any) -> None:
        """Have the server end by itself what takes too long."""
        limit = str(max(1, int(self._timeout * 1000)))
        connection.execute("select set_config('statement_timeout', %s, false)", (limit,))

    def outdated(self, connection: Any) -> bool:
        """It may be known already that it is closed."""
        return bool(connection.closed)

    def abort(self, connection: Any) -> None:
        """Shut the socket: libpq has no time limit of its own for answers, but sees the connection end."""
        with (
            contextlib.suppress(*self.errors),
            socket.socket(fileno=os.dup(connection.fileno())) as shared,
        ):
            shared.shutdown(socket.SHUT_RDWR)

    def is_about_the_values(self, error: Exception) -> bool:
        """Such as a name that the database's encoding does not have."""
        return isinstance(error, self._psycopg.DataError)

    def __str__(self) -> str:
        told = self._told
        return f"the PostgreSQL database {told.get('dbname', '')} at {told.get('host', 'this machine')}"


# --- MariaDB -------------------------------------------------------------------

_FLAGS = {"true": True, "1": True, "false": False, "0": False}


class Mariadb:
    """A MariaDB, by PyMySQL.

    :raises BadOption: the address is none, or PyMySQL is not there.
    """

    module = "pymysql"
    dialect = MARIADB
    _FILES: ClassVar = ("ssl_ca", "ssl_cert", "ssl_key")
    _SWITCHES: ClassVar = ("ssl_verify_cert", "ssl_verify_identity", "ssl_disabled")
    _QUERY: ClassVar = ("unix_socket", *_FILES, *_SWITCHES)
    # What a character set or a collation does not have: ER_CANT_AGGREGATE_2COLLATIONS and its kin,
    # ER_INVALID_CHARACTER_STRING, ER_TRUNCATED_WRONG_VALUE_FOR_FIELD, ER_CANNOT_CONVERT_CHARACTER.
    _VALUES: ClassVar = {1267, 1270, 1271, 1300, 1366, 1977}

    def __init__(self, url: str, password: str | None, timeout: float, folder: Path) -> None:
        try:
            import pymysql
        except ImportError:
            raise _missing("mariadb") from None
        self._pymysql = pymysql
        self.errors: tuple[type[Exception], ...] = (pymysql.Error, OSError)
        try:
            parts = urlsplit(url)
            port = parts.port or 3306
            asked = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError:
            raise BadOption("database", "is no address: mariadb://user@host:port/database") from None
        told: dict[str, Any] = {
            "host": unquote(parts.hostname or "localhost"),
            "port": port,
            "user": unquote(parts.username) if parts.username else None,
            "database": unquote(parts.path.removeprefix("/")) or None,
        }
        for key, value in asked.items():
            told[key] = self._read(key, value, folder)
        given = unquote(parts.password) if parts.password is not None else None
        _one_password(given, password)
        self._told = told
        self._password = given if password is None else password
        self._timeout = timeout

    def _read(self, key: str, value: str, folder: Path) -> object:
        if key not in self._QUERY:
            hint = did_you_mean(key, self._QUERY)
            raise BadOption("database", f"there is no {key} in a MariaDB's address{hint}")
        if key in self._FILES:
            return str(folder / value)
        if key in self._SWITCHES:
            if value not in _FLAGS:
                raise BadOption("database", f"{key} must be true or false")
            return _FLAGS[value]
        return value

    def connect(self) -> Any:
        """Return one that `prepare` has yet to connect: so it can be let go of meanwhile."""
        return self._pymysql.Connection(
            **self._told,
            defer_connect=True,
            # As bytes: PyMySQL would send a text's as Latin-1, and no server stores it so.
            password=(self._password or "").encode(),
            connect_timeout=self._timeout,
            read_timeout=self._timeout,
            write_timeout=self._timeout,
            charset="utf8mb4",
            autocommit=True,
            program_name="mailroute",
        )

    def prepare(self, connection: Any) -> None:
        """Connect, log in, and have the server end by itself what takes too long."""
        connection.connect()
        with connection.cursor() as cursor:
            cursor.execute("set session max_statement_time = %s", (self._timeout,))

    def outdated(self, connection: Any) -> bool:
        """It may be known already that it is closed."""
        return not connection.open

    def abort(self, connection: Any) -> None:
        """Shut the socket, if there is one: PyMySQL limits each read, of which there may be many."""
        with contextlib.suppress(*self.errors, AttributeError):
            connection._sock.shutdown(socket.SHUT_RDWR)

    def is_about_the_values(self, error: Exception) -> bool:
        """Such as a name that a column's character set does not have."""
        if isinstance(error, self._pymysql.DataError):
            return True
        return bool(error.args) and error.args[0] in self._VALUES and isinstance(error, self._pymysql.Error)

    def __str__(self) -> str:
        where = self._told.get("unix_socket") or self._told["host"]
        return f"the MariaDB database {self._told['database'] or ''} at {where}"


# --- which one -----------------------------------------------------------------

_SCHEMES = ("sqlite", "postgresql", "mariadb")


def driver(address: str, password: str | None, timeout: float, context: SourceContext) -> Driver:
    """Return the driver for an address; nothing is connected.

    :raises BadOption: there is no such kind of database, or the address makes no sense.
    """
    scheme, colon, rest = address.partition(":")
    if not colon or scheme not in _SCHEMES:
        raise BadOption(
            "database",
            f"must begin with sqlite:, postgresql:// or mariadb://{did_you_mean(scheme, _SCHEMES)}",
        )
    if scheme == "sqlite":
        if password is not None:
            raise BadOption("password_file", "a SQLite file has no password: leave it out")
        path = context.folder / rest
        try:
            there = bool(rest) and path.is_file()
        except OSError as error:
            raise BadOption("database", f"cannot look at {path}: {error.strerror or error}") from None
        if not there:
            raise BadOption("database", f"there is no file {path}: name one of SQLite's that exists")
        return Sqlite(path, timeout)
    if not rest.startswith("//"):
        raise BadOption("database", f"must begin with {scheme}://")
    kind = Postgresql if scheme == "postgresql" else Mariadb
    return kind(address, password, timeout, context.folder)


def _one_password(given: object, from_file: str | None) -> None:
    if given is not None and from_file is not None:
        raise BadOption("password_file", "database holds a password too: take it out of there")


def _without_values(error: Exception) -> str:
    """Return what libpq says of an address, less what it quotes of it: a password may be in there."""
    return str(error).split('"')[0].strip(" :,\n")


def _missing(extra: str) -> BadOption:
    return BadOption("database", f'needs a library that is not there: pip install "mailroute[{extra}]"')
