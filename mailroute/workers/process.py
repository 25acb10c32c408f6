"""One worker process, as the parent sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.workers import start
from mailroute.workers.channel import Channel, pair
from mailroute.workers.logs import publish
from mailroute.workers.supervisor import STOP_TIMEOUT

_log = Logger(namespace="mailroute.workers")

MAX_WORDS = 1000
"""Bytes of one line that a worker writes to its standard output or error."""


@frozen
class Kit:
    """What every worker gets: descriptors of the parent's."""

    letter: int
    counts: int
    sockets: Sequence[int]


class Worker(ProcessProtocol):
    """A worker process.

    :param number: which one, from 1: this is for people.
    :param ready: is called once it serves clients.
    :param ended: is called once it is gone, with how it ended.
    :raises OSError: it cannot be started.
    """

    def __init__(
        self,
        number: int,
        kit: Kit,
        reactor: Any,
        ready: Callable[[], None],
        ended: Callable[[str], None],
    ) -> None:
        self.number = number
        self._reactor = reactor
        self._impatience: IDelayedCall | None = None
        self._ready = ready
        self._ended = ended
        with ExitStack() as theirs, ExitStack() as ours:
            self._process = self._spawn(kit, theirs, ours)
            ours.pop_all()
        self.pid: int = self._process.pid or 0

    def _spawn(self, kit: Kit, theirs: ExitStack, ours: ExitStack) -> Any:
        """Start the process; what is the worker's is closed here by the one stack, and by both if that fails."""
        ours_end, theirs_end = pair()
        theirs.callback(theirs_end.close)
        self.channel = Channel(ours_end, self._reactor, self._received, self._lost)
        ours.callback(self.channel.close)
        out, into = os.pipe()
        theirs.callback(os.close, into)
        self.words = Words(self.number, out, self._reactor)
        ours.callback(self.words.close)
        empty = os.open(os.devnull, os.O_RDONLY)
        theirs.callback(os.close, empty)
        inherited = [theirs_end.fileno(), kit.letter, kit.counts, *kit.sockets]
        descriptors = {0: empty, 1: into, 2: into, **dict(enumerate(inherited, start.CHANNEL))}
        # -P: nothing that lies in the folder where we run is taken for a module.
        command = [sys.executable, "-P", str(Path(start.__file__)), str(self.number)]
        return self._reactor.spawnProcess(self, sys.executable, command, env=None, childFDs=descriptors)

    def tell(self, word: bytes, rest: bytes = b"") -> None:
        """Send it a message."""
        self.channel.send(word, rest)

    def kill(self) -> None:
        """End it, whatever it is doing."""
        with contextlib.suppress(ProcessExitedAlready):
            self._process.signalProcess("KILL")

    def processExited(self, reason: Failure) -> None:
        """Tell how it ended, but not before it is known that it was started."""
        self._reactor.callLater(0, self._gone, reason)

    def _gone(self, reason: Failure) -> None:
        if self._impatience is not None and self._impatience.active():
            self._impatience.cancel()
        # All that it has said comes before its end.
        self.channel.drain()
        self.channel.close()
        self.words.drain()
        self.words.close()
        self._ended(_how(reason.value))

    def _received(self, word: bytes, rest: bytes) -> None:
        if word == b"log":
            publish(rest, self.number)
        elif word == b"ready":
            self._ready()

    def _lost(self) -> None:
        # It ends.  If it does not, it is of no use to anybody.
        self._impatience = self._reactor.callLater(STOP_TIMEOUT, self.kill)


def _how(reason: Any) -> str:
    number = getattr(reason, "signal", None)
    if number:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(number).name}"
        return f"was killed by signal {number}"
    return f"ended with status {reason.exitCode}"


@implementer(IReadDescriptor)
class Words:
    """What a worker writes to its standard output and error: nothing, while all is well.

    Python does so if it cannot start, and libraries if they must end.
    """

    def __init__(self, number: int, descriptor: int, reactor: Any) -> None:
        self._number = number
        self._descriptor = descriptor
        self._reactor = reactor
        self._rest = b""
        self.last = ""
        os.set_blocking(descriptor, False)
        reactor.addReader(self)

    def fileno(self) -> int:
        """Return the descriptor to watch; -1 once it is closed."""
        return self._descriptor

    def doRead(self) -> None:
        """Read some of it."""
        self._read()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives it up, because it ends."""
        del reason
        self.close()

    def logPrefix(self) -> str:
        """Return a name for the log."""
        return "workers"

    def drain(self) -> None:
        """Read all that there is."""
        while self._descriptor >= 0 and self._read():
            pass

    def close(self) -> None:
        """Read no more."""
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1
            self._say(self._rest)
            self._rest = b""

    def _read(self) -> bool:
        try:
            data = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return False
        if not data:
            self.close()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._say(line)
        while len(self._rest) > MAX_WORDS:
            self._say(self._rest)
            self._rest = self._rest[MAX_WORDS:]
        return True

    def _say(self, line: bytes) -> None:
        text = line[:MAX_WORDS].decode("utf-8", "backslashreplace").rstrip()
        if text:
            self.last = text
            _log.error("worker {worker} says: {text}", worker=self._number, text=text)
