"""The command ``mailroute``, which looks at configurations and backends; ``twistd mailroute`` runs one."""

from __future__ import annotations

import argparse
import ipaddress
import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mailroute.config import ConfigError, Problem, describe, load

MAX_TIMEOUT = 3600.0
"""The most seconds that somebody may want to wait for a backend."""


_Result = TypeVar("_Result")

FILE = Path("mailroute.toml")
"""The configuration, unless another one is named."""

RUN = "twistd -n mailroute --config FILE"

MAX_LINE = 65536
"""Bytes of standard input that are read for a token: more than any has."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 1 if something is wrong.

    A wrong command line is 2.
    """
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1


def _check(arguments: argparse.Namespace) -> int:
    # Endpoint strings are checked by Twisted's own parsers, and those want a
    # reactor.  Importing it here and not above keeps it out of whatever else
    # imports this module.
    from twisted.internet import reactor

    for sentence in describe(load(_file(arguments), reactor)):
        print(sentence)
    return 0


def _file(arguments: argparse.Namespace) -> Path:
    """Return the configuration's name.

    :raises ConfigError: none is named, and the usual one is not there.
    """
    # One of the two at most, of the command that takes both.
    named: Path | None = arguments.config or getattr(arguments, "file", None)
    if named is None and not FILE.exists():
        raise ConfigError(
            [Problem(None, "", "there is none in this folder: name it, with --config FILE")], FILE
        )
    return named or FILE


def _probe(arguments: argparse.Namespace) -> int:
    from twisted.internet import reactor

    from mailroute import probe

    try:
        target = probe.find(arguments.backend, arguments.config, arguments.protocol, reactor)
    except probe.Misuse as error:
        print(f"mailroute probe: {error}", file=sys.stderr)
        return 2

    async def look(clock: object) -> probe.Report:
        examined = await probe.examine(target, clock, arguments.timeout)
        return probe.report(target, examined, datetime.now(UTC))

    report = _result_of(look)
    if arguments.json:
        print(report.model_dump_json(indent=2))
    else:
        print(*probe.lines(report), sep="\n")
    return 0 if report.ok else 1


