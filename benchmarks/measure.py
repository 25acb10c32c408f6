"""The order in which everything is measured, and keeping what comes out of it."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.loads import LOADS, STEADY, Reading, Rig, Sizes
from benchmarks.metrics import METRICS
from benchmarks.peers import PEERS, Cores, Leg, Peer
from benchmarks.processes import BenchmarkError, Program
from benchmarks.programs import Backend, Say


@dataclass
class Series:
    """The readings of one figure: one for each round."""

    readings: list[Reading] = field(default_factory=list)

    @property
    def values(self) -> list[float]:
        """The figures, in SI units."""
        return [reading.value for reading in self.readings]

    @property
    def median(self) -> float:
        """The median of all rounds."""
        return statistics.median(self.values)


@dataclass
class Results:
    """All that has been measured: series by metric, leg and peer; and what went wrong."""

    series: dict[tuple[str, Leg, str], Series] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, leg: Leg, peer: str, reading: Reading) -> None:
        """Keep a reading."""
        self.series.setdefault((reading.metric, leg, peer), Series()).readings.append(reading)

    def median(self, metric: str, leg: Leg, peer: str) -> float | None:
        """Return a figure in SI units, or None if nobody measured it."""
        found = self.series.get((metric, leg, peer))
        return found.median if found else None


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    peers: Sequence[Peer]
    loads: Collection[str]
    legs: Sequence[Leg]
    sizes: Sizes

    def takes(self, peer: Peer, load: str, leg: Leg) -> bool:
        """Tell whether a peer is to be put under a load."""
        return load in self.loads and leg in self.legs and leg in peer.legs and load in peer.loads


class Run:
    """One run: every round puts every peer under every load, one peer after the other."""

    def __init__(self, plan: Plan, say: Say) -> None:
        self.plan = plan
        self.results = Results()
        self._say = say
        self._cores = Cores.share_out()

    def measure(self) -> Results:
        """Measure everything that is planned; what fails is noted, and the rest goes on."""
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            for number in range(self.plan.sizes.rounds):
                for leg in self.plan.legs:
                    self._say(f"round {number + 1} of {self.plan.sizes.rounds}, {leg.value}")
                    with Backend(folder, leg.behind, self._cores.others) as backend:
                        self._steady(leg, backend)
                        if number < self.plan.sizes.heavy_rounds:
                            self._idle(leg, backend)
                    self._workers(leg, folder)
        return self.results

    def _steady(self, leg: Leg, backend: Backend) -> None:
        """All peers run, and take each load in turn."""
        wanted = [load for load in STEADY if load in self.plan.loads]
        with contextlib.ExitStack() as stack:
            rigs = []
            for peer in self.plan.peers:
                if any(self.plan.takes(peer, load, leg) for load in wanted):
                    with self._noting(f"{peer.name}, {leg.value}"):
                        rigs.append(stack.enter_context(self._rig(peer, leg, backend)))
            for load in wanted:
                for rig in rigs:
                    if self.plan.takes(rig.peer, load, leg):
                        self._take(load, rig)

    def _idle(self, leg: Leg, backend: Backend) -> None:
        """Each peer has a fresh start."""
        for peer in self.plan.peers:
            if self.plan.takes(peer, "idle", leg):
                with self._noting(f"{peer.name}, {leg.value}"), self._rig(peer, leg, backend) as rig:
                    self._take("idle", rig)

    def _workers(self, leg: Leg, folder: Path) -> None:
        """As many cores as there are workers, for everything that takes part."""
        for peer in self.plan.peers:
            if self.plan.takes(peer, "workers", leg):
                cores = Cores.first(peer.workers)
                with (
                    self._noting(f"{peer.name}, {leg.value}"),
                    Backend(folder, leg.behind, cores.others) as backend,
                    peer.run(leg, backend.port, cores) as (proxy, port),
                ):
                    self._take("workers", Rig(peer, leg, proxy, port, backend, self.plan.sizes, cores.others))

    @contextlib.contextmanager
    def _rig(self, peer: Peer, leg: Leg, backend: Backend) -> Iterator[Rig]:
        with peer.run(leg, backend.port, self._cores) as (proxy, port):
            yield Rig(peer, leg, proxy, port, backend, self.plan.sizes, self._cores.others)

    def _take(self, load: str, rig: Rig) -> None:
        with self._noting(f"{load}, {rig.peer.name}, {rig.leg.value}", rig.proxy):
            for reading in LOADS[load](rig):
                self.results.add(rig.leg, rig.peer.name, reading)
                metric = METRICS[reading.metric]
                shown = f"{reading.value * metric.scale:10.1f} {metric.unit}"
                self._say(f"  {rig.peer.name:12} {reading.metric:11} {shown}")

    @contextlib.contextmanager
    def _noting(self, what: str, proxy: Program | None = None) -> Iterator[None]:
        """Note a failure, and what the proxy has said last, instead of ending."""
        try:
            yield
        except BenchmarkError as error:
            self.results.failures.append(f"{what}: {error}")
            self._say(f"  FAILED: {what}: {error}")
            for line in proxy.last_words() if proxy else ():
                self._say(f"    {line}")


def present(names: Sequence[str]) -> tuple[list[Peer], dict[str, str], dict[str, str]]:
    """Return those of the named peers that are here, the version of each, and why any is not."""
    here: list[Peer] = []
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            version = PEERS[name].version()
        except BenchmarkError as error:
            left_out[name] = str(error)
            continue
        here.append(PEERS[name])
        # The same program with other settings has been named already.
        if not any(PEERS[other].binary == PEERS[name].binary for other in versions):
            versions[name] = version
    return here, versions, left_out
