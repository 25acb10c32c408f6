"""What deliveries keep to, and the listener that they come from."""

from __future__ import annotations

from attrs import frozen

from mailroute.deadlines import Deadline, Deadlines, Owner
from mailroute.envelope import DeliveryTerms
from mailroute.events import Route
from mailroute.interfaces import IDeliveryProtocol

MAX_BACKENDS = 16
"""Backends of one message."""

SENT_AT_ONCE = MAX_BACKENDS * 4096
"""Bytes of a message that are sent, to all its backends together, in one turn of the reactor.

A transport tells that it is full only when it has tried to send, and those that gather what is written do
that at the turn's end.  That is a piece of 4 KiB for each of `MAX_BACKENDS`: where it waits, and 160 KiB have
been sent ahead, a message holds 224 KiB; what is read of replies is below 16."""

# RFC 5321 section 4.5.3.2 has the least that each of these may take.  A client gives us
# as long, so ours are a little less: it shall still hear of the backends that have answered.
COMMAND_TIMEOUT = 240.0
"""Seconds for a backend to answer MAIL and RCPT, or a chunk."""

DATA_TIMEOUT = 100.0
"""Seconds for a backend to answer DATA."""

FINAL_TIMEOUT = 540.0
"""Seconds for a backend to answer the end of a message."""

STALL_TIMEOUT = 120.0
"""Seconds for which a backend may take nothing of a message; ``stall_timeout`` if that is less."""

CLIENT_TIMEOUT = 300.0
"""Seconds for which a client may say nothing; ``idle_timeout`` if that is less."""

PARTING_TIMEOUT = 8.0
"""Seconds for which mailroute, when it is to end, waits for what becomes of messages that have been sent to
their end; workers are killed after 10."""

LINGER = 2.0
"""Seconds that a backend has to take our last words."""


@frozen
class DeliveryDoor:
    """What the sessions of one listener share; times are seconds, 0 for no bound.

    ``route``: where all recipients live, whatever the routes say.
    ``split``: one message may go to several backends, though it gets one reply.
    """

    name: str
    protocol: IDeliveryProtocol
    terms: DeliveryTerms
    split: bool = False
    route: Route | None = None
    idle_timeout: float = CLIENT_TIMEOUT
    stall_timeout: float = STALL_TIMEOUT
    lookup_timeout: float = 30


def lesser(bound: float, configured: float) -> float:
    """Return the lesser of a bound of ours and a configured one, of which 0 is none."""
    return min(bound, configured or bound)


class Alarm:
    """One deadline, which its owner may set again and again.

    :param owner: called back when it rings.
    """

    def __init__(self, deadlines: Deadlines, owner: Owner) -> None:
        self._deadlines = deadlines
        self._owner = owner
        self._deadline: Deadline | None = None

    def set(self, seconds: float) -> None:
        """Ring after that many seconds, and not before; 0 for never."""
        self.clear()
        if seconds:
            self._deadline = self._deadlines.after(seconds, self)

    def clear(self) -> None:
        """Do not ring."""
        if self._deadline is not None:
            self._deadline.discard(self)
            self._deadline = None

    def time_is_up(self) -> None:
        """Ring."""
        self._deadline = None
        self._owner.time_is_up()
