"""``twistd mailroute``: its options, and the service that they ask for."""

from __future__ import annotations

from pathlib import Path

from twisted.application.service import IService
from twisted.python import usage

from mailroute.config import ConfigError, Settings, load, values
from mailroute.demo.service import STARTTLS_PORT, TLS_PORT, make_demo_service
from mailroute.service import service


def _workers(written: str) -> int | str:
    try:
        return values.workers(int(written) if written.isdecimal() else written)
    except ValueError as error:
        raise usage.UsageError(f"--workers {error}") from None


class Options(usage.Options):
    """What may stand behind ``twistd mailroute``."""

    longdesc = "A mail routing proxy: one name and one port in front of many mail servers."

    optFlags = [  # noqa: RUF012 - a list is what Twisted reads
        ["demo", None, "Run two small mail servers and route to them, on the loopback interface."],
    ]
    optParameters = [  # noqa: RUF012
        ["config", "c", None, "The configuration file."],
        [
            "workers",
            "w",
            None,
            "How many processes carry the mail, or auto; else what the file says.",
            _workers,
        ],
        ["demo-starttls-port", None, STARTTLS_PORT, "The demo's port with STARTTLS.", int],
        ["demo-tls-port", None, TLS_PORT, "The demo's port with TLS.", int],
    ]

    settings: Settings | None = None

    def postOptions(self) -> None:
        """Read the configuration file: twistd is not yet a daemon, and has given up no privilege."""
        if (self["config"] is None) is not bool(self["demo"]):
            raise usage.UsageError("give one of --config FILE and --demo")
        if self["demo"] and self["workers"] is not None:
            raise usage.UsageError("the demo is one process: --workers goes with --config FILE")
        if self["config"] is not None:
            from twisted.internet import reactor

            try:
                # Absolute: twistd may be told to run in another folder.
                self.settings = load(Path(self["config"]).absolute(), reactor, self["workers"])
            except ConfigError as error:
                # twistd would print its usage in front of a UsageError, and
                # the command line is not what is wrong.
                raise SystemExit(str(error)) from None


def makeService(options: Options) -> IService:
    """Make the service that the command line asks for."""
    from twisted.internet import reactor

    if options.settings is None:
        return make_demo_service(reactor, options["demo-starttls-port"], options["demo-tls-port"])
    # Nobody needs them after this: in workers, tables are read once more.
    settings, options.settings = options.settings, None
    return service(settings, reactor)
