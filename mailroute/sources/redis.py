"""Asking a Redis server, over a few connections that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen
from OpenSSL import SSL
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.endpoints import connectProtocol
from twisted.internet.error import ConnectionClosed, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from mailroute.sources.context import BadAnswer, Unanswered
from mailroute.tls import explain
from mailroute.wire import resp
from mailroute.wire.lines import Stop

KEPT = 60.0
"""Seconds for which an idle connection may be used again: what lies in between may have forgotten it."""

WRONG_TYPE = "WRONGTYPE"
"""The server's code for a key that holds another kind of value."""

Found = Mapping[bytes, bytes] | bytes | None
"""The fields of the hash at a key, or the string that it holds; None: there is no such key."""


class RedisRefusesLogin(Unanswered):
    """The server wants another name or password, or any at all."""


class RedisForbids(Unanswered):
    """The user whose name mailroute gives may not do what it has to do."""


class RedisHasNoSuchDatabase(Unanswered):
    """There is no database of that number, or the user may not use it."""


class RedisCannotAnswer(Unanswered):
    """The server says that it cannot answer: it still loads its data, for example."""


class RedisSpeaksOtherwise(Unanswered):
    """What the server sends is not Redis's protocol."""

    usual = "what it sends is not Redis's protocol; look at what listens at url, and whether it wants TLS"


class RedisIsNotTrusted(Unanswered):
    """There is no TLS with the server, or its certificate is none for it."""


_LOGIN = "look at username and password_file, and at the server's requirepass or ACL"
_REFUSALS: Mapping[str, tuple[type[Unanswered], str]] = {
    "WRONGPASS": (RedisRefusesLogin, f"username and password do not match; {_LOGIN}"),
    "NOAUTH": (RedisRefusesLogin, f"it wants a password; {_LOGIN}"),
    "NOPERM": (
        RedisForbids,
        "its ACL does not let this user do that; it takes +hgetall, +get and +select, and ~ with the keys",
    ),
}


@frozen
class Access:
    """How a server is talked to; the repr does not show the password."""

    username: str | None = None
    password: bytes | None = field(default=None, repr=False)
    database: int = 0

    def commands(self) -> Sequence[tuple[bytes, ...]]:
        """Return what is said first on a connection."""
        said: list[tuple[bytes, ...]] = []
        if self.password is not None:
            names = [] if self.username is None else [self.username.encode("utf-8")]
            said.append((b"AUTH", *names, self.password))
        if self.database:
            said.append((b"SELECT", b"%d" % self.database))
        return said


class _Connection(Protocol):
    """A connection, on which one question is asked at a time."""

    transport: Any

    def __init__(self) -> None:
        self._replies = resp.ReplyReader()
        self._waiting: Deferred[resp.Reply] | None = None
        self._answered = False
        self.lost: Exception | None = None
        self.used = 0.0

    def ask(self, words: Sequence[bytes]) -> Deferred[resp.Reply]:
        """Ask, and return the reply.  Whoever cancels the Deferred has to close: the reply may still come.

        :raises Exception: the connection is lost, for this reason.
        """
        if self.lost is not None:
            raise self.lost
        waiting: Deferred[resp.Reply] = Deferred()
        self._waiting = waiting
        self.transport.write(resp.command(words))
        return waiting

    def dataReceived(self, data: bytes) -> None:
        """Take bytes; whatever is not the reply to the question ends the connection."""
        if self.lost is not None:
            return
        self._replies.feed(data)
        try:
            reply = self._replies.reply()
        except resp.TooLong:
            bounds = f"{resp.MAX_REPLY} bytes or {resp.MAX_ITEMS // 2} fields"
            self._end(BadAnswer(f"it has more than {bounds}"))
            return
        except resp.Malformed:
            self._end(RedisSpeaksOtherwise())
            return
        whole = not isinstance(reply, Stop)
        if self._waiting is None or (whole and len(self._replies)):
            self._end(RedisSpeaksOtherwise())
        elif not isinstance(reply, Stop):
            self._answered = True
            waiting, self._waiting = self._waiting, None
            waiting.callback(reply)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """Nobody gets a reply any more."""
        error: Exception = ConnectionLost()
        if reason.check(SSL.Error) and not self._answered:
            error = RedisIsNotTrusted(f"no TLS: {explain(reason)}; look at ca, and at the host's name in url")
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.lost = self.lost or error
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.errback(error)

    def _end(self, error: Exception) -> None:
        self._fail(error)
        self.close()

    def close(self) -> None:
        """Close it at once, whether the server takes anything or not."""
        self.lost, self._waiting = self.lost or ConnectionDone(), None
        self.transport.abortConnection()


