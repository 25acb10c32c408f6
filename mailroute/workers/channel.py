"""What the parent and a worker say to each other: whole messages over one socket pair.

A message is a word, bytes behind it, and descriptors.  The socket keeps messages whole
and in order, and gives the parent what a worker said even if the worker is
gone since.  That the other end is gone, however it went, is read as its end.
"""

from __future__ import annotations

import errno
import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_log = Logger(namespace="mailroute.workers")

MAX_MESSAGE = 65536
"""The longest message, in bytes: longer than any of our log lines, and a tenth of what the socket holds."""

MAX_WAITING = 8 * 1024 * 1024
"""Bytes of messages that may wait for the other end to take them: some 10 000 log lines."""

MAX_DESCRIPTORS = 253
"""The most descriptors that a message can have: the kernel's SCM_MAX_FD."""

_ATTACHED = socket.CMSG_LEN(MAX_DESCRIPTORS * array("i").itemsize)
_NO_ROOM = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
_NOBODY_THERE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
_AT_ONCE = 256  # messages read in one turn of the reactor

Received = Callable[[bytes, bytes, Sequence[int]], None]
"""Takes a message: its word, what stands behind it, and descriptors that are the taker's from then on."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a new channel; neither is inherited by other processes, neither blocks.

    :raises OSError: there are no descriptors left.
    """
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


@implementer(IReadWriteDescriptor)
class Channel:
    """One end of it.

    :param received: is given each message.
    :param lost: is called once, when the other end is gone and all that it has said has been read.
    :param pause: seconds for which nothing is read after something was: to be woken for each of
        many messages costs more than to read them.
    """

    def __init__(
        self,
        end: socket.socket,
        reactor: Any,
        received: Received,
        lost: Callable[[], None],
        pause: float = 0.0,
    ) -> None:
        self._socket = end
        self._pause = pause
        self._pausing: IDelayedCall | None = None
        self._reactor = reactor
        self._received = received
        self._lost = lost
        self._buffer = bytearray(MAX_MESSAGE)
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._bytes_waiting = 0
        self.open = True
        reactor.addReader(self)

    def send(self, word: bytes, rest: bytes = b"", descriptors: Sequence[int] = ()) -> bool:
        """Send a message, now or once the other end takes it; say whether there was room for it.

        Never waits.  A message to an end that is gone is forgotten.

        :param descriptors: of which the other end gets copies.
        """
        message = word + b" " + rest
        if not self.open:
            return True
        if not self._waiting and self._sent(message, descriptors):
            return True
        if self._bytes_waiting + len(message) > MAX_WAITING:
            return False
        self._waiting.append((message, [os.dup(one) for one in descriptors]))
        self._bytes_waiting += len(message)
        self._reactor.addWriter(self)
        return True

    def close(self) -> None:
        """Close this end: the other one reads that as the end."""
        if self.open:
            self.open = False
            if self._pausing is not None:
                self._pausing.cancel()
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self._socket.close()
            while self._waiting:
                self._drop_first()

    def drain(self) -> None:
        """Read all that there is."""
        while self.open and self._read():
            pass

    # --- what the reactor calls ---

    def fileno(self) -> int:
        """Return the descriptor to watch; -1 once it is closed."""
        return self._socket.fileno()

    def doRead(self) -> None:
        """Read messages; the others have a turn after some of them."""
        for _ in range(_AT_ONCE):
            if not self.open or not self._read():
                break
        if self._pause and self.open and self._pausing is None:
            self._reactor.removeReader(self)
            self._pausing = self._reactor.callLater(self._pause, self._go_on)

    def doWrite(self) -> None:
        """Send what waits."""
        while self._waiting and self._sent(*self._waiting[0]):
            self._drop_first()
        if not self._waiting and self.open:
            self._reactor.removeWriter(self)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives it up, because it ends or the socket is broken."""
        del reason
        self._end()

    def logPrefix(self) -> str:
        """Return a name for the log."""
        return "workers"

    # --- its parts ---

    def _go_on(self) -> None:
        self._pausing = None
        self._reactor.addReader(self)

    def _read(self) -> bool:
        """Read one message, and say whether there may be another."""
        try:
            length, attached, _, _ = self._socket.recvmsg_into(
                [self._buffer], _ATTACHED, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except OSError:
            length, attached = 0, []
        if not length:
            self._end()
            return False
        word, _, rest = bytes(memoryview(self._buffer)[:length]).partition(b" ")
        descriptors = array("i")
        for _level, _kind, data in attached:
            descriptors.frombytes(data)
        try:
            self._received(word, rest, descriptors)
        except Exception:
            # A defect of ours costs one message.  Without its channel a worker would end, with all sessions.
            _log.failure(
                "cannot do what another process has said: {word}", word=word.decode("ascii", "replace")
            )
        return True

    def _drop_first(self) -> None:
        message, descriptors = self._waiting.popleft()
        self._bytes_waiting -= len(message)
        for one in descriptors:
            os.close(one)

    def _sent(self, message: bytes, descriptors: Sequence[int]) -> bool:
        """Send a message; say whether that is done, as it is if nobody will ever read it.

        :raises OSError: it is no message that can be sent.
        """
        try:
            if descriptors:
                socket.send_fds(self._socket, [message], list(descriptors))
            else:
                self._socket.send(message)
        except OSError as error:
            if error.errno in _NO_ROOM:
                return False
            if error.errno not in _NOBODY_THERE:
                raise
            # Reading says so.
        return True

    def _end(self) -> None:
        if self.open:
            self.close()
            self._lost()
