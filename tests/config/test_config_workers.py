"""How many processes carry the mail: what may be asked for, and what they can be given."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from config.texts import CONTRACT, SMALL
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

from mailroute import config
from mailroute.config import Backend, ConfigError, Listener, Settings, build, describe, reread
from mailroute.config.source import plain
from mailroute.config.values import MAX_WORKERS
from mailroute.events import Lookup, Route
from mailroute.interfaces import IRouter

Errors = Callable[[str], list[str]]
Load = Callable[[str], Settings]

CHOICE = f'must be a number from 1 to {MAX_WORKERS}, or "auto"'


@pytest.mark.parametrize(("text", "workers"), [("", 1), ("workers = 1", 1), ("workers = 4", 4)])
def test_a_number_is_that_many(load: Load, text: str, workers: int) -> None:
    """Without the key there is one worker."""
    settings = load(f"{text}\n{SMALL}")
    assert settings.workers == settings.worker_count == workers
    assert (settings.source is None) is (workers == 1)


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (3, 3), (200, MAX_WORKERS)])
def test_auto_is_one_for_each_core(
    load: Load, monkeypatch: pytest.MonkeyPatch, cores: int, workers: int
) -> None:
    """Cores count that this process may use, whatever the machine has, up to the bound."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert load(f'workers = "auto"\n{SMALL}').worker_count == workers


@pytest.mark.parametrize("value", ["0", "-1", str(MAX_WORKERS + 1), "true", "2.0", '"four"', '"2"', "[2]"])
def test_anything_else_is_refused(errors: Errors, value: str) -> None:
    """What is no number of workers is told with what may be said."""
    (error,) = errors(f"workers = {value}\n{SMALL}")
    shown = "a list" if value == "[2]" else value
    assert error == f"mailroute.toml:1: workers: {CHOICE}, not {shown}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (SMALL.replace("[backend", "workers = 2\n[backend"), "6: listen[1].workers"),
        (SMALL + "[limits]\nworkers = 2\n", "13: limits.workers"),
    ],
)
def test_the_wrong_place_is_told(errors: Errors, text: str, line: str) -> None:
    """A key behind a table's header belongs to that table, which people forget."""
    assert errors(text) == [
        f"mailroute.toml:{line}: must stand above the first table: write it at the top of the file"
    ]


@pytest.mark.parametrize("endpoint", ["ssl:993:privateKey=key.pem:certKey=cert.pem"])
def test_an_endpoint_that_cannot_be_shared_is_refused(errors: Errors, endpoint: str) -> None:
    """An endpoint that does more than listen would do it with the workers' privileges."""
    text = SMALL.replace("tcp:143", endpoint)
    (error,) = errors(f"workers = 2\n{text}")
    assert error == (
        'mailroute.toml:4: listen[1].endpoint: a "ssl" endpoint cannot be handed to workers: '
        "use tcp, tcp6, unix or systemd, or workers = 1"
    )


def test_all_that_can_be_shared_is_taken(load: Load) -> None:
    """TCP, both sorts, UNIX sockets and those of systemd can be shared."""
    for endpoint in ("tcp:143", "tcp6:143", "unix:/run/imap", "systemd:domain=INET6:index=0"):
        assert load("workers = 2\n" + SMALL.replace("tcp:143", endpoint)).worker_count == 2


