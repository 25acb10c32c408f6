"""The loads: what the clients do, and what is read off the proxy meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from benchmarks.peers import Leg, Peer
from benchmarks.processes import Program
from benchmarks.programs import Backend, Load, Reply

AT_ONCE = 32
"""Logins under way at any time: enough that no proxy waits for the round trips of one client."""

WAITING = 4 * AT_ONCE
"""The same where several workers are to be busy: one that waits is woken for each thing by itself."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything is done.

    ``heavy_rounds``: in how many rounds ``idle`` has its turn, which takes
    longest and varies least.  ``few``, ``some`` and ``many``: sessions held.  ``plain_bytes`` and
    ``tls_bytes``: what goes each way in bulk.  ``seconds``: of even NOOPs.
    """

    rounds: int
    heavy_rounds: int
    logins: int
    noops: int
    plain_bytes: int
    tls_bytes: int
    few: int
    some: int
    many: int
    seconds: float

    def bytes(self, leg: Leg) -> int:
        """Return what goes each way in bulk."""
        return self.tls_bytes if leg.in_front else self.plain_bytes


FULL = Sizes(3, 2, 1000, 20000, 2_000_000_000, 300_000_000, few=50, some=500, many=8000, seconds=1)
QUICK = Sizes(1, 1, 400, 5000, 500_000_000, 100_000_000, few=50, some=100, many=1000, seconds=1)
TINY = Sizes(1, 1, 40, 200, 4_000_000, 4_000_000, few=4, some=10, many=20, seconds=0.2)


@dataclass(frozen=True)
class Reading:
    """One figure of one round, in SI units.

    ``busy``: the part of the time for which the proxy, the backend and the
    load generator each had a core, where that is known.
    """

    metric: str
    value: float
    busy: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rig:
    """A proxy with the backend behind it, and what is needed to load it."""

    peer: Peer
    leg: Leg
    proxy: Program
    port: int
    backend: Backend
    sizes: Sizes
    generator_cores: Collection[int]

    @contextlib.contextmanager
    def generator(self, resume: bool = False) -> Iterator[Load]:
        """Have a load generator of its own."""
        with Load(self.port, self.leg.in_front, self.generator_cores, resume) as generator:
            yield generator

    def units(self, number: int) -> int:
        """Return how many units are enough for this peer."""
        return max(10, int(number * self.peer.share))

    def cost(self, metric: str, generator: Load, command: str) -> tuple[Reading, Reply]:
        """Have a command carried out, and return what each unit or byte of it cost the proxy in CPU time."""
        before = self.proxy.settled_cpu()
        others = self.backend.cpu(), generator.cpu()
        start = time.monotonic()
        reply = generator.do(command)
        seconds = time.monotonic() - start
        used = (self.backend.cpu() - others[0], generator.cpu() - others[1])
        proxy = self.proxy.settled_cpu() - before
        names = ("proxy", "backend", "generator")
        busy = {name: round(cpu / seconds, 3) for name, cpu in zip(names, (proxy, *used), strict=True)}
        return Reading(metric, proxy / (reply["bytes"] or reply["units"]), busy), reply


def login(rig: Rig) -> Iterator[Reading]:
    """Log in and out, each time on a new connection with a full handshake."""
    with rig.generator() as generator:
        generator.do(f"login {AT_ONCE} {rig.units(rig.sizes.logins // 5)}")
        yield rig.cost("login", generator, f"login {AT_ONCE} {rig.units(rig.sizes.logins)}")[0]


def resume(rig: Rig) -> Iterator[Reading]:
    """Log in and out with a ticket from an earlier connection instead of a full handshake.

    A proxy that takes no tickets gives no reading.
    """
    if rig.leg is not Leg.TLS:
        return
    with rig.generator(resume=True) as generator:
        generator.do(f"login {AT_ONCE} {rig.units(rig.sizes.logins // 5)}")  # brings the tickets
        reading, reply = rig.cost("resume", generator, f"login {AT_ONCE} {rig.units(rig.sizes.logins)}")
        if reply["resumed"] > 0.9 * reply["units"]:
            yield reading


def bulk(rig: Rig) -> Iterator[Reading]:
    """Send a lot to four clients, and have as much sent by them."""
    size = int(rig.sizes.bytes(rig.leg) * max(rig.peer.share, 0.2))
    with rig.generator() as generator:
        generator.do("open 4")
        for direction in ("down", "up"):
            generator.do(f"{direction} 4 {size // 10}")
            yield rig.cost(direction, generator, f"{direction} 4 {size}")[0]
        generator.do("close")


def noop(rig: Rig) -> Iterator[Reading]:
    """Send NOOP and wait for the OK, eight clients at once."""
    with rig.generator() as generator:
        generator.do("open 8")
        generator.do(f"noop 8 {rig.sizes.noops // 10}")
        yield rig.cost("noop", generator, f"noop 8 {rig.sizes.noops}")[0]
        generator.do("close")


def fairness(rig: Rig) -> Iterator[Reading]:
    """Time the NOOPs of 100 quiet clients, 1000 a second in all, without and with four others that pour."""
    with rig.generator() as quiet, rig.generator() as noisy:
        quiet.do("open 100")
        noisy.do("open 4")
        quiet.do("noop 100 200")
        seconds = rig.sizes.seconds
        yield from _percentiles("quiet", quiet.do(f"pace 100 {seconds} 1000"))
        noisy.begin(f"pour 4 {seconds + 0.6}")
        time.sleep(0.3)
        yield from _percentiles("poured", quiet.do(f"pace 100 {seconds} 1000"))
        noisy.finish()
        quiet.do("close")
        noisy.do("close")


def _percentiles(name: str, reply: Reply) -> Iterator[Reading]:
    yield Reading(f"{name}-p50", reply["p50_us"] / 1e6)
    yield Reading(f"{name}-p99", reply["p99_us"] / 1e6)


def idle(rig: Rig) -> Iterator[Reading]:
    """Hold sessions that do nothing, and let a few of them do something.

    The proxy must be fresh: one that has held as many before has the memory already.
    """
    sizes = rig.sizes
    with rig.generator() as generator:
        generator.do(f"login 4 {rig.units(100)}")
        empty = _memory(rig)
        generator.do(f"open {sizes.few}")
        yield from _noops("noop-few", rig, generator)
        for name, number in (("some", sizes.some), ("many", sizes.many)):
            if number > rig.peer.most_sessions:
                return
            generator.do(f"open {number}")
            yield Reading(f"idle-{name}", (_memory(rig) - empty) / number)
        before, start = rig.proxy.settled_cpu(), time.monotonic()
        time.sleep(sizes.seconds)
        yield Reading("idle-cpu", (rig.proxy.cpu() - before) / (time.monotonic() - start))
        yield from _noops("noop-many", rig, generator)


def _memory(rig: Rig) -> int:
    """Return the proxy's memory once it has come to rest."""
    rig.proxy.settled_cpu()
    time.sleep(min(rig.sizes.seconds, 0.5))
    return rig.proxy.memory()


