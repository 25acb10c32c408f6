"""A private Prometheus: Debian's, in a folder and on a port of its own, which scrapes once a second."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from servers.processes import Foreground, Log, ServerProcess, free_port
from servers.programs import program


class Prometheus(Foreground):
    """One server; use it as a context manager.

    :param configuration: the text of its configuration; ``rules`` that of the file which it names.
    """

    name = "Prometheus"

    def __init__(self, folder: Path, configuration: str, rules: tuple[str, str]) -> None:
        self.folder = folder
        self.log = Log(folder / "prometheus.log")
        self.port = 0
        self._binary = program("prometheus", "prometheus")
        often = "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\n"
        (folder / "prometheus.yml").write_text(often + configuration)
        (folder / rules[0]).write_text(rules[1])

    def _launch(self) -> ServerProcess:
        self.port = free_port()
        options = {
            "config.file": self.folder / "prometheus.yml",
            "storage.tsdb.path": self.folder / "data",
            "web.listen-address": f"127.0.0.1:{self.port}",
        }
        command = [self._binary, *(f"--{key}={value}" for key, value in options.items())]
        return ServerProcess(command, self.log.path, cwd=self.folder)

    def _ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/-/ready") as answer:
                return answer.status == 200
        except URLError:
            return False

    def get(self, path: str) -> dict[str, object]:
        """Ask its API."""
        with urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}") as answer:
            said = json.load(answer)
        assert said["status"] == "success"
        return said["data"]

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Return what an expression is now: values by the values of the labels, less the metric's name."""
        found = self.get(f"query?{urlencode({'query': expression})}")["result"]
        return {
            tuple(value for key, value in sorted(each["metric"].items()) if key != "__name__"): float(
                each["value"][1]
            )
            for each in found
        }
