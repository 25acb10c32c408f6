"""File descriptors: as many as the system allows, and none given out that an open session will need.

A session needs two: the client's, which it comes with, and the backend's, for
which one is kept from the beginning, so that whoever is greeted can log in.
As long as there are plenty, nothing is kept and nothing looked at.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.selectreactor import SelectReactor
from twisted.logger import Logger

PER_SESSION = 2
"""The client's descriptor and the backend's."""

BESIDES = 256
"""Descriptors for everything else: listeners, files, look-ups, pipes, and clients that are turned away."""

MAX_SPARE = 100
"""Descriptors set aside, once they are scarce, so that clients can be let in to be told so."""

PAUSE = 0.25
"""Seconds for which no client is let in when there is no descriptor to do it with."""

FRUITLESS = 100
"""How often in a row a listener may be ready and have nobody to let in, before it has to pause.

With several processes at one port that happens, when another one is faster.
"""

WARN_EVERY = 60.0
"""Seconds between two warnings of the same kind."""

SELECT_AT_MOST = 1024
"""What select(2) can handle; other ways to wait for events have no such bound."""

NOTHING = -1
"""Stands for a descriptor where none need be kept."""

_log = Logger(namespace="mailroute")


def remedy(error: object) -> str:
    """Return what to do about an error, if descriptors have run out; otherwise nothing."""
    number = getattr(error, "errno", None) or getattr(error, "osError", None)
    if number == errno.EMFILE:
        return "; raise LimitNOFILE= in the systemd unit, or ulimit -n"
    if number == errno.ENFILE:
        return "; raise the system's limit, fs.file-max"
    return ""


def most_of(reactor: Any) -> int | None:
    """Return how many descriptors a reactor can handle; None for any number."""
    return SELECT_AT_MOST if isinstance(reactor, SelectReactor) else None


def raise_limit(at_most: int | None = None) -> int:
    """Raise the soft limit of open files to the hard one, and return it.

    :param at_most: what the reactor can handle; None for any number.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard
    if at_most is not None and (hard == resource.RLIM_INFINITY or hard > at_most):
        wanted = at_most
    if soft != resource.RLIM_INFINITY and (wanted == resource.RLIM_INFINITY or soft < wanted):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError) as error:  # macOS has a bound of its own below the hard limit
            _log.warn("cannot raise the limit of open files from {soft}: {error}", soft=soft, error=error)
    # Infinite it is nowhere in truth; this is what Linux allows at most.
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


class Descriptors(Service):
    """Counts on the kernel, which always gives out the lowest descriptor that is free.

    A client whose descriptor is low shows that there are plenty.  Once one is
    not, they are *scarce*, for good: then a descriptor is really opened for the
    backend of each client, or the client is one too many, and some more are
    held as *spares*.  When a listener finds that no descriptor is left, one of
    those is let go, so that the client can come in, be told, and leave.

    :param sessions: how many sessions there may be, 0 for any number.
    """

    def __init__(self, reactor: Any, sessions: int) -> None:
        self._reactor = reactor
        self._sessions = sessions
        self._limit = 0
        self._scarce = False
        self._spares: list[int] = []
        self._paused: list[Any] = []
        self._timer: IDelayedCall | None = None
        self._warned: dict[str, float] = {}
        self._lacking = OSError(errno.EMFILE, "")

    def privilegedStartService(self) -> None:
        """Raise the limit before the listeners bind, of which there may be many."""
        super().privilegedStartService()
        raise_limit(most_of(self._reactor))

    def startService(self) -> None:
        """Raise the limit, and say so if it is too low for the sessions that there may be."""
        super().startService()
        self._limit = raise_limit(most_of(self._reactor))
        wanted = self._sessions * PER_SESSION + BESIDES
        if self._sessions and self._limit < wanted:
            _log.warn(
                "the limit of open files is {limit}, which is enough for about {enough} connections; "
                "for connections = {sessions} set LimitNOFILE={wanted} in the systemd unit, "
                "or ulimit -n {wanted}",
                limit=self._limit,
                enough=max(self._limit - BESIDES, self._limit // 2) // PER_SESSION,
                sessions=self._sessions,
                wanted=wanted,
            )

    def stopService(self) -> None:
        """Let everything go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._spares:
            os.close(self._spares.pop())
        self._scarce = False
        super().stopService()

    # --- for each client ---

    def keep(self, newest: int) -> int | None:
        """Keep a descriptor for the backend of a client that has just come; None: there is none.

        :param newest: the client's own.
        """
        if not self._scarce:
            if newest < self._limit // 3 or not self._limit:
                return NOTHING
            self._become_scarce()
        kept = self._open()
        if kept is None:
            self._warn("no descriptor is left: new clients are turned away")
        return kept

    def give_back(self, kept: int) -> None:
        """Let go of what was kept: the backend is dialled now, or never will be."""
        if kept != NOTHING:
            os.close(kept)

    def left(self) -> None:
        """A client has left, and closed its descriptor: refill the spares first."""
        if self._scarce:
            self._refill()

    # --- for each listener ---

    def watch(self, port: Any, made: Callable[[], int]) -> None:
        """Keep a listening port from being called again and again when it cannot let anybody in.

        A kernel that has no descriptor for a client leaves it in the queue, and
        says at once that somebody is waiting.

        :param port: what an endpoint's ``listen`` has given; anything but a reactor's reader is left alone.
        :param made: tells how many clients it has let in so far.
        """
        accept = getattr(port, "doRead", None)
        if accept is None:
            return
        fruitless = 0

        def accept_if_possible() -> None:
            nonlocal fruitless
            if self._scarce:
                if not self._one_is_left():
                    self._pause(port)
                    return
                # It lets in several at a time, but nobody has looked farther than to the first.
                port.numberAccepts = 1
            before = made()
            accept()
            if made() != before:
                fruitless = 0
                return
            fruitless += 1
            if fruitless >= FRUITLESS or not self._one_is_left():
                fruitless = 0
                self._pause(port)

        port.doRead = accept_if_possible

    # --- its parts ---

    def _become_scarce(self) -> None:
        self._scarce = True
        self._refill()

    def _refill(self) -> None:
        while len(self._spares) < min(MAX_SPARE, self._limit // 8):
            spare = self._open()
            if spare is None:
                break
            self._spares.append(spare)

    def _one_is_left(self) -> bool:
        """Tell whether a client can be let in, if need be by letting go of a spare."""
        probe = self._open()
        if probe is not None:
            os.close(probe)
            return True
        if not self._scarce:
            self._become_scarce()
        if not self._spares:
            self._warn("no descriptor is left: new clients have to wait")
            return False
        os.close(self._spares.pop())
        return True

    def _pause(self, port: Any) -> None:
        port.stopReading()
        self._paused.append(port)
        if self._timer is None:
            self._timer = self._reactor.callLater(PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        self.left()
        paused, self._paused = self._paused, []
        for port in paused:
            if port.connected and not port.disconnecting:
                port.startReading()

    def _warn(self, what: str) -> None:
        now = self._reactor.seconds()
        if now - self._warned.get(what, -WARN_EVERY) >= WARN_EVERY:
            self._warned[what] = now
            if self._lacking.errno == errno.ENFILE:
                why = "the whole system has as many open files as it may have"
            else:
                why = f"the limit of open files is {self._limit}"
            _log.warn("{what} ({why}){remedy}", what=what, why=why, remedy=remedy(self._lacking))

    def _open(self) -> int | None:
        """Open a descriptor to hold its place; None if there is none to be had."""
        try:
            # Not a copy of another one: this takes a place in the system's table of files, too.
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._lacking = error
                return None
            raise
