"""Settings from Python: every plug point takes an object of the user's own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from config.texts import SMALL
from pydantic import ValidationError
from servers.certificates import Authority
from twisted.cred.checkers import AllowAnonymousAccess, InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ServerEndpoint
from twisted.internet.ssl import platformTrust
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import globalLogPublisher
from zope.interface import implementer

from mailroute import config, dialogs
from mailroute.config import Backend, ConfigError, Listener, Secret, Settings, build
from mailroute.events import DialogTerms, LoginTerms, Lookup, Route
from mailroute.interfaces import IDialog, ILogin, IMailProtocol, IRouter
from mailroute.sources import users_file


@implementer(IRouter)
class Everybody:
    def route(self, _: Lookup) -> Route:
        return Route("east")


@implementer(IMailProtocol)
class Gopher:
    name = "gopher"
    alpn = ()
    mechanisms = ("LOGIN",)
    logins = True
    password_command = False
    starttls = True

    def check_capability(self, word: str) -> None:
        if word != "ASK":
            raise ValueError(f"{word} is no menu")

    def dialog(self, terms: DialogTerms) -> IDialog:
        raise NotImplementedError

    def login(self, terms: LoginTerms) -> ILogin:
        raise NotImplementedError


@pytest.fixture
def reactor() -> Any:
    from twisted.internet import reactor  # HostnameEndpoint wants one that resolves names

    return reactor


def tables(**changes: Any) -> dict[str, Any]:
    return {
        "listen": [{"protocol": "imap", "endpoint": "tcp:143", "security": "none"}],
        "backend": {"east": {"imap": "tcp:10.0.0.1:143", "security": "none"}},
        "route": [{"source": "default", "backend": "east"}],
        **changes,
    }


def refused(reactor: Any, **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        build(reactor, **tables(**changes))
    assert all(problem.line is None for problem in error.value.problems)
    return str(error.value).split("\n")


def test_the_same_tree_gives_the_same_settings(reactor: Any, tmp_path: Path) -> None:
    """What a file says can be said in Python with the same words, and means the same."""
    (tmp_path / "mailroute.toml").write_text(SMALL)
    loaded = config.load(tmp_path / "mailroute.toml", reactor)
    tree = tables(backend={"east": {"imap": "tcp:10.0.0.1:143"}})
    assert build(reactor, folder=tmp_path, **tree) == loaded


def test_every_plug_point_takes_an_object(reactor: Any) -> None:
    """Protocol, both endpoints, checker, trust root and router may be one's own, and stay as they are."""
    endpoint, dialled = TCP4ServerEndpoint(reactor, 0), HostnameEndpoint(reactor, "a.example", 70)
    checker, router, root = InMemoryUsernamePasswordDatabaseDontUse(), Everybody(), platformTrust()
    protocol = Gopher()
    settings = build(
        reactor,
        listen=[{"protocol": protocol, "endpoint": endpoint, "security": "none", "authenticate": checker}],
        backend={"east": {"gopher": dialled, "verify": "a.example", "ca": root, "login": "none"}},
        route=[router, {"source": "default", "backend": "east"}],
    )
    (listener,) = settings.listeners
    assert listener.protocol is protocol
    assert listener.mechanisms == ("LOGIN",)
    assert listener.server_endpoint(reactor) is endpoint
    assert listener.authenticate is checker
    backend = settings.backends["east"]
    assert backend.client_endpoint("gopher", reactor) is dialled
    assert backend.ca is not None
    assert backend.ca.root is root
    assert settings.routes[0] == ("route[1] (Everybody)", router)


def test_a_protocol_says_what_may_be_announced(reactor: Any) -> None:
    """The words of a protocol of one's own are checked by that, and its reason is the error."""
    listen = {"protocol": Gopher(), "endpoint": "tcp:70", "security": "none", "capabilities": ["ASK"]}
    backend = {"east": {"gopher": "tcp:10.0.0.1:70", "security": "none"}}
    settings = build(reactor, **tables(listen=[listen], backend=backend))
    assert settings.listeners[0].capabilities == ("ASK",)
    listen["capabilities"] = ["ASK", "TELL"]
    assert "listen[1].capabilities: TELL is no menu" in refused(reactor, listen=[listen], backend=backend)


def test_certificates_may_come_without_files(reactor: Any, tmp_path: Path) -> None:
    """The PEM itself, as bytes, will do for a certificate: a program that makes one need not write it."""
    issued = Authority(tmp_path).issue("mail.example.com")
    certificate = {"chain": issued.chain.read_bytes(), "key": issued.key.read_bytes()}
    settings = build(reactor, **tables(certificate=[certificate]))
    assert settings.certificates[0].names == ("mail.example.com",)
    assert settings.certificates[0].chain.path is None
    assert "PRIVATE" not in repr(settings)


def test_finished_parts_go_together() -> None:
    """The constructor takes finished parts, without a reactor or a file."""
    settings = Settings(
        listeners=[
            Listener(protocol="imap", endpoint="tcp:1143", security="none", authenticate="memory:a:b")
        ],
        backends={
            "east": Backend(
                endpoints={"imap": "tcp:10.0.0.1:143"},
                security="none",
                login="master",
                master_user="root",
                master_password_file=Secret(b"hunter2"),
            )
        },
        routes=[("everybody", Everybody())],
    )
    assert settings.listeners[0].protocol is dialogs.protocol("imap")
    assert "hunter2" not in repr(settings)


