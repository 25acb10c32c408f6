"""An end that is a plain socket: TCP or UNIX, on Linux.

Small reads are copied through the one buffer.  A read that fills it is a sign
of bulk: if the other end is such a socket as well, that direction then goes
through a pipe of the kernel until it is no longer busy.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from mailroute.pipe.hub_leg import HubLeg
from mailroute.pipe.kernel_pipes import CAPACITY, PIPES, KernelPipe
from mailroute.sockets.openssl import ROOM, ROOM_SIZE

MOVE = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)

FULL = ROOM_SIZE
"""A read of so many bytes at once is bulk."""


class SocketLeg(HubLeg):
    """One end in the clear."""

    __slots__ = ()

    half_closes = True

    # --- reading ---

    def receive(self) -> None:
        """Read once, and pass on what there is.

        Every byte of a session comes through here: keep it short.
        """
        if not self.reading:
            return  # another leg's event has paused this one since
        other = self.other
        if other.pipe is not None and not self.mute:
            self._pour(other, other.pipe)  # type: ignore[arg-type]  # only such legs have pipes
            return
        try:
            size = self.sock.recv_into(ROOM)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(os.strerror(error.errno or 0))
            return
        if size == 0:
            self.ended()
        elif not self.mute:
            self.heard = self.now()
            self.passed += size
            other.take(ROOM[:size])
            if size == FULL:
                other.expect_bulk()

    def _pour(self, other: SocketLeg, pipe: KernelPipe) -> None:
        """Move what there is to the other end's pipe, and on."""
        try:
            size = os.splice(self.sock.fileno(), pipe.sink, CAPACITY, flags=MOVE)
        except BlockingIOError:
            other.give_back_pipe()
            return
        except OSError as error:
            self.lose(os.strerror(error.errno or 0))
            return
        if size == 0:
            other.give_back_pipe()
            self.ended()
            return
        self.heard = self.now()
        self.passed += size
        pipe.held = size
        other.drain()
        if size < FULL and other.pipe is pipe and not pipe.held:
            other.give_back_pipe()

    def last_words(self) -> bool:
        """Read once without minding errors; say whether there was anything."""
        size = self.sock.recv_into(ROOM)
        if size:
            self.passed += size
            self.other.take(ROOM[:size])
        return size > 0

    # --- writing ---

    def give(self, data: Any) -> int:
        """Send; return how many bytes of it have gone."""
        return self.sock.send(data)

    def expect_bulk(self) -> None:
        """Get a pipe, if there is one, for more than one can read at once comes from the other end."""
        if self.waiting_since is None and not self.rest and not self.gone and type(self.other) is SocketLeg:
            self.pipe = PIPES.borrow()

    def drain(self) -> None:
        """Send what is in the pipe."""
        pipe = self.pipe
        assert pipe is not None  # noqa: S101 (asked for with one alone)
        try:
            sent = os.splice(pipe.source, self.sock.fileno(), pipe.held, flags=MOVE)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.break_off(error)
            return
        pipe.held -= sent
        if pipe.held:
            self.block(moved=sent > 0)

    def send_rest(self) -> None:
        """Go on sending, now that the socket takes something again."""
        if self.pipe is None or not self.pipe.held:
            super().send_rest()
            return
        self.drain()
        if self.pipe is not None and not self.pipe.held and not self.gone:
            # A peer that is slow has no use for a pipe, of which there are few.
            self.give_back_pipe()
            self.unblock()

    def give_back_pipe(self) -> None:
        """The direction to here is not busy any more."""
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            pipe.give_back()

    def end_writing(self) -> None:
        """Tell the peer that nothing more will come."""
        if self.closing and self.finished_reading:
            # To close says as much; with nothing unread it does not reset.
            self.finished_writing = True
            self.lose("")
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.lose(os.strerror(error.errno or 0))
            return
        self.finished_writing = True
        self.owner.finished_writing(self)

    # --- ends ---

    def let_go(self) -> bool:
        """Give the pipe back; return whether bytes are left that the socket has not taken."""
        spilt = super().let_go() or (self.pipe is not None and self.pipe.held > 0)
        self.give_back_pipe()
        return spilt
