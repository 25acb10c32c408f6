"""The nursery and the workers, as the parent sees them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from fcntl import F_DUPFD_CLOEXEC, fcntl
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mailroute.workers import start
from mailroute.workers.channel import Channel, pair
from mailroute.workers.logs import publish
from mailroute.workers.nursery import Identity
from mailroute.workers.questions import FIGURES, Questions
from mailroute.workers.sockets import HeldPort
from mailroute.workers.supervisor import STOP_TIMEOUT
from mailroute.workers.words import Words

_log = Logger(namespace="mailroute.workers")

LOG_PAUSE = 0.02
"""Seconds that a line of a worker's log may wait: those that come meanwhile are written with it."""

_BURY_AGAIN = 1.0
"""Seconds after which a nursery that is gone, and was not quite, is looked for again."""

_ABOVE = 16  # above all descriptors that the nursery has


class Nursery:
    """The process that makes the workers.  It ends when the parent's end of its channel is closed.

    :param letter: the descriptor of the memory with the letter.
    :param counts: the descriptor of the memory with the counts.
    :raises OSError: it cannot be started.
    """

    def __init__(self, letter: int, counts: int) -> None:
        self.workers: dict[int, Worker] = {}
        """By their keys, of which no two workers have the same."""
        self.keys = itertools.count()
        self.channel: Channel | None = None
        self.words: Words | None = None
        self._reactor: Any = None
        with ExitStack() as theirs, ExitStack() as ours:
            self._socket, end = pair()
            ours.callback(self._socket.close)
            theirs.callback(end.close)
            self._out, into = os.pipe()
            ours.callback(os.close, self._out)
            theirs.callback(os.close, into)
            empty = os.open(os.devnull, os.O_RDONLY)
            theirs.callback(os.close, empty)
            inherited = {0: empty, 1: into, 2: into}
            inherited |= {start.CONTROL: end.fileno(), start.LETTER: letter, start.COUNTS: counts}
            self._process = _spawn(inherited)
            ours.pop_all()

    def settle(self, reactor: Any, folders: Sequence[int]) -> None:
        """Have it become who and where this process is, and begin to listen to it.

        :param folders: descriptors of the root and the working directory.
        """
        self._reactor = reactor
        self.channel = Channel(self._socket, reactor, self._received, self._lost)
        self.words = Words("the nursery", self._out, reactor)
        self.channel.send(b"become", pickle.dumps(Identity.mine()), folders)

    def alive(self) -> bool:
        """Tell whether it is there."""
        return self.channel is not None and self.channel.open

    def send(self, word: bytes, rest: bytes, descriptors: Sequence[int] = ()) -> None:
        """Tell it something."""
        if self.channel is not None:
            self.channel.send(word, rest, descriptors)

    def close(self) -> None:
        """Let it end."""
        if self.channel is None:
            self._socket.close()
            os.close(self._out)
        else:
            self.channel.close()
        if self.words is not None:
            self.words.close()
        self._bury()

    def _bury(self) -> bool:
        """Say whether the process has ended; then it is no zombie any more."""
        with contextlib.suppress(ChildProcessError):  # whoever becomes a daemon has no children from before
            return os.waitpid(self._process, os.WNOHANG) != (0, 0)
        return True

    def _bury_soon(self) -> None:
        """See to it that no zombie is left: its sockets are closed before it has ended."""
        if not self._bury():
            self._reactor.callLater(_BURY_AGAIN, self._bury_soon)

    def _received(self, word: bytes, rest: bytes, descriptors: Sequence[int]) -> None:
        del descriptors
        key, _, what = rest.decode().partition(" ")
        worker = self.workers.pop(int(key), None)
        if worker is None:
            return
        if word == b"failed":
            worker.gone(f"cannot be made: {what}")
        else:
            process, status = map(int, what.split())
            worker.pid = process
            worker.gone(_how(status))

    def _lost(self) -> None:
        if self.words is not None:
            self.words.drain()
        _log.error("the nursery (process {pid}) is gone", pid=self._process)
        self.close()
        self._bury_soon()
        for worker in list(self.workers.values()):
            worker.unseen()


def _spawn(inherited: dict[int, int]) -> int:
    """Start the nursery's process with these descriptors, and return its id."""
    others = [descriptor for descriptor in _inheritable() if descriptor not in inherited]
    copies = {child: fcntl(ours, F_DUPFD_CLOEXEC, _ABOVE) for child, ours in inherited.items()}
    try:
        # -P: nothing that lies in the folder where we run is taken for a module.
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", str(Path(start.__file__))],
            os.environ,
            file_actions=[
                *((os.POSIX_SPAWN_DUP2, copy, child) for child, copy in copies.items()),
                *((os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in others),
            ],
            setsigdef=[signal.SIGPIPE, signal.SIGCHLD],
        )
    finally:
        for copy in copies.values():
            os.close(copy)