def test_finished_parts_are_checked_together() -> None:
    """The constructor refuses what a file with the same parts would be refused for."""
    with pytest.raises(ConfigError) as error:
        Settings(
            listeners=(Listener(protocol="imap", endpoint="tcp:1143"),),
            backends={"east": Backend(endpoints={"imap": "tcp:10.0.0.1:143"}, login="none")},
            routes=(),
        )
    assert [problem.key for problem in error.value.problems] == [
        "route",
        "listen[1].security",
        "listen[1].authenticate",
    ]


def test_a_block_may_be_a_finished_part(reactor: Any) -> None:
    """A tree may hold finished parts among tables."""
    listener = Listener(protocol="imap", endpoint="tcp:1143", security="none")
    backend = Backend(endpoints={"imap": "tcp:10.0.0.1:143"})
    settings = build(reactor, **tables(listen=(listener,), backend={"east": backend}))
    assert settings.listeners == (listener,)
    assert settings.backends == {"east": backend}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"listen": [{"protocol": Everybody(), "endpoint": "tcp:1"}]},
            "listen[1].protocol: must be a protocol's name",
        ),
        (
            {"listen": [{"protocol": "imap", "endpoint": Gopher()}]},
            "listen[1].endpoint: must be a Twisted endpoint",
        ),
        (
            {"listen": [{"protocol": "imap", "endpoint": "tcp:1", "authenticate": AllowAnonymousAccess()}]},
            "listen[1].authenticate: cannot check passwords",
        ),
        ({"backend": {"east": {"imap": Gopher()}}}, "backend.east.imap: must be a Twisted endpoint string"),
        ({"backend": {"east": Gopher()}}, "backend.east: must be a table, not a Gopher"),
        ({"route": [Gopher()]}, "route[1]: must be a table or an IRouter, not a Gopher"),
        ({"listens": []}, 'listens: unknown key; did you mean "listen"?'),
    ],
)
def test_an_object_of_the_wrong_kind_is_told(reactor: Any, changes: dict[str, Any], message: str) -> None:
    """An object that does not provide what its place needs is named by its key."""
    assert any(line.startswith(message) for line in refused(reactor, **changes)), refused(reactor, **changes)


def test_an_endpoint_object_needs_a_name_to_verify(reactor: Any) -> None:
    """Nobody knows what host an endpoint object dials: with TLS, the certificate's name must be given."""
    dialled = HostnameEndpoint(reactor, "a.example", 143)
    (error,) = refused(reactor, backend={"east": {"imap": dialled}})
    assert error.startswith("backend.east.verify: missing")


def test_a_source_that_breaks_is_told(reactor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's source that raises what it should not costs an error, and no traceback."""

    class Broken:
        name = "broken"

        def router(self, *_: object) -> IRouter:
            raise RuntimeError("no idea")

    monkeypatch.setattr("mailroute.sources.registry.getPlugins", lambda _: [Broken()])
    (error,) = refused(reactor, route=[{"source": "broken"}])
    assert error == 'route[1].source: the source "broken" failed: RuntimeError: no idea'


def test_a_part_by_itself_is_checked() -> None:
    """A single part refuses what is wrong in itself, and never repeats a value in doing so."""
    with pytest.raises(ValidationError) as error:
        Backend(endpoints={"imap": 5}, master_password_file=b"hunter2")
    assert "imap: must be a Twisted endpoint string" in str(error.value)
    assert "hunter2" not in str(error.value)


def test_no_reactor_is_needed_to_read(tmp_path: Path) -> None:
    """A reactor of a test's own will do, and nothing is scheduled or bound while reading."""
    (tmp_path / "mailroute.toml").write_text(SMALL)
    reactor = MemoryReactorClock()
    config.load(tmp_path / "mailroute.toml", reactor)
    assert not reactor.getDelayedCalls()
    assert not reactor.tcpServers


@pytest_twisted.ensureDeferred
async def test_a_table_is_watched_outside_the_reactors_thread(
    reactor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a real reactor a table is read again in a thread, and its users move while all else goes on."""
    monkeypatch.setattr(users_file, "POLL", 0.01)
    monkeypatch.setattr(users_file, "SETTLE", 0.01)
    threads = set()
    really = users_file.read

    def read(*arguments: Any, **options: Any) -> Any:
        threads.add(threading.current_thread())
        return really(*arguments, **options)

    users = tmp_path / "users.txt"
    users.write_text("alice east\n")
    settings = build(reactor, folder=tmp_path, **tables(route=[{"source": "table", "file": "users.txt"}]))
    ((_, router),) = settings.routes
    monkeypatch.setattr(users_file, "read", read)
    done: Deferred[None] = Deferred()

    def noticed(event: Any) -> None:
        if event.get("users") == 2 and not done.called:
            reactor.callLater(0, done.callback, None)

    globalLogPublisher.addObserver(noticed)
    router.startService()  # type: ignore[attr-defined]
    try:
        users.write_text("alice east\nbob east\n")
        done.addTimeout(10, reactor)
        await done
    finally:
        router.stopService()  # type: ignore[attr-defined]
        globalLogPublisher.removeObserver(noticed)
    assert router.route(Lookup("bob", "imap", None)) == Route("east")  # type: ignore[arg-type]
    assert threading.main_thread() not in threads
