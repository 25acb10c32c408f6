"""The ``command`` source: a program that is kept running, and answers JSON lines with JSON lines.

For each question it reads an object on a line, such as ``{"id": 1, "user":
"alice@example.org", "protocol": "imap", "client": "192.0.2.7", "session": "…"}``,
and writes one with the same ``id`` and the fields of a route, in any order;
with no field but ``id`` it does not know the user.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from twisted.internet.defer import Deferred
from twisted.internet.error import AlreadyCalled, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.events import Credentials, Lookup, Route
from mailroute.interfaces import IRouter, IRouteSource
from mailroute.routers.answers import Answers
from mailroute.routers.guard import GuardedRouter
from mailroute.routers.questions import question
from mailroute.routers.stderr import StandardError
from mailroute.sources import BadOption, SlowOptions, SourceContext, read_options
from mailroute.sources.context import Unanswered

MAX_LINE = 65536
"""Bytes of a line of the program's; one that writes a longer one is ended."""

LAST_WORDS = 2.0
"""Seconds that the program has to end by itself once its input has ended; as many after SIGTERM.  As many,
too, for what it has written to be read once it has ended: another program that it has begun may hold its
output, and go on for ever."""

MAX_IGNORED = 20
"""Questions in a row without any answer in time after which the program is ended: it would be started anew
rather than have more and more written to it that it does not read."""

INHERITED = re.compile("PATH|HOME|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR")
"""What the program gets of our own environment, which may hold anything, such as other services' keys."""

LATELY = 64
"""Questions answered last whose passwords are still looked for in what it says: two pipes keep no order."""

_log = Logger(namespace="mailroute.routers")


_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")


class ProgramEnded(Unanswered):
    """The program has ended before it answered; the text says how."""


class ProgramSpeaksOtherwise(Unanswered):
    """The program has written something that is no answer."""

    usual = "the program wrote what is no answer; have it write an object with the id on a line, and no more"


