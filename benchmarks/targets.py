"""What mailroute wants to cost, as ratios to its peers, and whether it does."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measure import Results
from benchmarks.peers import Leg

OWN, OWN_2 = "mailroute", "mailroute-2"


@dataclass(frozen=True)
class Figure:
    """A figure of a peer's."""

    metric: str
    peer: str


@dataclass(frozen=True)
class Target:
    """A bound on the ratio of two figures, or on one figure in SI units if there is nothing to divide it by."""

    load: str
    leg: Leg
    own: Figure
    other: Figure | None
    bound: float
    at_least: bool = False

    @property
    def words(self) -> str:
        """The bound, as a reader would say it."""
        word = "at least" if self.at_least else "at most"
        if self.other is None:
            return f"{word} {self.bound / 1000:g} kB"
        return f"{word} {self.bound:g} of {_BESIDES.get(self.other, self.other.peer)}"

    def ratio(self, results: Results) -> float | None:
        """Return the figure that has a bound, or None if it was not measured."""
        own = results.median(self.own.metric, self.leg, self.own.peer)
        if self.other is None:
            return own
        other = results.median(self.other.metric, self.leg, self.other.peer)
        return own / other if own is not None and other else None

    def reached(self, results: Results) -> bool | None:
        """Tell whether the target is reached, or None if it was not measured."""
        ratio = self.ratio(results)
        if ratio is None:
            return None
        return ratio >= self.bound if self.at_least else ratio <= self.bound


_BESIDES = {
    Figure("noop-few", OWN): "that with few sessions held",
    Figure("rate", OWN): "one worker on one core",
}
"""What to call the figures of mailroute's own that others are compared with."""


def _beside(load: str, metric: str, leg: Leg, peer: str, bound: float) -> Target:
    return Target(load, leg, Figure(metric, OWN), Figure(metric, peer), bound)


def _both_legs() -> list[Target]:
    return [
        target
        for leg in (Leg.PLAIN, Leg.TLS)
        for target in (
            Target(
                "NOOP round trip, CPU, with many sessions held",
                leg,
                Figure("noop-many", OWN),
                Figure("noop-few", OWN),
                1.15,
            ),
            Target(
                "logins per second of two workers on two cores",
                leg,
                Figure("rate", OWN_2),
                Figure("rate", OWN),
                1.8,
                at_least=True,
            ),
        )
    ]


TARGETS = [
    _beside("bulk down, CPU", "down", Leg.PLAIN, "nginx", 0.30),
    _beside("bulk up, CPU", "up", Leg.PLAIN, "nginx", 0.30),
    _beside("bulk down, CPU", "down", Leg.TLS, "nginx", 0.65),
    _beside("bulk down, CPU", "down", Leg.TLS, "haproxy", 0.90),
    _beside("bulk up, CPU", "up", Leg.TLS, "haproxy", 0.90),
    _beside("NOOP round trip, CPU", "noop", Leg.PLAIN, "nginx", 1.0),
    _beside("NOOP round trip, CPU", "noop", Leg.TLS, "nginx", 1.3),
    _beside("login and logout, CPU", "login", Leg.PLAIN, "nginx", 1.2),
    _beside("login and logout, CPU", "login", Leg.PLAIN, "dovecot", 0.75),
    _beside("login and logout, CPU", "login", Leg.TLS, "nginx", 1.3),
    _beside("login and logout, CPU", "login", Leg.TLS, "dovecot", 0.70),
    *(
        target
        for held, metric in (("some", "idle-some"), ("many", "idle-many"))
        for target in (
            Target(f"idle session, memory, {held} held", Leg.PLAIN, Figure(metric, OWN), None, 2000),
            _beside(f"idle session, memory, {held} held", metric, Leg.PLAIN, "nginx", 0.25),
            _beside(f"idle session, memory, {held} held", metric, Leg.TLS, "haproxy", 1.0),
        )
    ),
    *_both_legs(),
]
"""The marks that were set before anything was measured."""
