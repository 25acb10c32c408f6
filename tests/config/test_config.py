"""The configuration file: what it may say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from config.texts import CONTRACT, SMALL
from twisted.internet.defer import execute
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.testing import MemoryReactorClock

from mailroute import config
from mailroute.config import Identity, Limits, Security, Settings
from mailroute.events import Credentials, Lookup, Method, Route
from mailroute.names import UserNames
from mailroute.sources import users_file

Load = Callable[[str], Settings]


def test_the_contract_is_read(load: Load, folder: Path) -> None:
    """Every key of the contract means what it says there."""
    settings = load(CONTRACT)
    (certificate,) = settings.certificates
    assert certificate.chain.path == folder / "cert.pem"
    assert certificate.key.path == folder / "key.pem"
    assert certificate.names == ("mail.example.com", "192.0.2.1")
    assert len(certificate.chain.certificates) == 2
    starttls, tls = settings.listeners
    assert (starttls.protocol.name, starttls.endpoint) == ("imap", "tcp:143")
    assert (starttls.security, tls.security) == (Security.STARTTLS, Security.TLS)
    assert not starttls.cleartext_login
    east, west = settings.backends["east"], settings.backends["west"]
    assert dict(east.endpoints) == {"imap": "tcp:10.0.0.1:143"}
    assert east.verify_name("imap") == "east.example.com"
    assert west.verify_name("imap") == "west.example.com"
    assert (east.login, east.identity, east.master) == (Method.REPLAY, Identity.NATIVE, None)
    assert [label for label, _ in settings.routes] == [
        "route[1] (table)",
        "route[2] (pattern)",
        "route[3] (default)",
    ]
    assert settings.limits == Limits()


def test_what_is_not_given_has_the_documented_default(load: Load) -> None:
    """A short file gets the defaults that the fields' documentation names."""
    settings = load(
        SMALL.replace('security = "none"', "") + '[[certificate]]\nchain="cert.pem"\nkey="key.pem"'
    )
    (listener,) = settings.listeners
    backend = settings.backends["east"]
    assert listener.security is Security.STARTTLS
    assert listener.mechanisms == ("PLAIN", "LOGIN")
    assert listener.capabilities == ()
    assert listener.authenticate is None
    assert backend.security is Security.STARTTLS
    assert (backend.ca, backend.verify) == (None, "")
    limits = settings.limits
    assert (limits.login_timeout, limits.backend_timeout, limits.idle_timeout) == (60, 30, 1800)
    assert (limits.stall_timeout, limits.session_lifetime, limits.failure_delay) == (300, 0, 2)
    assert (limits.failed_logins, limits.bad_commands) == (10, 5)
    assert (limits.connections, limits.connections_per_address) == (10000, 200)
    assert settings.user_names == UserNames()


def test_every_field_is_documented() -> None:
    """Each key has a description for the reference, and says what it is if it is not given."""
    blocks = (config.Certificate, config.Listener, config.Backend, config.Limits, config.Settings)
    for block in blocks:
        for name, field in block.model_fields.items():
            assert field.description, name
            if block is not config.Settings:
                assert "unless given" in field.description or "required" in field.description, name


def test_users_are_routed_by_the_files_routes(load: Load) -> None:
    """The routes of the file answer, and names in tables are brought into the form that the file asks for."""
    settings = load(CONTRACT + '[user_names]\nlowercase_local_part = true\ndefault_domain = "Example.COM"\n')
    assert settings.user_names.normalise("Alice") == "alice@example.com"
    routers = [router for _, router in settings.routes]
    client = None
    assert routers[0].route(Lookup("alice@example.com", "imap", client)) == Route("east")  # type: ignore[arg-type]
    assert routers[1].route(Lookup("bob@example.org", "imap", client)) == Route("west", "bob")  # type: ignore[arg-type]


def test_passwords_can_be_checked_here(load: Load, folder: Path) -> None:
    """A strcred string makes a checker; its file is looked for beside the configuration."""
    (listener,) = load(SMALL.replace("[backend", 'authenticate = "file:passwd"\n[backend')).listeners
    assert listener.authenticate.filename == str(folder / "passwd")  # type: ignore[union-attr]


