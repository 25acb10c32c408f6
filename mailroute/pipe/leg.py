"""One end of a splice, whatever carries it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol


class Owner(Protocol):
    """Whom a leg tells what happens to it; ``now`` tells the time, and ``started`` when the splice began."""

    now: Callable[[], float]
    started: float

    def finished_reading(self, leg: Leg) -> None:
        """The peer has finished sending, and may still want to receive."""

    def finished_writing(self, leg: Leg) -> None:
        """All was sent, and the peer told that nothing more will come."""

    def left(self, leg: Leg) -> None:
        """The peer has closed in good order; the leg is still there to be closed."""

    def lost(self, leg: Leg, error: str, *, spilt: bool) -> None:
        """The connection is closed, the leg is ``gone``; the error is empty for an end in good order.

        ``spilt``: bytes were left that the connection has not taken.
        """


class Leg(ABC):
    """One end: reads, and hands what it has read to the ``other``, which writes it.

    ``heard`` is when bytes last came from here, or some were taken here that had waited for
    it; ``passed`` is how many have come in all.
    ``waiting_since`` says since when bytes have waited to be taken here (None:
    none do), ``until`` when it is cut off, once it is ``closing``.  A ``mute``
    leg throws away what it reads.  ``gone``: the connection is closed;
    ``aborted``: by us, whatever was left.
    """

    __slots__ = (
        "aborted",
        "closing",
        "finished_reading",
        "finished_writing",
        "gone",
        "heard",
        "mute",
        "now",
        "other",
        "owner",
        "passed",
        "until",
        "waiting_since",
    )

    other: Leg
    half_closes: bool
    """Whether either direction can end alone."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.now = owner.now
        self.heard = owner.started
        self.passed = 0
        self.waiting_since: float | None = None
        self.until = 0.0
        self.mute = self.closing = self.aborted = self.gone = False
        self.finished_reading = self.finished_writing = False

    def part(self) -> None:
        """Let go of the other end and the owner, so that nothing is left but a tree."""
        del self.other, self.owner

    @property
    @abstractmethod
    def on_its_way_out(self) -> bool:
        """Whether somebody has begun to close the connection before the splice."""

    @abstractmethod
    def join(self, other: Leg) -> None:
        """Take the connection over, and know where its bytes go."""

    @abstractmethod
    def start(self) -> None:
        """Begin to read, unless the first bytes are too many for the other end."""

    @abstractmethod
    def give_first(self, data: bytes) -> None:
        """Pass these bytes on as if they had been read here."""

    @abstractmethod
    def finish_writing(self) -> None:
        """Send what is left, then tell the peer that nothing more will come."""

    @abstractmethod
    def close(self) -> None:
        """Send what is left and close in good order; whoever calls sets ``until``."""

    @abstractmethod
    def cut(self) -> None:
        """Close at once, whatever is left."""
