"""What comes out of a run: JSON for programs, and Markdown for readers."""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.loads import Sizes
from benchmarks.measure import Results
from benchmarks.metrics import METRICS
from benchmarks.peers import PEERS, Leg
from benchmarks.targets import TARGETS, Target

LEGS = {
    Leg.PLAIN: "Plain on both sides",
    Leg.TLS: "TLS to the client",
    Leg.BOTH: "TLS to the client and to the backend",
}


@dataclass(frozen=True)
class Report:
    """A run, and what it was run on."""

    results: Results
    sizes: Sizes
    versions: Mapping[str, str]
    left_out: Mapping[str, str]
    machine: Mapping[str, str | float]
    date: str


def machine() -> dict[str, str | float]:
    """Return what there is to say about this machine without naming it."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    kernel = re.match(r"[\d.]*\d", platform.release())
    return {
        "cpu": cpu[1].strip() if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"Linux {kernel[0] if kernel else ''}".strip(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def today() -> str:
    """Return the date of the run."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


NOTHING = "\u2013"
"""Stands for a figure that there is none of."""

# --- numbers --------------------------------------------------------------------


def number(value: float) -> str:
    """Return a number with three digits that count, and thousands apart."""
    if value == 0:
        return "0"
    digits = max(0, 2 - _magnitude(value))
    return apart(value, digits)


def apart(value: float, digits: int = 0) -> str:
    """Return a number with its thousands apart, by a narrow space."""
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def _magnitude(value: float) -> int:
    # As it will be rounded: 9.996 is shown as 10.0.
    return int(f"{value:.2e}".split("e")[1])


def title(metric: str, sizes: Sizes) -> str:
    """Return a figure's title with the numbers of sessions in it."""
    counts = {"few": sizes.few, "some": sizes.some, "many": sizes.many}
    words = r"\b(few|some|many)\b(?= (idle )?(sessions|held))"
    return re.sub(words, lambda word: apart(counts[word[1]]), METRICS[metric].title)


# --- JSON -----------------------------------------------------------------------


def as_json(report: Report) -> dict[str, object]:
    """Return everything: each round's figures in SI units, and the medians."""
    results = report.results
    return {
        "date": report.date,
        "machine": dict(report.machine),
        "versions": dict(report.versions),
        "left_out": dict(report.left_out),
        "sizes": asdict(report.sizes),
        "measurements": [
            {
                "metric": metric,
                "leg": leg.value,
                "peer": peer,
                "median": series.median,
                "rounds": series.values,
                "busy": [reading.busy for reading in series.readings if reading.busy],
            }
            for (metric, leg, peer), series in results.series.items()
        ],
        "targets": [
            {
                "metric": target.own[0],
                "leg": target.leg.value,
                "target": target.words,
                "measured": target.measured(results),
                "reached": target.reached(results),
            }
            for target in TARGETS
        ],
        "failures": results.failures,
    }


# --- Markdown -------------------------------------------------------------------


def as_markdown(report: Report) -> str:
    """Return the tables that a reader wants."""
    blocks = [
        *_figures(report),
        *_targets(report),
        *_workers(report.results),
        *_busy(report),
        *_circumstances(report),
    ]
    return "\n\n".join(blocks) + "\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table whose first column is text, and the others numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figures(report: Report) -> Iterator[str]:
    """Yield a table for each leg: the figures in rows, the peers in columns."""
    series = report.results.series
    for leg, heading in LEGS.items():
        peers = [name for name in PEERS if any(key[1:] == (leg, name) for key in series)]
        metrics = [name for name in METRICS if any(key[:2] == (name, leg) for key in series)]
        if not metrics:
            continue
        rows = [
            [f"{title(metric, report.sizes)}, {METRICS[metric].unit}"]
            + [_cell(report, metric, leg, peer) for peer in peers]
            for metric in metrics
        ]
        yield f"### {heading}"
        yield table(["", *(PEERS[name].title for name in peers)], rows)


def _cell(report: Report, metric: str, leg: Leg, peer: str) -> str:
    median = report.results.median(metric, leg, peer)
    return NOTHING if median is None else number(median * METRICS[metric].scale)