def _route(arguments: argparse.Namespace) -> int:
    from twisted.internet import reactor

    from mailroute import whereabouts

    settings = load(_file(arguments), reactor)

    async def ask(clock: object) -> whereabouts.Whereabouts | whereabouts.CannotAsk:
        user = arguments.user.encode("utf-8", "surrogateescape")
        try:
            return await whereabouts.find(
                settings,
                user,
                arguments.protocol,
                clock,
                client=arguments.client,
                password=arguments.password_file,
            )
        except whereabouts.CannotAsk as error:
            return error

    answer = _result_of(ask)
    if isinstance(answer, whereabouts.CannotAsk):
        print(f"mailroute route: {answer}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(answer.as_json(), indent=2))
    else:
        print(*whereabouts.lines(answer), sep="\n")
    return 0 if answer.refused is None else 1


def _result_of(work: Callable[[object], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run the reactor, which cannot be run again, until the work is done, and return what that returns."""
    from twisted.internet.defer import Deferred
    from twisted.internet.task import react

    results: list[_Result] = []

    async def run(clock: Any) -> None:
        # Sources may count on it that nothing is asked before the reactor runs, as in a service.
        running: Deferred[None] = Deferred()
        clock.callWhenRunning(running.callback, None)
        await running
        results.append(await work(clock))

    try:
        react(run)
    except SystemExit as end:  # which is how it returns
        if end.code:
            raise
    [result] = results
    return result


def _token(arguments: argparse.Namespace) -> int:
    from twisted.internet import reactor

    from mailroute.deposit import CannotKeep, keep

    settings = load(_file(arguments), reactor)
    try:
        print(keep(settings, arguments.backend, arguments.user, sys.stdin.buffer.readline(MAX_LINE)))
    except CannotKeep as error:
        print(f"mailroute token: {error}", file=sys.stderr)
        return 1
    return 0


class _Parser(argparse.ArgumentParser):
    """Tells those who want to run mailroute how that is done."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit."""
        super().error(f"{message}\nTo run mailroute: {RUN}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mailroute", description="A mail routing proxy.", epilog=f"To run it: {RUN}")
    parser.add_argument("--version", action="version", version=f"mailroute {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser)
    check = commands.add_parser("check", help="say what a configuration will do, or every error in it")
    one = check.add_mutually_exclusive_group()
    one.add_argument(
        "file",
        type=Path,
        nargs="?",
        metavar="FILE",
        help="the configuration; mailroute.toml here unless given",
    )
    _add_config(one, "the same")
    check.set_defaults(run=_check)
    probe = commands.add_parser(
        "probe",
        help="say what a mail server offers and proves, and what to write about it in the configuration",
        description="Look at a mail server, without logging in.  The status is 0 if all is as configured.",
    )
    probe.add_argument(
        "backend", metavar="BACKEND", help="a backend's name, or HOST, HOST:PORT or an endpoint"
    )
    probe.add_argument(
        "--config", type=Path, metavar="FILE", help="the configuration; mailroute.toml here, if there is one"
    )
    probe.add_argument(
        "--protocol", metavar="NAME", help="look at this protocol alone; needed where no backend is named"
    )
    probe.add_argument("--json", action="store_true", help="write JSON, as docs/probe.schema.json has it")
    probe.add_argument(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="seconds for each connection; 10 unless given",
    )
    probe.set_defaults(run=_probe)
    _add_route(commands)
    _add_token(commands)
    return parser


def _add_config(
    parser: argparse._ActionsContainer, words: str = "the configuration; mailroute.toml here unless given"
) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help=words)


def _add_token(commands: Any) -> None:
    token = commands.add_parser(
        "token",
        help="keep a user's refresh token, which standard input has, for a backend that takes OAuth alone",
        description="Keep the refresh token that is on standard input, encrypted, in place of the old one.",
    )
    token.add_argument(
        "user", metavar="USER", help="the user's name at the backend, as mailroute route shows it"
    )
    token.add_argument("--backend", metavar="NAME", help="needed where several have such tokens")
    _add_config(token)
    token.set_defaults(run=_token)


def _add_route(commands: Any) -> None:
    route = commands.add_parser(
        "route",
        help="say where an account lives, who was asked, and how one would be logged in",
        description="Ask the routes for an account, without logging in.  The status is 0 if it has one.",
    )
    route.add_argument("user", metavar="USER", help="the user's name, as a client sends it")
    route.add_argument("--protocol", default="imap", metavar="NAME", help="imap unless given")
    _add_config(route)
    route.add_argument(
        "--client",
        type=_address,
        metavar="ADDRESS",
        help="from where the client would come",
    )
    route.add_argument(
        "--password-file",
        type=_first_line,
        metavar="FILE",
        help="the user's password is its first line (- is standard input), for sources that check it",
    )
    route.add_argument("--json", action="store_true", help="write JSON, as docs/route.schema.json has it")
    route.set_defaults(run=_route)


def _address(text: str) -> str:
    """Read an IP address.

    :raises argparse.ArgumentTypeError: it is none.
    """
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IP address, such as 192.0.2.1") from None


def _first_line(name: str) -> bytes:
    """Read a file's first line, which no command line or process list then shows.

    :raises argparse.ArgumentTypeError: it cannot be read.
    """
    try:
        content = sys.stdin.buffer.readline() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {name}: {error.strerror or error}") from None
    return content.split(b"\n", 1)[0].removesuffix(b"\r")


def _seconds(text: str) -> float:
    """Read a number of seconds.

    :raises argparse.ArgumentTypeError: it is none, or not more than 0.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT:
        wanted = f"is no number of seconds, more than 0 and up to {MAX_TIMEOUT:g}"
        raise argparse.ArgumentTypeError(f"{text!r} {wanted}")
    return seconds


def _version() -> str:
    try:
        return version("mailroute")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
