"""What one end's fate means for the other, whatever carries the two.

A `Joint` has two legs.  They move the bytes by themselves; the joint hears how
each of them ends, closes the other, and keeps the limits of the terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from mailroute.deadlines import Deadline, deadlines_of
from mailroute.pipe.contract import End, SpliceResult, SpliceTerms
from mailroute.pipe.leg import Leg

EARLY = 0.001
"""Seconds by which a timer may ring before its moment: a rounding error."""


class Listener(Protocol):
    """Whoever wants to know how a splice ends."""

    def parted(self, result: SpliceResult) -> None:
        """Both connections are closed."""


class Joint:
    """Two connections joined: what is known of them, and the way to end them.

    ``started`` is a time of the clock that its terms are measured by.

    :param listener: is told the result, unless `cancel` comes first.
    """

    __slots__ = (
        "a",
        "b",
        "begun",
        "clean",
        "deadline",
        "deadlines",
        "end",
        "listener",
        "now",
        "reason",
        "started",
        "terms",
        "told",
    )

    def __init__(self, terms: SpliceTerms, clock: IReactorTime, listener: Listener) -> None:
        self.terms = terms
        self.now = clock.seconds
        self.deadlines = deadlines_of(clock)
        self.deadline: Deadline | None = None
        self.started = self.now()
        self.listener: Listener | None = listener
        self.end: End | None = None
        self.reason = ""
        self.clean = True
        self.told = False
        self.begun = False  # it may take a turn of the reactor to get the legs
        self.a: Leg
        self.b: Leg

    @property
    def bytes_a_to_b(self) -> int:
        """Payload handed over so far, the first bytes included."""
        return self.a.passed if self.begun else 0

    @property
    def bytes_b_to_a(self) -> int:
        """Payload handed over so far, the first bytes included."""
        return self.b.passed if self.begun else 0

    def begin(self, a: Leg, b: Leg, first_to_a: bytes, first_to_b: bytes) -> None:
        """Take over both connections, and let the bytes flow."""
        self.a, self.b = a, b
        self.begun = True
        a.join(b)
        b.join(a)
        if first_to_a and not a.gone:
            b.give_first(first_to_a)
        if first_to_b and not b.gone:
            a.give_first(first_to_b)
        for leg in (a, b):
            if leg.gone or leg.on_its_way_out:
                self._finish(leg, "was closed before the splice", clean=not leg.gone)
            elif self.end is None:
                leg.start()
        soonest = self.terms.soonest
        if soonest and self.end is None:
            self._sleep(self.started + soonest)
        if self.listener is None:
            self.cancel()

    def cancel(self) -> None:
        """Close both connections in good order and soon; nobody is told a result."""
        self.listener = None
        if not self.begun:
            return
        # Nobody will hear how it ended, so any end will do.
        self._end(End.LIFETIME, "cancelled", self.terms.broken_linger)
        soon = self.now() + self.terms.broken_linger
        if not self.told:
            for leg in (self.a, self.b):
                leg.until = min(leg.until, soon)
        self._watch()

    def time_is_up(self) -> None:
        """See which limit has passed."""
        self.deadline = None
        self._watch()

    # --- what the legs say ---

    def finished_reading(self, leg: Leg) -> None:
        """Pass a half-close on, as far as the other end knows such a thing."""
        if leg.other.finished_reading:
            self._finish(leg.other, "finished, and then the other end did", clean=True)
        elif leg.other.half_closes:
            leg.other.finish_writing()
        elif leg is self.b:
            # Who asks cannot be told by a half-close that no answer will come any more.
            self._finish(leg, "closed the connection", clean=True)
        else:
            self._watch()

    def finished_writing(self, leg: Leg) -> None:
        """Have less patience with a leg that knows that nothing more will come."""
        if leg.closing:
            leg.until = min(leg.until, self.now() + self.terms.grace)
            self._watch()

    def left(self, leg: Leg) -> None:
        """End the splice because a peer has closed in good order."""
        self._finish(leg, "closed the connection", clean=True)

    def lost(self, leg: Leg, error: str, *, spilt: bool) -> None:
        """End the splice with the first leg to go, and tell the result with the second."""
        if self.end is None:
            how = f"broke off ({error})" if error else "closed the connection"
            self._finish(leg, how, clean=not error)
        elif leg.aborted or (spilt and error):
            self.clean = False
        self._tell()

    # --- how it ends ---

    def _finish(self, leg: Leg, how: str, *, clean: bool) -> None:
        """End it because of what a leg's peer did."""
        end = End.A if leg is self.a else End.B
        self._end(
            end,
            f"{self._name(leg)} {how}",
            self.terms.linger if clean else self.terms.broken_linger,
            clean=clean,
        )

    def _name(self, leg: Leg) -> str:
        return self.terms.names[leg is self.b]

    def _end(self, end: End, reason: str, patience: float, *, clean: bool = False) -> None:
        """Close both legs, and let nothing pass any more but what is on its way."""
        if self.end is not None:
            return
        self.end, self.reason, self.clean = end, reason, clean
        for leg in (self.a, self.b):
            leg.mute = True
            leg.until = self.now() + patience
        for leg in (self.a, self.b):
            leg.close()
        self._tell()
        self._watch()

    def _tell(self) -> None:
        """Once both legs are gone, give the result and let go of everything."""
        a, b = self.a, self.b
        if self.told or not (a.gone and b.gone):
            return
        self.told = True
        self._sleep(None)
        a.part()
        b.part()
        listener, self.listener = self.listener, None
        if listener is not None and self.end is not None:
            lasted = self.now() - self.started
            listener.parted(SpliceResult(a.passed, b.passed, lasted, self.end, self.reason, self.clean))

    # --- the timer ---

    def _watch(self) -> None:
        """Act on a limit that has passed, and sleep until the next one could.

        Bytes that pass only leave the time behind them, so the timer may wake
        to find that there is nothing to do yet.  It must wake in time for any
        limit that begins to run while it sleeps.
        """
        if self.told:
            return
        now = self.now()
        if self.end is None:
            when, end = min(self._limits(now), key=itemgetter(0), default=(None, None))
            if when is not None and end is not None and when <= now + EARLY:
                self._give_up(end)
                return
        else:
            for leg in (self.a, self.b):
                if leg.until <= now + EARLY:
                    leg.cut()
            when = min(
                (leg.until for leg in (self.a, self.b) if not leg.gone and not leg.aborted), default=None
            )
        if not self.told:
            self._sleep(when)

    def _sleep(self, when: float | None) -> None:
        """Wake up then, and at no other time."""
        if self.deadline is not None:
            self.deadline.discard(self)
            self.deadline = None
        if when is not None:
            self.deadline = self.deadlines.after(max(0.0, when - self.now()), self)

    def _limits(self, now: float) -> Iterator[tuple[float, End]]:
        """Yield for each limit when it could pass at the earliest, and what then."""
        a, b, terms = self.a, self.b, self.terms
        heard = max(a.heard, b.heard)
        if terms.idle_timeout:
            yield heard + terms.idle_timeout, End.IDLE
        if terms.lifetime:
            yield self.started + terms.lifetime, End.LIFETIME
        for leg, end, stalled in (a, End.A, End.STALLED_A), (b, End.B, End.STALLED_B):
            if terms.stall_timeout:
                since = now if leg.waiting_since is None else leg.waiting_since
                yield since + terms.stall_timeout, stalled
            if leg.finished_reading and not leg.other.half_closes:
                # Its answers may be held up by nobody but itself.
                since = heard if leg.waiting_since is None else now
                yield since + terms.grace, end

    def _give_up(self, end: End) -> None:
        """End it because a limit has passed."""
        terms, (a, b) = self.terms, self.terms.names
        reasons = {
            End.IDLE: f"no byte either way for {terms.idle_timeout:g} s",
            End.LIFETIME: f"open for {terms.lifetime:g} s",
            End.STALLED_A: f"{a} took no bytes for {terms.stall_timeout:g} s",
            End.STALLED_B: f"{b} took no bytes for {terms.stall_timeout:g} s",
            End.A: f"{a} finished, and no more answers came",
            End.B: f"{b} finished, and no more answers came",
        }
        stalled = {End.STALLED_A: self.a, End.STALLED_B: self.b}.get(end)
        patience = terms.linger if stalled is None else terms.broken_linger
        self._end(end, reasons[end], patience, clean=end in (End.A, End.B))
        if stalled is not None:
            stalled.cut()