def _targets(report: Report) -> Iterator[str]:
    """Yield a table of the targets: in the order of the figures, plain first."""
    yield "### What was to be reached"
    order = list(METRICS)
    targets = sorted(TARGETS, key=lambda target: order.index(target.own[0]))
    rows = [
        [
            title(target.own[0], report.sizes),
            "TLS" if target.leg.in_front else "plain",
            target.words,
            *_verdict(target, report.results),
        ]
        for target in targets
    ]
    yield table(["", "client", "target", "measured", ""], rows)


def _verdict(target: Target, results: Results) -> tuple[str, str]:
    measured = target.measured(results)
    if measured is None:
        return NOTHING, "not measured"
    shown = f"{measured:.2f}" if target.other else f"{number(measured / 1000)} kB"
    return shown, "reached" if target.reached(results) else "**not reached**"


def _workers(results: Results) -> Iterator[str]:
    """Say what two workers have beside one, and what took part besides the proxy."""
    rows = []
    for leg, heading in LEGS.items():
        for peer in ("mailroute", "nginx"):
            pair = [_login_in(results, leg, name) for name in (peer, f"{peer}-2")]
            if None not in pair:
                (rate, own, others), (rate_2, own_2, others_2) = (each for each in pair if each)
                figures = [rate, rate_2, own * 1e6, own_2 * 1e6, others * 1e6, others_2 * 1e6]
                ratios = (rate_2 / rate, 2 * own / own_2)
                shown = [*map(number, figures), *(f"{ratio:.2f}" for ratio in ratios)]
                rows.append([f"{heading}: {PEERS[peer].title}", *shown])
    if rows:
        yield "### Two workers"
        yield (
            "One worker has one core and two workers have two. "
            "The backend and the load generator share them, so the proxy cannot have all of their time. "
            "The last column is what two workers could do beside one if they had the cores to themselves, "
            "from the CPU time of a login alone. "
            "nginx stands beside it to show what these cores have to give."
        )
        one_and_two = [f"{what}, {count}" for what in _WORKERS_COLUMNS for count in ("one", "two")]
        yield table(["", *one_and_two, "ratio of the rates", "by CPU time alone"], rows)


_WORKERS_COLUMNS = ("logins per second", "µs of the proxy for each", "µs of the others")


def _login_in(results: Results, leg: Leg, peer: str) -> tuple[float, float, float] | None:
    """Return logins per second, and the CPU time of the proxy and of the others for each."""
    rates, own = results.series.get(("rate", leg, peer)), results.median("rate-cpu", leg, peer)
    if rates is None or own is None:
        return None
    others = [(each.busy["backend"] + each.busy["generator"]) / each.value for each in rates.readings]
    return rates.median, own, statistics.median(others)


def _busy(report: Report) -> Iterator[str]:
    """Say what the bottleneck was: it should be the proxy."""
    rows = []
    for metric in METRICS:
        busy = [
            reading.busy
            for key, series in report.results.series.items()
            for reading in series.readings
            if key[0] == metric and reading.busy
        ]
        if busy and metric != "rate":
            least = min(each["proxy"] for each in busy)
            most = [max(each[who] for each in busy) for who in ("backend", "generator")]
            rows.append([title(metric, report.sizes), *(f"{value:.2f}" for value in (least, *most))])
    if rows:
        yield "### Who was busy"
        yield "Parts of a core, over all peers and rounds."
        yield table(["", "a proxy, at least", "the backend, at most", "the load generator, at most"], rows)


def _circumstances(report: Report) -> Iterator[str]:
    yield "### Measured with"
    machine = report.machine
    rounds = report.sizes.rounds
    lines = [
        f"{report.date}, {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}; "
        f"medians of {rounds} round{'s' if rounds > 1 else ''}"
    ]
    lines += [
        f"{PEERS[name].title if name in PEERS else name} {text}" for name, text in report.versions.items()
    ]
    lines += [f"left out: {PEERS[name].title}: {reason}" for name, reason in report.left_out.items()]
    lines += [f"failed: {failure}" for failure in report.results.failures]
    yield "\n".join(f"- {line}" for line in lines)
