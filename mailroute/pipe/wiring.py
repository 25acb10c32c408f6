"""The pipe for any two stream transports: each one's bytes are written to the other.

Twisted's producers and consumers do the work.  Each end is one `Leg`, which
is at once the protocol of its own transport and the producer registered with
the other one, so that a transport whose buffer is full pauses the other's
reading.  `Wiring` decides what one leg's fate means for the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from mailroute.pipe.contract import End, Order, SpliceCancelled, SpliceResult
from mailroute.pipe.leg import Leg

# A timer may ring a rounding error before its moment.
EARLY = 0.001


def wire(order: Order) -> Deferred[SpliceResult]:
    """Join the order's transports; see `mailroute.pipe.splice`."""
    return Wiring(order).start(order.first_to_a, order.first_to_b)


class Wiring:
    """Two legs, one timer, and how it all ends."""

    __slots__ = ("a", "b", "clean", "clock", "deferred", "end", "reason", "started", "terms", "timer", "told")

    def __init__(self, order: Order) -> None:
        self.clock = order.clock
        self.terms = order.terms
        self.started = order.clock.seconds()
        self.end: End | None = None
        self.reason = ""
        self.clean = True
        self.told = False
        self.timer: IDelayedCall | None = None
        self.deferred: Deferred[SpliceResult] | None = Deferred(self._cancelled)
        self.a = Leg(order.a, self, order.clock.seconds)
        self.b = Leg(order.b, self, order.clock.seconds)

    def start(self, first_to_a: bytes, first_to_b: bytes) -> Deferred[SpliceResult]:
        """Take over both transports, and let the bytes flow."""
        deferred, a, b = self.deferred, self.a, self.b
        assert deferred is not None  # noqa: S101 (for mypy)
        a.join(b)
        b.join(a)
        if first_to_a and not a.gone:
            b.dataReceived(first_to_a)
        if first_to_b and not b.gone:
            a.dataReceived(first_to_b)
        for leg in (a, b):
            if leg.gone or leg.on_its_way_out:
                self._finish(leg, "was closed before the splice", clean=not leg.gone)
            elif self.end is None and leg.other.waiting_since is None:
                leg.transport.resumeProducing()
        self._watch()
        return deferred

    # --- what the legs say ---

    def finished_reading(self, leg: Leg) -> None:
        """Pass a half-close on, as far as the other end knows such a thing."""
        if leg.closing:
            leg.transport.loseConnection()
        elif leg.other.finished_reading:
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
            leg.until = min(leg.until, self.clock.seconds() + self.terms.grace)
            self._watch()

    def lost(self, leg: Leg, reason: Failure) -> None:
        """End the splice with the first leg to go, and tell the result with the second."""
        closed = reason.check(ConnectionDone) is not None
        if self.end is None:
            how = "closed the connection" if closed else f"broke off ({type(reason.value).__name__})"
            self._finish(leg, how, clean=closed)
        elif leg.aborted or (leg.holds_bytes and not closed):
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
        until = self.clock.seconds() + patience
        for leg in (self.a, self.b):
            leg.mute = True
            leg.close(until)
        self._tell()
        self._watch()

    def _cancelled(self, deferred: Deferred[SpliceResult]) -> None:
        self.deferred = None
        # Nobody will hear how it ended, so any end will do.
        self._end(End.LIFETIME, "cancelled", self.terms.broken_linger)
        soon = self.clock.seconds() + self.terms.broken_linger
        for leg in (self.a, self.b):
            leg.until = min(leg.until, soon)
        self._watch()
        deferred.errback(SpliceCancelled(self.a.passed, self.b.passed))

    def _tell(self) -> None:
        """Once both legs are gone, give the result and let go of everything."""
        a, b = self.a, self.b
        if self.told or not (a.gone and b.gone):
            return
        self.told = True
        self._set_alarm(None)
        # Twisted lets go of the legs; nothing must be left but a tree.
        del a.other, b.other, a.owner, b.owner, a.write, b.write
        deferred, self.deferred = self.deferred, None
        if deferred is not None and self.end is not None:
            lasted = self.clock.seconds() - self.started
            deferred.callback(SpliceResult(a.passed, b.passed, lasted, self.end, self.reason, self.clean))

    # --- the timer ---

    def _watch(self) -> None:
        """Act on a limit that has passed, and sleep until the next one could.

        Bytes that pass only leave the time behind them, so the timer may wake
        to find that there is nothing to do yet.  It must wake in time for any
        limit that begins to run while it sleeps.
        """
        now = self.clock.seconds()
        if self.end is None:
            when, end, reason = min(self._limits(now), key=itemgetter(0), default=(None, None, ""))
            if when is not None and end is not None and when <= now + EARLY:
                self._give_up(end, reason)
                return
        else:
            for leg in (self.a, self.b):
                if leg.until <= now + EARLY:
                    leg.cut()
            when = min(
                (leg.until for leg in (self.a, self.b) if not leg.gone and not leg.aborted), default=None
            )
        self._set_alarm(when)

    def _limits(self, now: float) -> Iterator[tuple[float, End, str]]:
        """Yield for each limit when it could pass at the earliest, and what then."""
        a, b, terms = self.a, self.b, self.terms
        heard = max(a.heard, b.heard)
        if terms.idle_timeout:
            yield heard + terms.idle_timeout, End.IDLE, f"no byte either way for {terms.idle_timeout:g} s"
        if terms.lifetime:
            yield self.started + terms.lifetime, End.LIFETIME, f"open for {terms.lifetime:g} s"
        for leg, end, stalled in (a, End.A, End.STALLED_A), (b, End.B, End.STALLED_B):
            name = self._name(leg)
            if terms.stall_timeout:
                since = now if leg.waiting_since is None else leg.waiting_since
                reason = f"{name} took no bytes for {terms.stall_timeout:g} s"
                yield since + terms.stall_timeout, stalled, reason
            if leg.finished_reading and not leg.other.half_closes:
                # Its answers may be held up by nobody but itself.
                since = heard if leg.waiting_since is None else now
                yield since + terms.grace, end, f"{name} finished, and no more answers came"

    def _give_up(self, end: End, reason: str) -> None:
        stalled = {End.STALLED_A: self.a, End.STALLED_B: self.b}.get(end)
        patience = self.terms.linger
        if stalled is not None:
            stalled.cut()
            patience = self.terms.broken_linger
        self._end(end, reason, patience, clean=end in (End.A, End.B))

    def _set_alarm(self, when: float | None) -> None:
        """Wake up then, and at no other time."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self.timer = None
        if when is not None:
            self.timer = self.clock.callLater(max(0.0, when - self.clock.seconds()), self._watch)