def test_one_needs_linux_for_more(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system lacks what workers need, that is told when the file is read."""
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(ConfigError, match="workers: must be 1 here: more than one needs Linux"):
        load(f"workers = 2\n{SMALL}")
    load(SMALL)


def test_whoever_reads_the_file_may_overrule_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line says how many, and the file is checked for that number."""
    (folder / "mailroute.toml").write_text("workers = 3\n" + SMALL)
    reactor = MemoryReactorClock()
    assert config.load(folder / "mailroute.toml", reactor, 2).workers == 2
    assert config.load(folder / "mailroute.toml", reactor, 1).source is None
    monkeypatch.chdir(folder)
    tls = "ssl:993:privateKey=key.pem:certKey=cert.pem"
    (folder / "mailroute.toml").write_text(SMALL.replace("tcp:143", tls))
    config.load(folder / "mailroute.toml", reactor)
    with pytest.raises(ConfigError, match="cannot be handed to workers"):
        config.load(folder / "mailroute.toml", reactor, 2)


def test_it_is_told(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mailroute check` says how many there will be, and what that means; one goes without saying."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3})
    together = "each is a process of its own, and the limits on connections hold for all together."
    assert f"4 workers carry the mail; {together}" in describe(load(f"workers = 4\n{SMALL}"))
    assert f"As many workers carry the mail as there are cores for them: 2 now; {together}" in describe(
        load(f'workers = "auto"\n{SMALL}')
    )
    assert not any("worker" in sentence for sentence in describe(load(SMALL)))


# --- what workers are given -----------------------------------------------------


def test_settings_can_be_made_again_without_the_files(load: Load, folder: Path) -> None:
    """What was read from is enough to make the same settings, when the files are gone or others."""
    text = "workers = 2\n" + CONTRACT.replace(
        'login = "replay"', 'login = "master"\nmaster_user = "m"'
    ).replace('identity = "native"', 'identity = "native"\nmaster_password_file = "master.txt"').replace(
        'security = "starttls"\ncleartext', 'authenticate = "file:passwd"\ncleartext'
    ).replace(
        'security = "tls"\n\n[backend.east]', 'security = "tls"\nauthenticate = "file:passwd"\n[backend.east]'
    )
    first = load(text)
    source = pickle.loads(pickle.dumps(first.source))  # noqa: S301
    for file in folder.iterdir():
        file.write_text("something else")
    again = reread(source, None)
    assert again.workers == 1
    assert again.source is None
    assert again.backends["east"].master == first.backends["east"].master
    assert [listener.name for listener in again.listeners] == [listener.name for listener in first.listeners]
    assert again.limits == first.limits
    (certificate,), (original,) = again.certificates, first.certificates
    assert certificate.chain == original.chain
    assert certificate.key.private.private_numbers() == original.key.private.private_numbers()
    assert again.routes[0][1].route(Lookup("alice@example.com", "imap", None)) == Route("east")


def test_the_copies_are_not_shown(load: Load) -> None:
    """No repr of settings with workers shows what their files hold."""
    settings = load("workers = 2\n" + CONTRACT)
    assert settings.source is not None
    assert settings.source.files
    assert "PRIVATE" not in repr(settings) + repr(settings.source)
    assert "wonderland" not in repr(
        load(
            "workers = 2\n" + SMALL.replace("[backend", 'authenticate = "memory:alice:wonderland"\n[backend')
        )
    )


def test_one_process_keeps_no_copies(load: Load) -> None:
    """Without workers nothing is kept of the files but what the settings are made of."""
    assert load(CONTRACT).source is None


@implementer(IRouter)
class Mine:
    def route(self, _: Lookup) -> Route:
        return Route("east")


def tree(**changes: Any) -> dict[str, Any]:
    return {
        "workers": 2,
        "listen": [{"protocol": "imap", "endpoint": "tcp:143", "security": "none"}],
        "backend": {"east": {"imap": "tcp:10.0.0.1:143", "security": "none"}},
        "route": [{"source": "default", "backend": "east"}],
        **changes,
    }


def test_a_tree_of_plain_values_can_be_handed_over() -> None:
    """Settings built in Python have workers, too, as long as everything in them can be sent."""
    settings = build(MemoryReactorClock(), **tree())
    assert settings.source is not None
    again = reread(pickle.loads(pickle.dumps(settings.source)), None)  # noqa: S301
    assert again.backends == settings.backends


@pytest.mark.parametrize(
    ("changes", "key", "what"),
    [
        ({"route": [Mine()]}, "route[1]", "a Mine"),
        (
            {"listen": [{"protocol": "imap", "endpoint": TCP4ServerEndpoint(None, 0), "security": "none"}]},
            "listen[1].endpoint",
            "a TCP4ServerEndpoint",
        ),
        (
            {"backend": {"east": Backend(endpoints={"imap": "tcp:10.0.0.1:143"}, security="none")}},
            "backend.east",
            "a Backend",
        ),
    ],
)
def test_an_object_of_ones_own_cannot(changes: dict[str, Any], key: str, what: str) -> None:
    """An object of the program's stays in the program: the message names it, and what to do instead."""
    with pytest.raises(ConfigError) as error:
        build(MemoryReactorClock(), **tree(**changes))
    assert str(error.value) == (
        f"{key}: {what} of this program cannot be handed to workers: let them load a plugin for it, "
        "or use workers = 1"
    )
    build(MemoryReactorClock(), **tree(**changes, workers=1))


def test_finished_parts_cannot() -> None:
    """Settings made of finished parts have one process, and say why."""
    parts: dict[str, Any] = {
        "listeners": (Listener(protocol="imap", endpoint="tcp:1143", security="none"),),
        "backends": {"east": Backend(endpoints={"imap": "tcp:10.0.0.1:143"}, security="none")},
        "routes": (("everybody", Mine()),),
    }
    assert Settings(**parts).worker_count == 1
    with pytest.raises(ConfigError, match="workers: needs settings that were read from a file, or built"):
        Settings(**parts, workers=2)


def test_a_date_can_be_sent() -> None:
    """TOML knows dates; a plugin's source may want one."""
    faults: list[Any] = []
    tree = {"a": [date(2026, 11, 21), Path("x"), None, b"x"], "b": (1, True)}
    assert plain(tree, lambda *fault: faults.append(fault)) == {**tree, "b": [1, True]}
    assert not faults
