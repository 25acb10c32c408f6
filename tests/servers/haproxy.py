"""HAProxy in front of mailroute: a balancer that says who its clients are."""

from __future__ import annotations

import contextlib
import csv
import socket
from collections.abc import Mapping
from pathlib import Path

from servers.processes import PATIENCE, Foreground, Log, ServerProcess, free_port
from servers.programs import program

_CONFIGURATION = """\
global
    log stdout format raw local0 info
    stats socket {folder}/stats
defaults
    mode tcp
    log global
    timeout connect 10s
    timeout client 60s
    timeout server 60s
"""

_WAY = """
listen {name}
    bind 127.0.0.1:{port}
    unique-id-format %{{+X}}o%ci_%cp_%Ts_%rt
{options}
    server mailroute {server}
"""


class HAProxy(Foreground):
    """A balancer with a port for each way; use it as a context manager.

    ``ways`` are the words that follow ``server mailroute`` in its
    configuration, by the names that the test gives them; ``options`` are
    further lines for some of them.
    """

    name = "HAProxy"

    def __init__(
        self, folder: Path, ways: Mapping[str, str], options: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self.folder = folder
        self.log = Log(folder / "output")
        self.ports: dict[str, int] = {}
        self._ways = ways
        self._options = options or {}
        folder.mkdir()

    def _launch(self) -> ServerProcess:
        self.ports = {name: free_port() for name in self._ways}
        text = _CONFIGURATION.format(folder=self.folder)
        for name, server in self._ways.items():
            options = "\n".join(f"    {line}" for line in self._options.get(name, ()))
            text += _WAY.format(name=name, port=self.ports[name], options=options, server=server)
        path = self.folder / "haproxy.cfg"
        path.write_text(text)
        return ServerProcess([program("haproxy", "haproxy"), "-db", "-f", str(path)], self.log.path)

    def _ready(self) -> bool:
        # Not by a look at its ports, which would reach whom it stands in front of.
        with contextlib.suppress(OSError):
            return bool(self.checked())
        return False

    def checked(self) -> dict[str, str]:
        """Return what came of the latest health check of each way: ``INI`` before the first."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(PATIENCE)
            asking.connect(str(self.folder / "stats"))
            asking.sendall(b"show stat\n")
            told = asking.makefile().read()
        return {
            row["# pxname"]: row["check_status"].removeprefix("* ")
            for row in csv.DictReader(told.splitlines())
            if row["svname"] == "mailroute"
        }