def _inheritable() -> list[int]:
    """Return the descriptors that other programs would get: Python makes none, systemd does."""
    found = []
    with contextlib.suppress(OSError):
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):  # the one with which the folder was listed
                if os.get_inheritable(int(entry.name)):
                    found.append(int(entry.name))
    return found


def _how(status: int) -> str:
    if os.WIFEXITED(status):
        return f"ended with status {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(number).name}"
    return f"was killed by signal {number}"


class Worker:
    """A worker process.

    :param place: its number, from 0.
    :param nursery: which makes it.
    :param ports: of all listeners.
    :param ready: is called once it serves clients.
    :param ended: is called once it is gone, with how it ended.
    :raises OSError: it cannot be had.
    """

    def __init__(
        self,
        place: int,
        nursery: Nursery,
        ports: Sequence[HeldPort],
        reactor: Any,
        ready: Callable[[], None],
        ended: Callable[[str], None],
    ) -> None:
        self.pid = 0
        self.name = f"worker {place + 1}"
        self._place = place
        self._nursery = nursery
        self._ports = ports
        self._reactor = reactor
        self._ready = ready
        self._ended = ended
        self.how = ""
        self._impatience: IDelayedCall | None = None
        self._key = next(nursery.keys)
        asked = {"key": self._key, "place": place, "families": [port.family for port in ports]}
        with ExitStack() as theirs, ExitStack() as ours:
            socket_, end = pair()
            ours.callback(socket_.close)
            theirs.callback(end.close)
            out, into = os.pipe()
            ours.callback(os.close, out)
            theirs.callback(os.close, into)
            given = [end.fileno(), into, *(port.descriptor(place) for port in ports)]
            nursery.send(b"make", json.dumps(asked).encode(), given)
            ours.pop_all()
        nursery.workers[self._key] = self
        self.words = Words(self.name, out, reactor)
        self.channel = Channel(socket_, reactor, self._received, self._lost, LOG_PAUSE)
        self._figures = Questions(self.channel, FIGURES)

    def stop(self) -> None:
        """Have it end in good order."""
        self.channel.send(b"stop")

    def kill(self) -> None:
        """End it, whatever it is doing."""
        if self._nursery.alive():
            # Not by its process id, which may be another's by now.
            self._nursery.send(b"kill", str(self._key).encode())
        elif self.pid and self.channel.open:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def adopt(self, place: int) -> None:
        """Have it accept on the sockets of another worker."""
        shared = [(number, port) for number, port in enumerate(self._ports) if port.each]
        asked = {"place": place, "listeners": [number for number, _ in shared]}
        self.channel.send(
            b"adopt", json.dumps(asked).encode(), [port.descriptor(place) for _, port in shared]
        )

    def drop(self, place: int) -> None:
        """Have it accept no longer on the sockets of another worker."""
        self.channel.send(b"drop", str(place).encode())

    def figures(self) -> Deferred[bytes | None]:
        """Return its metrics, packed (`mailroute.metrics.families`); None if it is gone."""
        return self._figures.ask()

    def gone(self, how: str) -> None:
        """Tell how it ended, once all that it has said is read."""
        self.how = how
        self.channel.drain()
        if self._impatience is not None and self._impatience.active():
            self._impatience.cancel()
        self.channel.close()
        self._figures.lost()
        self.words.drain()
        self.words.close()
        self._ended(how)

    def unseen(self) -> None:
        """Nobody will see how it ends: its end of the channel has to tell."""
        if not self.channel.open:
            self._nursery.workers.pop(self._key, None)
            self.gone("is gone")

    def _received(self, word: bytes, rest: bytes, descriptors: Sequence[int]) -> None:
        del descriptors
        if word == b"log":
            publish(rest, self._place + 1)
        elif word == b"ready":
            self.pid = int(rest)
            self._ready()
        elif word == FIGURES:
            self._figures.received(rest)

    def _lost(self) -> None:
        if not self._nursery.alive():
            self.unseen()
            return
        # It ends, and the nursery tells how.  If it does not, it is of no use to anybody.
        self._impatience = self._reactor.callLater(STOP_TIMEOUT, self.kill)
