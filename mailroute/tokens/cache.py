"""Tokens that are known, and one request at a time for each of those that are not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from os import close
from typing import Protocol, TypeVar

from attrs import evolve, field, frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailroute.events import LoginRefused, Reason, Refusal
from mailroute.tokens.files import BadFile, Record, TokenFiles
from mailroute.tokens.grant import Grant, GrantInvalid

MAX_KNOWN = 10000
"""Users whose tokens are kept in memory; the one used longest ago goes first."""

DEAD_FOR = 60.0
"""Seconds for which a refresh token that the server has called invalid is not shown to it again: clients try
every few seconds, and servers shut out who asks like that.  It may have been a mistake, so not for longer."""

LOCK_INTERVAL = 0.05
"""Seconds between two looks whether another process has got a user's token."""

LOCK_PATIENCE = 15.0
"""Seconds for which another process may be at it: three requests of the usual length."""

STOP_PATIENCE = 8.0
"""Seconds that a server has to answer when mailroute stops: less than a worker has to end."""

_log = Logger(namespace="mailroute.tokens")

_Result = TypeVar("_Result")


class InThread(Protocol):
    """Calls a function outside the reactor's thread."""

    def __call__(self, function: Callable[[], _Result], /) -> Deferred[_Result]:
        """Call it; the Deferred fires in the reactor's thread with what it returned or raised."""


@frozen
class _Dead:
    """A refresh token that was no good, until when that holds, and what was said of it."""

    refresh: str = field(repr=False)
    until: float
    refusal: Refusal


@frozen
class Token:
    """A token to log in with; ``known``: it was there before, and may have been revoked since."""

    value: str = field(repr=False)
    known: bool