def _noops(metric: str, rig: Rig, generator: Load) -> Iterator[Reading]:
    """Measure in three parts and keep the middle one, to compare it with one of another moment."""
    few, part = rig.sizes.few, rig.sizes.noops // 3
    generator.do(f"noop {few} {part // 3}")
    readings = [rig.cost(metric, generator, f"noop {few} {part}")[0] for _ in range(3)]
    yield sorted(readings, key=lambda reading: reading.value)[1]


def workers(rig: Rig) -> Iterator[Reading]:
    """Log in and out as fast as it goes.

    Everything that takes part has as many cores as the proxy has workers: see `Run`.
    """
    with rig.generator() as generator:
        generator.do(f"login {WAITING} {rig.sizes.logins // 5}")
        reading, reply = rig.cost("rate-cpu", generator, f"login {WAITING} {3 * rig.sizes.logins}")
        yield reading
        yield Reading("rate", reply["units"] / reply["seconds"], reading.busy)


Script = Callable[[Rig], Iterator[Reading]]

STEADY: dict[str, Script] = {
    "login": login,
    "resume": resume,
    "bulk": bulk,
    "noop": noop,
    "fairness": fairness,
}
"""Loads that leave a proxy as they found it: one instance takes all of them."""

LOADS: dict[str, Script] = {**STEADY, "idle": idle, "workers": workers}
