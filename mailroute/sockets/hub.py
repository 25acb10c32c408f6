"""All sockets that belong to splices, behind one reader of the reactor.

To the reactor the hub is a single file descriptor: that of an epoll of its
own, readable whenever one of its sockets is ready.  So a thousand sessions
cost the reactor nothing, and a burst of them costs it one turn.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Iterator
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

AVAILABLE = hasattr(select, "epoll")
"""Whether this platform has what a hub needs."""

READ = getattr(select, "EPOLLIN", 1)
WRITE = getattr(select, "EPOLLOUT", 4)
ERROR = getattr(select, "EPOLLERR", 8)

NOTHING = getattr(select, "EPOLLET", 1 << 31)
"""Neither reading nor writing: epoll tells of errors and of a connection that both sides have ended
all the same, and again and again unless it is told to say so once."""

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER's value for closing with a reset."""

EVENTS_AT_ONCE = 64
"""Ready sockets that are asked for in one go: a batch, at whose end goes out what it has to say."""

_log = Logger(namespace="mailroute.pipe")

ROUNDS = 16
"""How often a hub looks for more to do before the rest of the reactor has its turn."""


class Member(Protocol):
    """Somebody with a socket in a hub."""

    def receive(self) -> None:
        """Read: there is something, and nothing else to be told."""

    def ready(self, events: int) -> None:
        """Handle whatever else epoll says of the socket."""

    def cut(self) -> None:
        """Close at once: what `ready` does has failed."""


class Sender(Member, Protocol):
    """A member that may have something to send at the end of a batch."""

    def flush(self) -> None:
        """Send it, unless it has gone or has become pointless meanwhile."""


@implementer(IReadDescriptor)
class Hub:
    """The epoll of one reactor."""

    def __init__(self, reactor: IReactorFDSet) -> None:
        self.reactor: Any = reactor
        self._epoll = select.epoll()
        # By their descriptors, which the kernel gives out from the lowest: a dictionary would take
        # four times the memory, with an integer for each of its keys, and longer to look into.
        self._members: list[Member | None] = []
        self._batch: list[Sender] | None = None
        self.modify = self._epoll.modify
        reactor.addReader(self)

    def add(self, descriptor: int, member: Member, events: int) -> None:
        """Tell a member from now on what happens to its socket.

        :raises OSError: the kernel watches no more of them.
        """
        self._epoll.register(descriptor, events)
        lacking = descriptor + 1 - len(self._members)
        if lacking > 0:
            self._members.extend([None] * lacking)
        self._members[descriptor] = member

    def replace(self, descriptor: int, member: Member) -> None:
        """Tell another member what happens to this socket."""
        self._members[descriptor] = member

    def remove(self, descriptor: int) -> None:
        """Forget a socket, which its member then closes; one that could not be added is not known."""
        # The epoll is closed when the reactor has stopped, and this is one of its last calls.
        # That of a closed socket is -1.
        if not 0 <= descriptor < len(self._members) or self._members[descriptor] is None:
            return
        self._members[descriptor] = None
        if not self._epoll.closed:
            self._epoll.unregister(descriptor)

    def __iter__(self) -> Iterator[Member]:
        """Return whoever has a socket in it."""
        return (member for member in self._members if member is not None)

    def at_end(self, sender: Sender) -> bool:
        """Have a sender flushed at the end of the batch that is served now; False: there is none.

        To wake a peer that sleeps on this machine costs more than the sending does.  One that is
        sent several things back to back, by whomever, is woken once.
        """
        if self._batch is None:
            return False
        self._batch.append(sender)
        return True

    # --- what the reactor wants ---

    def fileno(self) -> int:
        """Return the descriptor of the epoll."""
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        """Return the name for the reactor's own log messages."""
        return "mailroute.pipe"

    def doRead(self) -> None:
        """Serve every socket that is ready, and those that become so meanwhile, up to a bound."""
        members, poll = self._members, self._epoll.poll
        for _ in range(ROUNDS):
            events = poll(0, EVENTS_AT_ONCE)
            if not events:
                return
            batch: list[Sender] = []
            self._batch = batch
            for descriptor, event in events:
                member = members[descriptor]
                if member is None:
                    continue  # it has been closed since, by another's event
                try:
                    if event == READ:
                        member.receive()
                    else:
                        member.ready(event)
                except Exception:
                    self._end(member)
            self._batch = None
            for sender in batch:
                try:
                    sender.flush()
                except Exception:
                    self._end(sender)

    def _end(self, member: Member) -> None:
        """Give one up: a defect of ours costs one session, and not all of them."""
        _log.failure("a session has failed")
        try:
            member.cut()
        except Exception:
            _log.failure("a session that has failed could not be ended")

    def connectionLost(self, reason: Failure) -> None:
        """Close the epoll: the reactor has stopped and lets go of its readers."""
        del reason
        self._epoll.close()


_hubs: WeakKeyDictionary[object, Hub] = WeakKeyDictionary()


def hub_of(reactor: IReactorFDSet) -> Hub:
    """Return the hub of a reactor, which lives as long as that."""
    hub = _hubs.get(reactor)
    if hub is None:
        hub = _hubs[reactor] = Hub(reactor)
    return hub
