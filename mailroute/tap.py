"""``twistd mailroute``: its options, and the service that they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.python import usage

from mailroute.config import ConfigError, Problem, Settings, build, load, values
from mailroute.demo.ports import Ports
from mailroute.hangup import Hangup
from mailroute.listening import CannotListen
from mailroute.service import service


def _workers(written: str) -> int | str:
    try:
        return values.workers(int(written) if written.isdecimal() else written)
    except ValueError as error:
        raise usage.UsageError(f"--workers {error}") from None


_COMMANDS = ("check", "probe", "route", "token")
"""Those of the command ``mailroute``, which is another program."""

_KEYS = {
    "listen": "--listen",
    "backend.to.identity": "--identity",
    "backend": "--to",
    "workers": "--workers",
}
"""The options that stand for the keys of a forwarder's configuration, and for all that begins with them."""


def _forwarder(reactor: object, listen: str, to: str, identity: str | None, workers: int | str) -> Settings:
    """Return the settings of a TCP forwarder.

    Its connections may all come from one address, such as another proxy's: only
    their number in all is limited.

    :raises usage.UsageError: names the options that are wrong.
    """
    try:
        return build(
            reactor,
            listen=[{"protocol": "tcp", "endpoint": listen, "backend": "to"}],
            backend={"to": {"tcp": to} | ({} if identity is None else {"identity": identity})},
            limits={"connections_per_address": 0},
            workers=workers,
        )
    except ConfigError as error:
        raise usage.UsageError("; ".join(map(_of_an_option, error.problems))) from None


def _of_an_option(problem: Problem) -> str:
    """Say what is wrong with an option."""
    option = next(option for key, option in _KEYS.items() if problem.key.startswith(key))
    return f"{option}: {problem.message}"


class Options(usage.Options):
    """What may stand behind ``twistd mailroute``."""

    longdesc = "A mail routing proxy: one name and one port in front of many mail servers."

    optFlags = [  # noqa: RUF012 - a list is what Twisted reads
        ["demo", None, "Run two small mail servers and route to them, on the loopback interface."],
    ]
    optParameters = [  # noqa: RUF012
        ["config", "c", None, "The configuration file."],
        ["listen", None, None, "Without a file: forward the TCP connections of this server endpoint,"],
        ["to", None, None, "to this client endpoint,"],
        ["identity", None, None, "which learns clients' addresses by proxy-v1 or proxy-v2."],
        [
            "workers",
            "w",
            None,
            "How many processes carry the mail, or auto; else what the file says.",
            _workers,
        ],
        ["demo-starttls-port", None, Ports().imap, "The demo's port for IMAP with STARTTLS."],
        ["demo-tls-port", None, Ports().imaps, "The demo's port for IMAP with TLS."],
        ["demo-pop3-port", None, Ports().pop3, "The demo's port for POP3."],
        ["demo-submission-port", None, Ports().submission, "The demo's port for sending mail."],
        ["demo-smtp-port", None, Ports().smtp, "The demo's port where mail is delivered."],
    ]

    settings: Settings | None = None
    ports: Ports | None = None

    def __setitem__(self, name: str, value: Any) -> None:
        """Keep what an option says; of two that are alike Twisted would keep the last, and say nothing."""
        if name in ("config", "listen", "to") and self.get(name) is not None:
            more = (
                ""
                if name == "config"
                else ": for several listeners, write a file, and give that with --config"
            )
            raise usage.UsageError(f"--{name} is there twice{more or ': give one'}")
        super().__setitem__(name, value)

    def parseArgs(self, *words: str) -> None:  # noqa: N802 (Twisted's name)
        """Refuse whatever is no option.

        :raises usage.UsageError: there is such a word.
        """
        if words and words[0] in _COMMANDS:
            raise usage.UsageError(
                f'"{words[0]}" is no option of twistd\'s: that command is "mailroute {words[0]}"'
            )
        if words:
            raise usage.UsageError(
                f'"{words[0]}" is no option: write --config {words[0]} to run a file, '
                "or --listen ENDPOINT --to ENDPOINT to forward without one"
            )

    def postOptions(self) -> None:
        """Make the settings: twistd is not yet a daemon, and has given up no privilege."""
        config, listen, to, identity, workers = (
            self[name] for name in ("config", "listen", "to", "identity", "workers")
        )
        if (listen is None) is not (to is None):
            raise usage.UsageError("--listen and --to go together: give both")
        if (config is not None) + (listen is not None) + bool(self["demo"]) != 1:
            raise usage.UsageError("give one of --config FILE and --demo, or --listen with --to")
        if self["demo"] and workers is not None:
            raise usage.UsageError("the demo is one process: --workers goes with --config FILE or --listen")
        if listen is None and identity is not None:
            raise usage.UsageError("--identity goes with --to: in a file, it is a key of the backend")
        if self["demo"]:
            self.ports = self._demo_ports()
            return
        from twisted.internet import reactor

        if listen is not None:
            self.settings = _forwarder(reactor, listen, to, identity, 1 if workers is None else workers)
            return
        try:
            # Absolute: twistd may be told to run in another folder.
            self.settings = load(Path(config).absolute(), reactor, workers)
        except ConfigError as error:
            # twistd would print its usage in front of a UsageError, and
            # the command line is not what is wrong.
            raise SystemExit(str(error)) from None

    def _demo_ports(self) -> Ports:
        """Return where the demo is to listen.

        :raises usage.UsageError: that is not possible.
        """
        numbers: dict[int, str] = {}
        for option in Ports().options:
            written = str(self[option.removeprefix("--")])
            if not written.isdecimal() or not 1 <= int(written) <= 65535:
                raise usage.UsageError(f'{option} must be a number from 1 to 65535, not "{written}"')
            if int(written) in numbers:
                raise usage.UsageError(f"{option} {written} is {numbers[int(written)]} as well: give another")
            numbers[int(written)] = option
        return Ports(*numbers)

    def said(self, listener: str) -> str:
        """Return the option that says where a listener listens; empty if a file does."""
        if self["listen"] is not None:
            return "--listen"
        if self.ports is None:
            return ""
        ports = self.ports.options.items()
        return next((option for option, port in ports if f" tcp:{port}:" in listener), "")


class _Whole(MultiService):
    """All that twistd runs for mailroute: what it cannot do is told with the words of the command line."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self._options = options

    def privilegedStartService(self) -> None:
        """Bind.

        :raises CannotListen: a port cannot be had.
        """
        try:
            super().privilegedStartService()
        except CannotListen as error:
            option = self._options.said(error.listener)
            raise error.because_of(option) if option else error from None


def makeService(options: Options) -> IService:
    """Make the service that the command line asks for."""
    from twisted.internet import reactor

    whole = _Whole(options)
    # Signals are the program's, and not a part's that a Tac file may put beside others.
    Hangup(reactor).setServiceParent(whole)
    _carrier(options, reactor).setServiceParent(whole)
    return whole


def _carrier(options: Options, reactor: object) -> IService:
    if options.settings is None:
        # Not above: nobody else needs twisted.mail, which looks up the machine's name as it is imported.
        from mailroute.demo.service import make_demo_service

        return make_demo_service(reactor, options.ports)
    # Nobody needs them after this: in workers, tables are read once more.
    settings, options.settings = options.settings, None
    return service(settings, reactor)