class Tokens(Service):
    """The tokens of one backend's users, in memory and in files.

    As a service it does nothing but to stop in good order.

    :param files: None keeps them in memory alone.
    """

    def __init__(
        self, grant: Grant, files: TokenFiles | None, in_thread: InThread, clock: IReactorTime
    ) -> None:
        self._grant = grant
        self._files = files
        self._in_thread = in_thread
        self._clock = clock
        self._known: OrderedDict[str, Record] = OrderedDict()
        self._dead: OrderedDict[str, _Dead] = OrderedDict()
        self._unwritten: dict[str, Record] = {}
        self._waiting: dict[str, list[Deferred[Token]]] = {}
        self._replacing = 0
        self._leaving = False
        self._settled: Deferred[None] | None = None

    def stopService(self) -> Deferred[None] | None:
        """Stop as soon as no answer is on its way to a file, but for at most `STOP_PATIENCE` seconds.

        The server may have replaced the refresh token already: then nobody but its answer has a good one.
        """
        super().stopService()
        self._leaving = True
        if not self._replacing:
            return None
        self._settled = Deferred()
        late = self._clock.callLater(STOP_PATIENCE, self._give_up)
        return self._settled.addBoth(lambda _: late.cancel() if late.active() else None)

    def _give_up(self) -> None:
        _log.error("a refresh token may be lost: its server does not answer, and mailroute stops")
        self._settle()

    def _settle(self) -> None:
        settled, self._settled = self._settled, None
        if settled is not None:
            settled.callback(None)

    def __len__(self) -> int:
        """How many are kept in memory."""
        return len(self._known)

    def get(self, user: str, refused: str = "") -> Deferred[Token]:
        """Return a token for a user.

        :param refused: one that a backend has not taken: it is forgotten.
        :return: fails with `LoginRefused`.  Cancelling it ends nobody else's waiting, nor the request.
        """
        # What a client gets for itself is the same whoever the user is.
        key = user if self._grant.personal else ""
        record = self._known.get(key)
        if record is not None and record.access != refused and self._clock.seconds() < record.until:
            self._known.move_to_end(key)
            waiting: Deferred[Token] = Deferred()
            waiting.callback(Token(record.access, known=True))
            return waiting
        self._known.pop(key, None)
        waiting = Deferred(lambda gone: self._leave(key, gone))
        if key in self._waiting:
            self._waiting[key].append(waiting)
        else:
            self._waiting[key] = [waiting]
            getting = Deferred.fromCoroutine(self._renew(key, refused))
            getting.addBoth(self._got, key)
        return waiting

    def _leave(self, key: str, gone: Deferred[Token]) -> None:
        if gone in self._waiting.get(key, ()):
            self._waiting[key].remove(gone)

    def _got(self, result: Token | Failure, key: str) -> None:
        for waiting in self._waiting.pop(key):
            if isinstance(result, Failure):
                # A failure of each one's own: whoever gets it may change its traceback.
                waiting.errback(Failure(result.value))
            else:
                waiting.callback(result)

    # --- getting one ---

    async def _renew(self, key: str, refused: str) -> Token:
        if self._files is None:
            return self._keep(key, await self._grant.ask(Record()), known=False)
        try:
            lock = await self._lock(self._files, key)
            try:
                return await self._renew_file(self._files, key, refused)
            finally:
                close(lock)
        except BadFile as error:
            raise LoginRefused(Refusal(Reason.MISCONFIGURED, str(error))) from None

    async def _renew_file(self, files: TokenFiles, key: str, refused: str) -> Token:
        """Get a token with nobody else at it: another process may just have done so."""
        record = self._unwritten.get(key) or await self._in_thread(partial(files.read, key))
        if record is None:
            record = Record()
        if record.access and record.access != refused and self._clock.seconds() < record.until:
            return self._keep(key, record, known=True)
        if self._grant.personal and not record.refresh:
            detail = f"there is no refresh token of {key!r}: put it there with mailroute token"
            raise LoginRefused(Refusal(Reason.MISCONFIGURED, detail))
        if self._leaving:
            raise LoginRefused(Refusal(Reason.UNAVAILABLE, "mailroute stops", unreached=True))
        self._replacing += 1
        try:
            record = await self._ask(key, record)
            await self._write(files, key, record)
        finally:
            self._replacing -= 1
            if not self._replacing:
                self._settle()
        return self._keep(key, record, known=False)

    async def _write(self, files: TokenFiles, key: str, record: Record) -> None:
        try:
            await self._in_thread(partial(files.write, key, record))
            self._unwritten.pop(key, None)
        except BadFile as error:
            # The old refresh token may be used up: as long as we run, we know the new one.
            self._unwritten[key] = record
            _log.error("tokens are lost when mailroute stops: {error}", error=str(error))

    async def _ask(self, key: str, record: Record) -> Record:
        """Get a token, unless the server has just said that there are none with what is in the file."""
        dead = self._dead.get(key)
        if dead is not None and dead.refresh == record.refresh and self._clock.seconds() < dead.until:
            raise LoginRefused(dead.refusal)
        self._dead.pop(key, None)
        try:
            return await self._grant.ask(record)
        except GrantInvalid as invalid:
            # An operator may have put another one into the file.
            self._unwritten.pop(key, None)
            self._dead[key] = _Dead(record.refresh, self._clock.seconds() + DEAD_FOR, invalid.refusal)
            if len(self._dead) > MAX_KNOWN:
                self._dead.popitem(last=False)
            raise

    def _keep(self, key: str, record: Record, *, known: bool) -> Token:
        self._known[key] = evolve(record, refresh="")
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return Token(record.access, known)

    async def _lock(self, files: TokenFiles, key: str) -> int:
        for _ in range(int(LOCK_PATIENCE / LOCK_INTERVAL)):
            lock: int | None = await self._in_thread(partial(files.lock, key))
            if lock is not None:
                return lock
            await deferLater(self._clock, LOCK_INTERVAL)
        detail = f"another process is getting a token for over {LOCK_PATIENCE:g} s"
        raise LoginRefused(Refusal(Reason.UNAVAILABLE, detail, unreached=True))
