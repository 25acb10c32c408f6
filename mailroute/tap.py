"""``twistd mailroute``: its options, and the service that they ask for."""

from __future__ import annotations

from pathlib import Path

from twisted.application.service import IService, MultiService
from twisted.python import usage

from mailroute.config import ConfigError, Problem, Settings, build, load, values
from mailroute.demo.ports import Ports
from mailroute.hangup import Hangup
from mailroute.service import service


def _workers(written: str) -> int | str:
    try:
        return values.workers(int(written) if written.isdecimal() else written)
    except ValueError as error:
        raise usage.UsageError(f"--workers {error}") from None


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
        ["demo-starttls-port", None, Ports().imap, "The demo's port for IMAP with STARTTLS.", int],
        ["demo-tls-port", None, Ports().imaps, "The demo's port for IMAP with TLS.", int],
        ["demo-pop3-port", None, Ports().pop3, "The demo's port for POP3.", int],
        ["demo-submission-port", None, Ports().submission, "The demo's port for sending mail.", int],
        ["demo-smtp-port", None, Ports().smtp, "The demo's port where mail is delivered.", int],
    ]

    settings: Settings | None = None

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


def makeService(options: Options) -> IService:
    """Make the service that the command line asks for."""
    from twisted.internet import reactor

    whole = MultiService()
    # Signals are the program's, and not a part's that a Tac file may put beside others.
    Hangup(reactor).setServiceParent(whole)
    _carrier(options, reactor).setServiceParent(whole)
    return whole


def _carrier(options: Options, reactor: object) -> IService:
    if options.settings is None:
        # Not above: nobody else needs twisted.mail, which looks up the machine's name as it is imported.
        from mailroute.demo.service import make_demo_service

        names = ("starttls", "tls", "pop3", "submission", "smtp")
        return make_demo_service(reactor, Ports(*(options[f"demo-{name}-port"] for name in names)))
    # Nobody needs them after this: in workers, tables are read once more.
    settings, options.settings = options.settings, None
    return service(settings, reactor)
