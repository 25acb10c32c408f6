"""What mailroute wants to cost, as ratios to its peers, and whether it does."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.measure import Results
from benchmarks.peers import PEERS, Leg


@dataclass(frozen=True)
class Target:
    """A bound on a figure of mailroute's divided by another, or on the figure itself, in SI units.

    ``own`` and ``other`` each name a metric and a peer.
    """

    leg: Leg
    own: tuple[str, str]
    other: tuple[str, str] | None
    bound: float
    words: str
    at_least: bool = False

    def measured(self, results: Results) -> float | None:
        """Return what has the bound, or None if it was not measured."""
        own = results.median(self.own[0], self.leg, self.own[1])
        if self.other is None:
            return own
        other = results.median(self.other[0], self.leg, self.other[1])
        return own / other if own is not None and other else None

    def reached(self, results: Results) -> bool | None:
        """Tell whether the target is reached, or None if it was not measured."""
        measured = self.measured(results)
        if measured is None:
            return None
        return measured >= self.bound if self.at_least else measured <= self.bound


def _beside(peer: str, leg: Leg, **bounds: float) -> list[Target]:
    """Return the targets beside a peer: how many times its figure mailroute's may be."""
    return [
        Target(leg, (metric, "mailroute"), (metric, peer), bound, f"at most {bound:g} of {PEERS[peer].title}")
        for metric, bound in ((name.replace("_", "-"), bound) for name, bound in bounds.items())
    ]


def _beside_itself(leg: Leg) -> list[Target]:
    few, one = ("noop-few", "mailroute"), ("rate", "mailroute")
    return [
        Target(leg, ("noop-many", "mailroute"), few, 1.15, "at most 1.15 of that with few sessions held"),
        Target(leg, ("rate", "mailroute-2"), one, 1.8, "two workers: at least 1.8 of one", at_least=True),
    ]


TARGETS = [
    *_beside("nginx", Leg.PLAIN, login=1.2, down=0.30, up=0.30, noop=1.0, idle_some=0.25, idle_many=0.25),
    *_beside("dovecot", Leg.PLAIN, login=0.75),
    *(
        Target(Leg.PLAIN, (metric, "mailroute"), None, 2000, "at most 2 kB")
        for metric in ("idle-some", "idle-many")
    ),
    *_beside_itself(Leg.PLAIN),
    *_beside("nginx", Leg.TLS, login=1.3, down=0.65, noop=1.3),
    *_beside("haproxy", Leg.TLS, down=0.90, up=0.90, idle_some=1.0, idle_many=1.0),
    *_beside("dovecot", Leg.TLS, login=0.70),
    *_beside_itself(Leg.TLS),
]
"""The marks that were set before anything was measured."""
