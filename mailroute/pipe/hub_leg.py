"""An end that is a socket in the hub, with or without TLS on top."""

from __future__ import annotations

import contextlib
import os
import socket
from abc import abstractmethod
from typing import Any

from mailroute.pipe.kernel_pipes import KernelPipe
from mailroute.pipe.leg import Leg, Owner
from mailroute.sockets.hub import ERROR, NOTHING, READ, RESET, WRITE, Hub

LAST_READS = 256
"""Reads from a peer that takes nothing any more, at once: 16 MiB in the clear, more than a socket holds.
Over a UNIX socket such a peer may still be sending, and as fast as it is read."""


class HubLeg(Leg):
    """One end: its socket, of which the hub says when it is ready.

    ``rest`` is what has not gone yet, because the socket would not take it or the hub's batch is not over.
    ``pipe`` is where the other end's bytes wait for this one, while they come in bulk and in the clear.
    ``reading`` is whether the peer's bytes are wanted, ``finishing`` that nothing is to
    be sent behind the rest.
    """

    __slots__ = ("events", "finishing", "hub", "paused", "pipe", "reading", "rest", "sock")

    other: HubLeg

    def __init__(self, sock: socket.socket, hub: Hub, owner: Owner) -> None:
        super().__init__(owner)
        self.sock = sock
        self.hub = hub
        self.rest = b""
        self.pipe: KernelPipe | None = None
        self.events = 0
        self.reading = self.finishing = self.paused = False

    def inherit(self, events: int, rest: bytes, *, blocked: bool) -> None:
        """Take a socket over that is in the hub already, and what has not gone yet."""
        self.events = events
        self.hub.replace(self.sock.fileno(), self)
        if blocked:
            self.rest = rest
            self.waiting_since = self.now()
        elif rest:
            self.take_later(rest)

    def join(self, other: Leg) -> None:
        """Take the connection over."""
        assert isinstance(other, HubLeg)  # noqa: S101 (they come in pairs)
        self.other = other

    def start(self) -> None:
        """Begin to read, unless the first bytes are too many for the other end."""
        if not self.paused:
            self.resume()

    def watch(self) -> None:
        """Tell the hub what this leg waits for."""
        events = (READ if self.reading else 0) | (WRITE if self.waiting_since is not None else 0) or NOTHING
        if events == self.events or self.gone:
            return
        if self.events:
            self.hub.modify(self.sock.fileno(), events)
        else:
            self.hub.add(self.sock.fileno(), self, events)
        self.events = events

    def ready(self, events: int) -> None:
        """Handle what epoll says."""
        if events & WRITE and self.waiting_since is not None:
            self.send_rest()
        if self.gone:
            return
        if self.reading:
            if events & ~WRITE:
                self.receive()
        elif events & ERROR:
            self.check()

    # --- reading ---

    @abstractmethod
    def receive(self) -> None:
        """Read once, and pass on what there is."""

    def tell_ended(self) -> None:
        """Tell the owner that the peer will send nothing more."""
        self.owner.finished_reading(self)

    def check(self) -> None:
        """See whether an error has ended the connection, though nothing is read."""
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self.lose(os.strerror(error))

    def pause(self) -> None:
        """Stop reading: the other end is full."""
        self.paused = True
        self.reading = False
        self.watch()

    def resume(self) -> None:
        """Read on: the other end has taken all that it had."""
        if not self.finished_reading and not self.gone:
            self.reading = True
            self.watch()

    def give_first(self, data: bytes) -> None:
        """Pass these bytes on as if they had been read here."""
        self.passed += len(data)
        self.other.take_later(data)

    # --- writing ---

    def expect_bulk(self) -> None:
        """Get ready for more than can be read at once from the other end."""

    def take(self, data: Any) -> None:
        """Send bytes that the other end has read, and keep what the socket does not take."""
        if self.finished_writing:
            return
        if self.rest:
            self.rest += data
            if self.waiting_since is not None:
                self.block(moved=False)
            return
        try:
            sent = self.give(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.rest = bytes(data)
            self.break_off(error)
            return
        if sent < len(data):
            self.rest = bytes(data[sent:])
            self.block(moved=sent > 0)

    def take_later(self, data: bytes) -> None:
        """Send bytes at the end of the hub's batch, or at once where there is none.

        For a login's last ones only: to keep those of every read would cost more than it saves.
        """
        if self.rest or self.finished_writing or not self.hub.at_end(self):
            self.take(data)
        else:
            self.rest = data

    def flush(self) -> None:
        """Send what has waited for the end of the batch."""
        if self.gone or self.waiting_since is not None:
            return
        if self.rest:
            self.send_rest()
        elif self.finishing and not self.finished_writing:
            self.end_writing()

    @abstractmethod
    def give(self, data: Any) -> int:
        """Send; return how many bytes of it have gone.

        :raises OSError: the connection is broken, or takes nothing now (`BlockingIOError`).
        """

    def block(self, *, moved: bool) -> None:
        """Have the other end wait until the rest is gone; ``moved``: some of it just went."""
        if moved or self.waiting_since is None:
            self.waiting_since = self.now()
        if moved:
            # What has been read in one go may take a slow peer longer than it may be idle.
            self.heard = self.waiting_since
        self.watch()
        if not self.other.mute:
            self.other.pause()

    def send_rest(self) -> None:
        """Go on sending, now that the socket takes something again."""
        if self.rest:
            data, self.rest = memoryview(self.rest), b""
            self.take(data)
        if not self.rest and not self.gone:
            self.unblock()

    def unblock(self) -> None:
        """All is sent: do what waited for that."""
        if self.waiting_since is not None:
            self.heard = self.now()
        self.waiting_since = None
        self.watch()
        if self.finishing:
            self.end_writing()
        elif not self.other.mute:
            self.other.resume()

    def finish_writing(self) -> None:
        """Send what is left, then tell the peer that nothing more will come."""
        self.finishing = True
        if self.waiting_since is None and not self.rest and not self.hub.at_end(self):
            self.end_writing()

    @abstractmethod
    def end_writing(self) -> None:
        """Tell the peer that nothing more will come; all has been sent."""

    # --- ends ---

    def close(self) -> None:
        """Send what is left and close in good order."""
        if self.gone or self.closing:
            return
        self.closing = True
        if self.finished_writing and self.finished_reading:
            self.lose("")
            return
        if not self.finishing:
            self.finish_writing()
        # A socket that is closed with unread bytes in it resets, and the peer
        # may lose what it has not read yet.  So read, till it closes as well.
        self.resume()

    def ended(self) -> None:
        """Note that the peer will send nothing more."""
        self.finished_reading = True
        self.reading = False
        if not self.closing:
            self.tell_ended()
        elif self.finished_writing:
            self.lose("")
        self.watch()  # last, because most are gone by now

    def break_off(self, error: OSError) -> None:
        """The peer takes nothing any more; what it has said before may still be there to be read."""
        self.finished_writing = True
        if not self.mute and not self.finished_reading:
            with contextlib.suppress(OSError):
                for _ in range(LAST_READS):
                    if self.gone or self.other.waiting_since is not None or not self.last_words():
                        break
        self.lose(os.strerror(error.errno) if error.errno else type(error).__name__)

    @abstractmethod
    def last_words(self) -> bool:
        """Read once without minding errors; say whether there was anything.

        :raises OSError: there is nothing more.
        """

    def lose(self, error: str) -> None:
        """Close the socket, and tell the owner."""
        if not self.gone:
            self.gone = True
            if self.events:
                self.hub.remove(self.sock.fileno())
            self.sock.close()
            # All is given back before anybody hears of it.
            self.owner.lost(self, error, spilt=self.let_go())

    def let_go(self) -> bool:
        """Give back what was borrowed; return whether bytes are left that the socket has not taken."""
        return bool(self.rest)

    def cut(self) -> None:
        """Close at once, whatever is left."""
        if self.gone:
            return
        self.closing = True
        if not self.finished_writing:
            self.aborted = True
            if self.sock.family != socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.lose("" if self.finished_writing else "cut off")

    @property
    def on_its_way_out(self) -> bool:
        """Never: such transports are not taken over."""
        return False