def test_a_master_login_has_its_password_from_a_file(load: Load) -> None:
    """The first line of the file is the password, and neither repr nor str of the settings shows it."""
    text = SMALL.replace("[backend", 'authenticate = "file:passwd"\n[backend').replace(
        "[[route]]", 'login = "master"\nmaster_user = "root"\nmaster_password_file = "master.txt"\n[[route]]'
    )
    settings = load(text)
    backend = settings.backends["east"]
    assert backend.master == Credentials("PLAIN", b"root", b"hunter2")
    assert "hunter2" not in f"{settings!r} {settings} {backend.master_password_file!r} {backend.master!r}"


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"a b \n", b"a b "),
        (b"hunter2", b"hunter2"),
        (b"hunter2\r\n", b"hunter2"),
        (b" caf\xe9\nsecond line\n", b" caf\xe9"),
    ],
)
def test_a_password_is_the_first_line_as_it_stands(tmp_path: Path, content: bytes, password: bytes) -> None:
    """Only the line's end is cut off: spaces and any encoding belong to the password."""
    (tmp_path / "master.txt").write_bytes(content)
    backend = config.Backend(master_password_file=tmp_path / "master.txt")
    assert backend.master_password_file is not None
    assert backend.master_password_file.value == password


def test_only_a_master_login_uses_a_master() -> None:
    """A backend that does not log in as a master hands no master's password to anybody."""
    backend = config.Backend(master_user="root", master_password_file=config.Secret(b"hunter2"))
    assert backend.master is None


def test_a_daemon_may_change_its_folder(
    load: Load, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths mean files beside the configuration, also for what is read again much later."""
    load(CONTRACT)
    monkeypatch.chdir(folder)
    settings = config.load(Path("mailroute.toml"), clock := MemoryReactorClock())
    router = settings.routes[0][1]
    monkeypatch.setattr(clock, "getThreadPool", lambda: None, raising=False)
    monkeypatch.setattr(
        "mailroute.config.reading.deferToThreadPool", lambda _, __, function: execute(function)
    )
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    router.startService()  # type: ignore[attr-defined]
    (folder / "users.txt").write_text("alice@example.com west\n")
    clock.pump([users_file.POLL, users_file.SETTLE])
    assert router.route(Lookup("alice@example.com", "imap", None)) == Route("west")  # type: ignore[arg-type]
    router.stopService()  # type: ignore[attr-defined]


def test_a_private_key_is_not_shown(load: Load) -> None:
    """Neither repr nor str of the settings has the key in it."""
    settings = load(CONTRACT)
    assert "PrivateKey" not in f"{settings!r} {settings} {settings.certificates[0].key!r}"


def test_settings_do_not_change(load: Load) -> None:
    """Whoever holds settings cannot change them, mappings included."""
    settings = load(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        settings.limits.connections = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.backends["north"] = settings.backends["east"]  # type: ignore[index]


def test_authorities_are_a_trust_root(load: Load) -> None:
    """What ``ca`` names may be given to Twisted as the trust root."""
    optionsForClientTLS("east.example.com", trustRoot=load(CONTRACT).backends["east"].ca)


def test_more_can_be_asked_of_a_listener(load: Load) -> None:
    """Mechanisms are upper-cased and stay in order; capabilities are announced as they are written."""
    (listener,) = load(
        SMALL.replace(
            "[backend", 'mechanisms = ["login", "Plain"]\ncapabilities = ["X-One", "QUOTA"]\n[backend'
        )
    ).listeners
    assert listener.mechanisms == ("LOGIN", "PLAIN")
    assert listener.capabilities == ("X-One", "QUOTA")


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp:143:interface=\\\\:\\\\:1",
        "tcp:port=143",
        "unix:/run/mailroute.sock:mode=660",
        "systemd:domain=INET:index=0",
        "systemd:domain=INET6:name=imap",
        "systemd:INET:0",
    ],
)
def test_endpoints_may_be_any_of_twisteds(load: Load, endpoint: str) -> None:
    """Every Twisted endpoint string will do; systemd's sockets need not be there when the file is checked."""
    assert load(SMALL.replace("tcp:143", endpoint, 1)).listeners


def test_listeners_may_let_the_system_choose_their_ports(load: Load) -> None:
    """Port 0 is another port each time, so it may be given twice."""
    block = '[[listen]]\nprotocol = "imap"\nendpoint = "tcp:0:interface=127.0.0.1"\nsecurity = "none"\n'
    assert len(load(block * 2 + SMALL).listeners) == 3


def test_a_mark_before_the_text_is_no_error(load: Load) -> None:
    """Some editors put a byte order mark before UTF-8."""
    assert load("\ufeff" + SMALL)
