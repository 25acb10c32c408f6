"""What every pipe is told, and what it promises to tell afterwards.

A pipe joins two connections until both are closed.  There may be several
kinds of pipe; whoever calls `mailroute.splice` cannot tell which one it got,
except by its speed.
"""

from __future__ import annotations

import enum

from attrs import field, frozen
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime, ITransport

HELD_AT_MOST = 256 * 1024
"""Bytes that one session may hold in this process's memory, both directions together.

Enough for both directions of a fast connection; ten thousand sessions whose
readers are all stuck then hold 2.5 GB at the very worst.
"""


@frozen
class SpliceTerms:
    """How long a splice puts up with what; all in seconds, 0 switches a limit off where it says so.

    ``idle_timeout`` (0: off): no byte either way.  ``stall_timeout`` (0: off):
    bytes wait for one end and it takes none of them.  ``lifetime`` (0: off):
    how long the splice may last in all.

    ``linger``: how long an end may take to take the rest of its bytes, once
    the other end has closed in good order; ``broken_linger``: the same if the
    other end's connection broke.  ``grace``: how long an end may stay silent
    once it has been told, or cannot be told (TLS knows no half-close), that
    nothing more will come.
    """

    idle_timeout: float = 1800.0
    stall_timeout: float = 300.0
    lifetime: float = 0.0
    linger: float = 30.0
    broken_linger: float = 2.0
    grace: float = 2.0
    names: tuple[str, str] = ("A", "B")

    @property
    def soonest(self) -> float:
        """Seconds from the beginning until a limit can pass at the earliest; 0 if none ever does."""
        return min(filter(None, (self.idle_timeout, self.stall_timeout, self.lifetime)), default=0.0)


class End(enum.Enum):
    """Who or what ended a splice."""

    A = "a"
    """The first transport's peer closed, or its connection broke."""

    B = "b"
    """The second transport's peer closed, or its connection broke."""

    STALLED_A = "a stalled"
    """Bytes waited for the first transport's peer, and it took none of them."""

    STALLED_B = "b stalled"
    """Bytes waited for the second transport's peer, and it took none of them."""

    IDLE = "idle"
    """No byte came from either."""

    LIFETIME = "lifetime"
    """It lasted for as long as the terms allow."""


@frozen
class SpliceResult:
    """What became of a splice, once both connections are closed.

    ``bytes_a_to_b`` and ``bytes_b_to_a`` count the payload handed over, the
    first bytes included; ``duration`` is in seconds.  ``reason`` is a sentence
    for the log with nothing of the stream in it.  ``clean``: an end closed in
    good order, and nothing that the other should have got was thrown away.
    """

    bytes_a_to_b: int
    bytes_b_to_a: int
    duration: float
    ended_by: End
    reason: str
    clean: bool


class SpliceCancelled(CancelledError):
    """A splice was cancelled; ``bytes_a_to_b`` and ``bytes_b_to_a`` have passed until then."""

    def __init__(self, bytes_a_to_b: int, bytes_b_to_a: int) -> None:
        super().__init__()
        self.bytes_a_to_b = bytes_a_to_b
        self.bytes_b_to_a = bytes_b_to_a


@frozen
class Order:
    """What a pipe needs to know: two transports, each one's first bytes, the terms and a clock."""

    a: ITransport
    b: ITransport
    first_to_a: bytes = field(repr=False)
    first_to_b: bytes = field(repr=False)
    terms: SpliceTerms
    clock: IReactorTime