class Redis:
    """A client of one server, which connects when there is a question.

    :param endpoint: where it is, TLS included.
    :param shown: what the log calls the server.
    :param connections: at most so many, one question on each at a time; the others wait for their turn.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        access: Access,
        clock: Any,
        *,
        shown: str,
        connections: int,
    ) -> None:
        self._endpoint = endpoint
        self._access = access
        self._clock = clock
        self._shown = shown
        self._turns = DeferredSemaphore(connections)
        self._idle: list[_Connection] = []

    async def find(self, key: bytes) -> Found:
        """Return what a key holds.

        :raises BadAnswer: the key holds something else, or too much.
        :raises Exception: the server cannot be asked.
        """
        await self._turns.acquire()
        try:
            return await self._ask(key)
        finally:
            self._turns.release()

    async def _ask(self, key: bytes) -> Found:
        connection = self._kept()
        if connection is not None:
            try:
                return await self._read(connection, key)
            except ConnectionClosed:
                # The server may have been started anew: to ask twice does no harm.
                self._close_idle()
        return await self._read(await self._connected(), key)

    async def _read(self, connection: _Connection, key: bytes) -> Found:
        try:
            reply = await connection.ask((b"HGETALL", key))
            if reply == resp.Error(WRONG_TYPE):
                reply = await connection.ask((b"GET", key))
            found = self._found(reply)
        except BadAnswer:
            self._keep(connection)  # if the server was cut short, it is lost and will not be used
            raise
        except BaseException:
            connection.close()
            raise
        self._keep(connection)
        return found

    def _found(self, reply: resp.Reply) -> Found:
        if reply == resp.Error(WRONG_TYPE):
            raise BadAnswer("the key holds neither a hash nor a string")
        if isinstance(reply, resp.Error):
            raise self._refused(reply, RedisCannotAnswer, "it cannot answer now; look at its log")
        if isinstance(reply, tuple):
            return _pairs(reply)
        if isinstance(reply, int):
            raise RedisSpeaksOtherwise
        return reply

    # --- connections ---

    def _kept(self) -> _Connection | None:
        """Return a connection that has been used lately."""
        while self._idle:
            connection = self._idle.pop()
            if connection.lost is None and self._clock.seconds() - connection.used < KEPT:
                return connection
            connection.close()
        return None

    def _keep(self, connection: _Connection) -> None:
        connection.used = self._clock.seconds()
        self._idle.append(connection)

    async def _connected(self) -> _Connection:
        connection = await self._dial()
        try:
            for words in self._access.commands():
                reply = await connection.ask(words)
                if isinstance(reply, resp.Error):
                    raise self._not_let_in(words[0], reply)
        except BaseException:
            connection.close()
            raise
        return connection

    def _dial(self) -> Deferred[_Connection]:
        """Connect.  An endpoint that is given up says that the name is wrong, for example; this does not."""
        given_up: list[object] = []

        def give_up(made: Deferred[_Connection]) -> None:
            given_up.append(made)
            dialling.cancel()

        def dialled(outcome: _Connection | Failure) -> None:
            if not given_up:
                made.callback(outcome)
            elif isinstance(outcome, _Connection):
                outcome.close()

        made: Deferred[_Connection] = Deferred(give_up)
        dialling: Deferred[Any] = connectProtocol(self._endpoint, _Connection())
        dialling.addBoth(dialled)
        return made

    def _not_let_in(self, word: bytes, reply: resp.Error) -> Unanswered:
        if word == b"SELECT":
            why = f"there is no database {self._access.database} for this user; correct url"
            return self._refused(reply, RedisHasNoSuchDatabase, why)
        # It has no passwords, for example, or knows no names yet (before Redis 6), or is full.
        why = f"it does not take the password, or no more clients; {_LOGIN}"
        return self._refused(reply, RedisRefusesLogin, why)

    def _refused(self, reply: resp.Error, usual: type[Unanswered], why: str) -> Unanswered:
        """Return what an error of the server's means, and what to do about it."""
        kind, known = _REFUSALS.get(reply.code, (usual, why))
        return kind(f"Redis at {self._shown}: {known} ({reply.code})")

    def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Close the connections that are not in use; those that are end with their questions."""
        self._close_idle()


def _pairs(items: tuple[object, ...]) -> Mapping[bytes, bytes] | None:
    """Return the fields of a hash; None: there are none, and so no such key.

    :raises RedisSpeaksOtherwise: they are no names and values.
    """
    parts = [item for item in items if isinstance(item, bytes)]
    if len(parts) != len(items) or len(parts) % 2:
        raise RedisSpeaksOtherwise
    return dict(zip(parts[::2], parts[1::2], strict=True)) or None
