"""The table ``[metrics]``: which addresses are taken, what is refused with which words, and what is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from config.texts import SMALL
from twisted.internet.testing import MemoryReactorClock

from mailroute.config import Backend, ConfigError, Listener, Metrics, Settings, describe
from mailroute.testing import FakeRouter

Load = Callable[[str], Settings]
Errors = Callable[[str], list[str]]


def with_address(address: str) -> str:
    return f'{SMALL}\n[metrics]\naddress = "{address}"\n'


@pytest.mark.parametrize(
    ("address", "endpoint", "private"),
    [
        ("127.0.0.1:9317", "tcp:9317:interface=127.0.0.1", True),
        ("127.8.9.10:0", "tcp:0:interface=127.8.9.10", True),
        ("[::1]:9317", r"tcp6:9317:interface=\:\:1", True),
        ("192.0.2.1:65535", "tcp:65535:interface=192.0.2.1", False),
        ("0.0.0.0:9317", "tcp:9317:interface=0.0.0.0", False),
        ("[::]:9317", r"tcp6:9317:interface=\:\:", False),
        ("/run/mailroute/metrics", "unix:/run/mailroute/metrics:mode=660", True),
        ("/run/a:b=c", r"unix:/run/a\:b\=c:mode=660", True),
    ],
)
def test_an_address_is_an_endpoint(load: Load, address: str, endpoint: str, private: bool) -> None:
    """IP addresses with ports and paths are taken, and it is known who can reach them."""
    metrics = load(with_address(address)).metrics
    assert metrics is not None
    assert (metrics.address.endpoint, metrics.address.private) == (endpoint, private)
    assert str(metrics.address) == address


def test_a_path_is_relative_to_the_file(load: Load, folder: Path) -> None:
    """A socket is where the configuration is, and not where mailroute runs."""
    metrics = load(with_address("./metrics")).metrics
    assert metrics is not None
    assert metrics.address.path == folder / "metrics"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            '""',
            'an IP address and a port, such as "127.0.0.1:9317", or the path of a UNIX socket, not ""',
        ),
        ('"9317"', "must be an IP address and a port"),
        ('"localhost:9317"', "must be an IP address and a port"),
        ('"::1:9317"', "must be an IP address and a port"),
        ('"127.0.0.1"', "must be an IP address and a port"),
        ('"127.0.0.1:http"', "must be an IP address and a port"),
        ('"300.0.0.1:9317"', 'and "300.0.0.1" is no IP address'),
        ('"[127.0.0.1:80]:9317"', "must be an IP address and a port"),
        ('"127.0.0.1:65536"', "the port must be from 0 to 65535, not 65536"),
        ("9317", "must be an IP address and a port"),
        ("true", "must be an IP address and a port"),
        (f'"/{100 * "x"}"', "is too long for a socket: it may have 100 bytes"),
    ],
)
def test_what_is_no_address_is_refused(errors: Errors, value: str, told: str) -> None:
    """Each is told with its line, and what would be one."""
    [error] = errors(f"{SMALL}\n[metrics]\naddress = {value}\n")
    assert "mailroute.toml:14: metrics.address: " in error
    assert told in error


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[metrics]\n",
            'mailroute.toml:13: metrics.address: missing: write for example address = "127.0.0.1:9317"',
        ),
        (
            '[metrics]\naddress = "127.0.0.1:1"\nadress = 1\n',
            'metrics.adress: unknown key; did you mean "address"?',
        ),
        ("[[metrics]]\n", "metrics: must be a table, not a list"),
        ("[metric]\n", 'metric: unknown key; did you mean "metrics"?'),
    ],
)
def test_another_table_is_refused(errors: Errors, text: str, told: str) -> None:
    """A key or a table that is not known is told with the nearest one that is."""
    assert told in "\n".join(errors(f"{SMALL}\n{text}"))


def test_the_library_that_is_missing_is_named(errors: Errors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names the table and has not installed what it needs is told what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    [error] = errors(with_address("127.0.0.1:9317"))
    assert error.endswith(
        'mailroute.toml:13: metrics: needs the package prometheus_client: pip install "mailroute[metrics]"'
    )
    with pytest.raises(ConfigError, match="metrics: needs the package"):
        from_parts()


def from_parts() -> Settings:
    return Settings(
        listeners=(Listener(protocol="imap", endpoint="tcp:143", security="none"),),
        backends={"east": Backend(endpoints={"imap": "tcp:10.0.0.1:143"}, security="none")},
        routes=(("everybody", FakeRouter({})),),
        metrics=Metrics(address="127.0.0.1:9317"),
    )


def test_finished_parts_may_have_metrics() -> None:
    """Python code says it as the file does."""
    metrics = from_parts().metrics
    assert metrics is not None
    assert metrics.address.port == 9317


def test_there_are_none_unless_asked_for(load: Load) -> None:
    """Without the table no metrics are served, and none are spoken of."""
    settings = load(SMALL)
    assert settings.metrics is None
    assert "etrics" not in "".join(describe(settings))


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:9317", "for whoever can reach that on this machine."),
        ("192.0.2.1:9317", "for whoever can reach that from anywhere, without authentication."),
    ],
)
def test_who_can_read_them_is_told(load: Load, address: str, told: str) -> None:
    """`mailroute check` says where the metrics are, and who may read them."""
    assert f"Metrics for Prometheus are at {address}, /metrics, {told}" in describe(
        load(with_address(address))
    )


def test_a_worker_makes_the_same_of_it(load: Load) -> None:
    """The table travels to the workers with the rest."""
    from mailroute.config import reread

    settings = load("workers = 2\n" + with_address("./metrics"))
    assert settings.source is not None
    assert reread(settings.source, MemoryReactorClock()).metrics == settings.metrics
