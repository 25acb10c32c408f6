"""A real Prometheus reads the metrics, and takes the README's configuration and rules."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from metrics import got
from readme import TEXT, blocks, section
from servers.processes import free_port, wait_until
from servers.programs import program
from servers.prometheus import Prometheus
from servers.raw import RawImap
from workers.rig import Files, MailServer

pytestmark = pytest.mark.integration

CONFIGURATION, RULES = (block.text for block in blocks(section(TEXT, "Metrics"), "yaml"))
RULES_FILE = re.match(r"# (\S+)\n", RULES)[1]
SOURCE = "route[1] (http)"


class Measured:
    """A mailroute of two workers, whose source cannot be reached, with its page of metrics."""

    def __init__(self, folder: Path, backend: int) -> None:
        self.files = Files(folder, backend)
        self.port = free_port()
        self.files.config |= {
            "metrics": {"address": f"127.0.0.1:{self.port}"},
            "route": [
                {
                    "source": "http",
                    "url": f"http://127.0.0.1:{free_port()}/",
                    "backend": "east",
                    "breaker_failures": 2,
                },
            ],
        }

    def fail(self, logins: int) -> None:
        """Try to log in, in vain."""
        for _ in range(logins):
            with RawImap("127.0.0.1", self.files.port) as client:
                client.greeting()
                assert client.command("a LOGIN alice wonderland").startswith(b"a NO [UNAVAILABLE]")


@pytest.fixture(scope="module")
def mailroute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    with MailServer() as backend:
        measured = Measured(tmp_path_factory.mktemp("mailroute"), backend.port)
        with measured.files.run() as running:
            measured.fail(20)
            yield measured
            running.stop()


def test_prometheus_finds_no_fault_with_the_page(mailroute: Measured) -> None:
    """Names, units and helps are as Prometheus' own linter wants them."""
    page = got(mailroute.port)
    checked = subprocess.run(
        [program("promtool", "prometheus"), "check", "metrics"], input=page, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_prometheus_takes_the_readme_s_files(tmp_path: Path) -> None:
    """The configuration is whole, and it finds the rules."""
    (tmp_path / "prometheus.yml").write_text(CONFIGURATION)
    (tmp_path / RULES_FILE).write_text(RULES)
    promtool = program("promtool", "prometheus")
    checked = subprocess.run(
        [promtool, "check", "config", "prometheus.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert f"{len(re.findall('alert:', RULES))} rules found" in checked.stdout


def test_prometheus_scrapes_and_tells(mailroute: Measured, tmp_path: Path) -> None:
    """All workers' figures arrive, and the rules tell of a source that fails and is left alone."""
    configuration = CONFIGURATION.replace("9317", str(mailroute.port))
    with Prometheus(tmp_path, configuration, (RULES_FILE, RULES)) as prometheus:
        wait_until("the first scrape", lambda: set(prometheus.query("up").values()) == {1})
        questions = "sum by (source) (mailroute_source_questions_total)"
        wait_until("the questions", lambda: prometheus.query(questions) == {(SOURCE,): 20})
        failed = "sum by (source) (mailroute_source_failures_total)"
        asked = 'sum by (source) (mailroute_source_questions_total{outcome="asked"})'
        assert 2 <= prometheus.query(failed)[SOURCE,] == prometheus.query(asked)[SOURCE,] <= 4
        assert prometheus.query("mailroute_worker_up") == {
            (f"127.0.0.1:{mailroute.port}", "mailroute", worker): 1 for worker in "12"
        }

        def alerts() -> set[str]:
            return {each["labels"]["alertname"] for each in prometheus.get("alerts")["alerts"]}

        wait_until("the breaker's alert", lambda: "SourceLeftAlone" in alerts())
        [group] = prometheus.get("rules")["groups"]
        assert {rule["health"] for rule in group["rules"]} == {"ok"}
