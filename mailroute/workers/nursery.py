"""The nursery: a process that makes the workers, and nothing else.

It is a new interpreter, started before the parent gives up privileges, moves
into a chroot or becomes a daemon.  So it can still read all modules and
plugins; it makes the settings once, and then becomes who and where the
parent is.  A worker is its copy (fork), which has never seen a reactor, holds
no thread and needs no file: it is there within milliseconds, runs the same
code as the others even if somebody installs another version meanwhile, and
shares their memory as far as that does not change.  As the TLS contexts are
made here as well, a client can resume with one worker a session that it had
with another.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import resource
import select
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from mailroute import config
from mailroute.config import Settings
from mailroute.service import ServerContexts, StartError, server_contexts
from mailroute.workers import start
from mailroute.workers.channel import MAX_DESCRIPTORS, MAX_MESSAGE
from mailroute.workers.counts import Counts
from mailroute.workers.letter import Letter

DAYS = 90
"""Days for which the keys of session tickets are made ahead, 15 kB each, so that all workers have the same.

After that each worker makes its own.  Few certificates are good for longer, and a new one takes a restart.
"""

RENEW_EVERY = 3600
"""Seconds after which the nursery looks, at the latest, whether there is a key to forget."""


@frozen
class Identity:
    """Who a process is, and where; the root and the working directory travel as descriptors beside it."""

    users: tuple[int, int, int]
    groups: tuple[int, int, int]
    more_groups: tuple[int, ...]
    umask: int
    session: int
    descriptors: tuple[int, int]
    """How many descriptors the process may have now, and at most (RLIMIT_NOFILE)."""

    @classmethod
    def mine(cls) -> Identity:
        """Return that of this process."""
        umask = os.umask(0o077)
        os.umask(umask)
        return cls(
            os.getresuid(),
            os.getresgid(),
            tuple(os.getgroups()),
            umask,
            os.getsid(0),
            resource.getrlimit(resource.RLIMIT_NOFILE),
        )

    def assume(self, root: int, folder: int) -> None:
        """Become that in this process, for good.

        :raises OSError: that is not allowed.
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, self.descriptors)
        if self.session != os.getsid(0):
            with contextlib.suppress(PermissionError):  # it leads a group: nothing follows from that
                os.setsid()
        if not os.path.samestat(os.fstat(root), Path("/").stat()):
            os.fchdir(root)
            os.chroot(".")
        os.fchdir(folder)
        os.umask(self.umask)
        if self.more_groups != tuple(os.getgroups()):
            os.setgroups(self.more_groups)
        if self.groups != os.getresgid():
            os.setresgid(*self.groups)
        if self.users != os.getresuid():
            os.setresuid(*self.users)


@frozen
class Given:
    """What a worker has from the nursery."""

    reactor: str
    """The module whose ``install`` makes the reactor."""

    settings: Settings
    tls: ServerContexts
    counts: Counts
    gate_key: bytes
    salt: bytes


@frozen
class Order:
    """What a worker has from the parent."""

    place: int
    """Its number, from 0."""

    channel: socket.socket
    """To the parent."""

    sockets: Sequence[tuple[int, int]]
    """For each listener the address family and the descriptor of this worker's socket."""


class LateReactor:
    """Stands for the reactor that a worker will have, before there is any."""

    def __getattr__(self, name: str) -> Any:
        """Return what the reactor has under that name."""
        if name.startswith("__"):
            raise AttributeError(name)
        from twisted.internet import reactor

        return getattr(reactor, name)


def run(letter: Letter) -> None:
    """Be the nursery; in each of its children, be a worker.

    :raises StartError: the settings cannot be made.
    """
    # Known to the nursery before it may be where no module can be found.
    from mailroute.workers import worker

    try:
        settings = config.reread(letter.source, LateReactor())
    except config.ConfigError as error:
        raise StartError(str(error)) from None
    counts = Counts(start.COUNTS, letter.layout)
    os.close(start.COUNTS)
    given = Given(
        letter.reactor,
        settings,
        server_contexts(settings, DAYS),
        counts,
        letter.gate_key,
        letter.salt,
    )
    worker.prepare(given)
    del letter
    # What is here now stays: the collector must not touch, and so copy, the memory that all share.
    gc.collect()
    gc.freeze()
    worker.run(given, _Nursery(socket.socket(fileno=start.CONTROL), given.tls).serve())


class _Nursery:
    """Waits for what the parent wants, and for the ends of its children."""

    def __init__(self, control: socket.socket, tls: ServerContexts) -> None:
        self._control = control
        self._tls = [each for each in tls if each is not None]
        self._control.setblocking(True)
        self._keys: dict[int, int] = {}
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> Order:
        """Make workers; returns in these.  Ends the process when the parent is gone."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll(RENEW_EVERY * 1000)]
            for tls in self._tls:
                tls.renew()
            if self._woken in ready:
                self._reap()
            if self._control.fileno() in ready and (order := self._obey()):
                return order

    def _obey(self) -> Order | None:
        message, descriptors, _, _ = socket.recv_fds(
            self._control, MAX_MESSAGE, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        word, _, rest = message.partition(b" ")
        if word == b"become":
            identity: Identity = pickle.loads(rest)  # noqa: S301 - the parent has pickled it
            identity.assume(*descriptors)
        elif word == b"make":
            if order := self._make(rest, *descriptors):
                return order
        elif word == b"kill":
            for process in [process for process, key in self._keys.items() if key == int(rest)]:
                os.kill(process, signal.SIGKILL)
        elif not message:
            raise SystemExit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _make(self, rest: bytes, channel: int, words: int, *sockets: int) -> Order | None:
        """Make a worker, and return its order in it."""
        asked = json.loads(rest)
        try:
            process = os.fork()
        except OSError as error:
            self._tell("failed", asked["key"], error.strerror)
            return None
        if process:
            self._keys[process] = asked["key"]
            return None
        signal.set_wakeup_fd(-1)
        for changed in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(changed, signal.SIG_DFL)
        for unneeded in (self._woken, self._wake):
            os.close(unneeded)
        self._control.close()
        os.dup2(words, 1)
        os.dup2(words, 2)
        os.close(words)
        return Order(
            asked["place"],
            socket.socket(fileno=channel),
            tuple(zip(asked["families"], sockets, strict=True)),
        )

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 65536)
        for process, key in list(self._keys.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del self._keys[process]
                self._tell("ended", key, f"{process} {status}")

    def _tell(self, word: str, key: int, what: str | None) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._control.send(f"{word} {key} {what}".encode())
