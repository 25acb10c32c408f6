"""``make bench``: measure mailroute beside other proxies, and write down what came out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks import programs
from benchmarks.loads import FULL, LOADS, QUICK, TINY
from benchmarks.measure import Plan, Run, present
from benchmarks.peers import PEERS, Leg
from benchmarks.plot import as_svg
from benchmarks.processes import BenchmarkError
from benchmarks.report import Report, as_json, as_markdown, machine, today

RESULTS = Path(__file__).parent / "results"
"""What a full run writes, and the README shows."""

SIZES = {"full": FULL, "quick": QUICK, "tiny": TINY}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status: 1 if anything went wrong."""
    options = parse(arguments)
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - start:6.1f} s  {text}", flush=True)

    try:
        return run(options, say)
    except BenchmarkError as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="make bench", description="Measure mailroute beside other proxies.")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", dest="size", action="store_const", const="quick", help="one short round")
    sizes.add_argument(
        "--tiny", dest="size", action="store_const", const="tiny", help="just to see that it runs"
    )
    parser.set_defaults(size="full")
    for option, values, what in (
        ("only", LOADS, "loads"),
        ("peers", PEERS, "proxies"),
        ("legs", [leg.value for leg in Leg], "legs"),
    ):
        parser.add_argument(f"--{option}", type=choice(values), help=f"which {what}, of {','.join(values)}")
    parser.add_argument("--rounds", type=int, help="how many, instead of the usual number")
    parser.add_argument("--output", type=Path, help="the folder for what is written")
    return parser.parse_args(arguments)


class choice:  # noqa: N801 - argparse names the type in its message
    """Some of several values, with commas between them."""

    def __init__(self, values: Collection[str]) -> None:
        self.values = values

    def __call__(self, text: str) -> list[str]:
        """Return the values in their usual order."""
        chosen = text.split(",")
        if unknown := set(chosen) - set(self.values):
            raise argparse.ArgumentTypeError(
                f"there is no {', '.join(sorted(unknown))}; there are {', '.join(self.values)}"
            )
        return [value for value in self.values if value in chosen]


def run(options: argparse.Namespace, say: programs.Say) -> int:
    """Measure what the options want, and write it."""
    programs.make()
    peers, versions, left_out = present(options.peers or list(PEERS))
    for name, reason in left_out.items():
        say(f"{name} is left out: {reason}")
    # Whoever names somebody wants them; and without mailroute there is nothing to show.
    if left_out and (options.peers or "mailroute" in left_out):
        return 1
    sizes = SIZES[options.size]
    if options.rounds:
        sizes = dataclasses.replace(sizes, rounds=options.rounds)
    legs = [Leg(name) for name in options.legs or [leg.value for leg in Leg]]
    about = machine()  # before the measurement loads it
    results = Run(Plan(peers, options.only or list(LOADS), legs, sizes), say).measure()
    versions["OpenSSL of the others"] = programs.openssl_version()
    report = Report(results, sizes, versions, left_out, about, today())
    partial = options.size != "full" or options.only or options.peers or options.legs
    folder = options.output or (programs.BUILD / "results" if partial else RESULTS)
    write(report, folder)
    say(f"written to {folder}")
    for failure in results.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if results.failures else 0


def write(report: Report, folder: Path) -> None:
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("results.json", json.dumps(as_json(report), indent=1) + "\n"),
        ("results.md", as_markdown(report)),
        ("results.svg", as_svg(report)),
    ):
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
