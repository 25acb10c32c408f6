"""The command ``mailroute``, which looks at a configuration; ``twistd mailroute`` runs one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mailroute.config import ConfigError, describe, load


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 1 if the configuration has errors."""
    arguments = _parser().parse_args(argv)
    # Endpoint strings are checked by Twisted's own parsers, and those want a
    # reactor.  Importing it here and not above keeps it out of whatever else
    # imports this module.
    from twisted.internet import reactor

    try:
        settings = load(arguments.file, reactor)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    for sentence in describe(settings):
        print(sentence)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mailroute",
        description="A mail routing proxy.",
        epilog="To run it: twistd -n mailroute --config FILE",
    )
    parser.add_argument("--version", action="version", version=f"mailroute {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="say what a configuration will do, or every error in it")
    check.add_argument("file", type=Path, metavar="FILE", help="the configuration, such as mailroute.toml")
    return parser


def _version() -> str:
    try:
        return version("mailroute")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