class CommandOptions(SlowOptions):
    """The keys of the block."""

    command: list[str] = Field(min_length=1, examples=[["/usr/local/bin/where"]])
    """The program and its arguments; no shell reads them.  Relative paths start from the file's folder."""

    environment: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    """What its environment has besides ``PATH``, ``HOME``, ``LANG``, ``LANGUAGE``, ``LC_*``, ``TZ`` and
    ``TMPDIR``, which it has from mailroute's; nothing unless given."""

    send_password: bool = False
    """Whether the program gets the password too, to check it: ``proven`` in an answer says that it is right;
    ``false`` unless given."""

    @field_validator("environment")
    @classmethod
    def _environment(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no variable's name: use letters, digits and _")
            if "\0" in value:
                raise ValueError(f"the value of {name} has a zero byte in it")
        return environment


class _Program(ProcessProtocol):
    """The program while it runs."""

    def __init__(self, label: str, clock: IReactorTime) -> None:
        self._label = label
        self._clock = clock
        self._reading: IDelayedCall | None = None
        self._waiting: dict[int, Deferred[Mapping[str, object]]] = {}
        self._shown: dict[int, Credentials] = {}
        self._lately: deque[Credentials] = deque(maxlen=LATELY)
        self._last = self._unanswered = 0
        self._out = bytearray()
        self._says = StandardError(label, clock, self._asked_about)
        self.running = self.usable = True
        self.ended: Deferred[None] = Deferred()
        self.transport: Any

    def ask(
        self, question: Mapping[str, object], shown: Credentials | None
    ) -> Deferred[Mapping[str, object]]:
        """Ask it; cancelling the Deferred forgets the answer.

        :param shown: what is in the question and not to get into the log.
        """
        self._last += 1
        number = self._last
        if shown is not None:
            self._shown[number] = shown

        def forget(_: Deferred[Mapping[str, object]]) -> None:
            if self._take(number) is not None:
                self._ignored()

        answer: Deferred[Mapping[str, object]] = Deferred(forget)
        self._waiting[number] = answer
        line = json.dumps({"id": number, **question}) + "\n"
        self.transport.write(line.encode("ascii"))
        return answer

    def outReceived(self, data: bytes) -> None:
        """Take what it writes to its standard output."""
        self._out += data
        *lines, rest = self._out.split(b"\n")
        self._out = bytearray(rest)
        try:
            if len(rest) > MAX_LINE:
                raise ValueError
            for line in lines:
                self._line(bytes(line))
        except (ValueError, RecursionError):
            _log.warn("{source}: the program wrote what is no answer, and is ended", source=self._label)
            # First, for whoever is told may ask again at once.
            self._discard()
            self._give_up(ProgramSpeaksOtherwise())

    def _line(self, line: bytes) -> None:
        if len(line) > MAX_LINE:
            raise ValueError
        answer = json.loads(line)
        number = answer.pop("id", None) if isinstance(answer, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or number > self._last:
            raise ValueError
        self._unanswered = 0
        waiting = self._take(number)
        if waiting is not None:
            waiting.callback(answer)

    def _take(self, number: int) -> Deferred[Mapping[str, object]] | None:
        shown = self._shown.pop(number, None)
        if shown is not None:
            self._lately.append(shown)
        return self._waiting.pop(number, None)

    def _asked_about(self) -> Iterator[Credentials]:
        return chain(self._shown.values(), self._lately)

    def _ignored(self) -> None:
        self._unanswered += 1
        if self._unanswered >= MAX_IGNORED and self.usable:
            _log.warn("{source}: the program answers nothing, and is ended", source=self._label)
            self._discard()

    def _discard(self) -> None:
        self.usable = False
        self.kill("KILL")

    def errReceived(self, data: bytes) -> None:
        """Log what it writes to its standard error."""
        self._says.received(data)

    def processExited(self, reason: Failure) -> None:
        """It has ended; what it has written may not have been read yet."""
        del reason
        self.usable = False
        self._reading = self._clock.callLater(LAST_WORDS, self.transport.loseConnection)

    def processEnded(self, reason: Failure) -> None:
        """It is gone, and so is its output."""
        if self._reading is not None and self._reading.active():
            self._reading.cancel()
        self.running = self.usable = False
        self._says.ended()
        why = _how(reason)
        self._give_up(ProgramEnded(f"the program has ended before its answer: {why}; the log has its words"))
        _log.info("{source}: the program has ended: {why}", source=self._label, why=why)
        self.ended.callback(None)

    def _give_up(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, {}
        self._lately.extend(self._shown.values())
        self._shown.clear()
        for answer in waiting.values():
            answer.errback(error)

    def kill(self, signal: str) -> None:
        """Send it a signal, if it is still there."""
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess(signal)


def _how(reason: Failure) -> str:
    """Say how a program has ended."""
    error: Any = reason.value
    if getattr(error, "signal", None) is not None:
        return f"it was ended by signal {error.signal}"
    return f"it exited with status {getattr(error, 'exitCode', None)}"


class CommandRouter(GuardedRouter):
    """Asks the program, which it starts when there is a question, and again if it has ended."""

    def __init__(self, options: CommandOptions, context: SourceContext, program: str) -> None:
        self.proves = options.send_password
        super().__init__(self._find, options, context, by_password=self.proves, by_client=self.proves)
        self._arguments = [program, *options.command[1:]]
        self._folder = context.folder
        inherited = {name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)}
        self._environment = inherited | options.environment
        self._answers = Answers(context.backends, options.backend, proves=self.proves)
        self._reactor: Any = context.clock
        self._context = context
        self._program: _Program | None = None

    def stopService(self) -> Deferred[None] | None:
        """End the program: its input ends, and if that does not do it signals will."""
        super().stopService()
        program, self._program = self._program, None
        if program is None or not program.running:
            return None
        program.transport.closeStdin()
        timers: list[IDelayedCall] = [
            self._reactor.callLater(LAST_WORDS, program.kill, "TERM"),
            self._reactor.callLater(2 * LAST_WORDS, program.kill, "KILL"),
        ]

        def ended(_: object) -> None:
            for timer in timers:
                with contextlib.suppress(AlreadyCalled):
                    timer.cancel()

        return program.ended.addCallback(ended)

    async def _find(self, lookup: Lookup) -> Route | None:
        asked = question(lookup, with_password=self.proves)
        return self._answers.route(
            await self._alive().ask(asked, lookup.credentials if self.proves else None)
        )

    def _alive(self) -> _Program:
        if self._program is None or not self._program.usable:
            program = _Program(self.label, self._reactor)
            self._reactor.spawnProcess(
                program,
                self._arguments[0],
                self._arguments,
                env=self._environment,
                path=str(self._folder),
            )
            self._program = program  # now that it runs
        return self._program

    def __str__(self) -> str:
        return f"the program {self._arguments[0]} knows where users live"


@implementer(IRouteSource)
class CommandSource:
    """Makes a `CommandRouter`."""

    name = "command"

    def router(self, options: Mapping[str, object], context: object) -> IRouter:
        """Make the router; see `IRouteSource.router`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        read = read_options(CommandOptions, options, context)
        program = Path(read.command[0])
        path = context.folder / program
        try:
            there = path.is_file()
        except OSError as error:
            raise BadOption("command", f"cannot look at {path}: {error.strerror or error}") from None
        if not there:
            raise BadOption("command", f"there is no program {path}: name one with its whole path")
        if not os.access(path, os.X_OK):
            raise BadOption("command", f"{path} cannot be run by mailroute's user: chmod +x it")
        return CommandRouter(read, context, str(path))
