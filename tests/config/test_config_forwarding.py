"""The configuration file: listeners that name their backend, and protocols that know no user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from config.texts import SMALL

from mailroute.config import Backend, ConfigError, Listener, Security, Settings, describe

Errors = Callable[[str], list[str]]
Load = Callable[[str], Settings]

FORWARDER = """\
[[listen]]
protocol = "tcp"
endpoint = "tcp:8080"
backend = "east"

[backend.east]
tcp = "tcp:127.0.0.1:80"
"""

TLS = FORWARDER.replace("\n[backend", 'security = "tls"\n[backend')
CERTIFICATE = '[[certificate]]\nchain = "cert.pem"\nkey = "key.pem"\n'


def test_a_forwarder_needs_no_more_than_two_ends(load: Load) -> None:
    """A listener and its backend are a whole configuration: no routes, and nothing about logins or TLS."""
    settings = load(FORWARDER)
    (listener,) = settings.listeners
    assert (listener.backend, listener.security, listener.mechanisms) == ("east", Security.NONE, ())
    assert settings.backends["east"].security is Security.NONE
    assert settings.routes == ()


def test_tls_is_there_for_those_who_ask(load: Load) -> None:
    """On either side TLS from the first byte may be had, and what goes with it."""
    settings = load(CERTIFICATE + TLS + 'security = "tls"\nverify = "east.example.com"\nca = "ca.pem"\n')
    assert settings.listeners[0].security is Security.TLS
    assert settings.backends["east"].verify_name("tcp") == "east.example.com"


@pytest.mark.parametrize("identity", ["native", "none", "proxy-v1", "proxy-v2"])
def test_every_identity_has_a_meaning(load: Load, identity: str) -> None:
    """The protocol has no words of its own for the client's address, so "native" says nothing."""
    (_, backend, *_) = describe(load(FORWARDER + f'identity = "{identity}"\n'))
    told = f"in a PROXY {identity[-2:]} header" if "proxy" in identity else "does not tell"
    assert told in backend


def test_any_listener_may_name_its_backend(load: Load) -> None:
    """A listener that learns who is calling may send everybody to one backend all the same."""
    settings = load(SMALL.partition("[[route]]")[0].replace("[backend", 'backend = "east"\n[backend'))
    assert settings.listeners[0].backend == "east"
    (said, *_) = describe(settings)
    assert said.endswith("; everybody goes to backend east.")


WRONG = [
    (
        FORWARDER.replace('backend = "east"\n', ""),
        ["1: listen[1].backend: missing: tcp does not say who is calling; name its backend, as in"],
    ),
    (
        FORWARDER.replace('"east"', '"eats"'),
        ['4: listen[1].backend: there is no [backend.eats]; did you mean "e'],
    ),
    (FORWARDER.replace('"east"', "1"), ["4: listen[1].backend: must be the name of a backend, not 1"]),
    (FORWARDER.replace('"east"', '""'), ['4: listen[1].backend: must be the name of a backend, not ""']),
    (
        FORWARDER.replace("tcp = ", "imap = "),
        ['4: listen[1].backend: does not serve tcp: add tcp = "tcp:HOST:PORT" to [backend.east]'],
    ),
    (
        SMALL.replace("[backend", 'backend = "west"\n[backend.west]\ntcp = "tcp:10.0.0.1:1"\n[backend'),
        ['6: listen[1].backend: does not serve imap: add imap = "tcp:HOST:PORT" to [backend.west]'],
    ),
    (
        FORWARDER.replace("\n[backend", 'security = "starttls"\n[backend'),
        ['5: listen[1].security: must be "tls" or "none": tcp has no STARTTLS'],
    ),
    (
        FORWARDER + 'security = "starttls"\n',
        ['8: backend.east.security: must be "tls" or "none": tcp has no ST'],
    ),
    (
        FORWARDER + 'imap = "tcp:127.0.0.1:143"\n',
        [
            '6: backend.east.security: must be "tls" or "none": tcp has no STARTTLS, '
            "or give it a [backend.NAME] of its own"
        ],
    ),
    (
        FORWARDER + 'login = "master"\nmaster_user = "root"\nmaster_password_file = "master.txt"\n',
        ["8: backend.east.login: means nothing for tcp, which has no logins: remove it"],
    ),
    (FORWARDER.replace("tcp:8080", "tcp:http"), ["3: listen[1].endpoint: "]),
    (TLS, ['5: listen[1].security: "tls" needs a certificate']),
    *(
        (
            FORWARDER.replace("\n[backend", f"{line}\n[backend"),
            [f"5: listen[1].{line.split()[0]}: means nothing for tcp, which has no logins: remove it"],
        )
        for line in (
            'mechanisms = ["PLAIN"]',
            "mechanisms = []",
            'capabilities = ["X"]',
            'authenticate = "file:passwd"',
            "cleartext_login = true",
            "cleartext_login = false",
        )
    ),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[said[0][:60] for _, said in WRONG])
def test_what_a_protocol_lacks_is_refused(errors: Errors, text: str, said: list[str]) -> None:
    """What cannot be is told with line, key, reason and remedy, and nothing follows from it."""
    found = errors(text)
    assert len(found) == len(said), found
    for line, beginning in zip(found, said, strict=True):
        assert line.startswith(f"mailroute.toml:{beginning}")


def test_routes_are_needed_by_a_single_listener(errors: Errors) -> None:
    """Routes may be left out only if every listener names its backend."""
    found = errors(FORWARDER + '[[listen]]\nprotocol = "imap"\nendpoint = "tcp:143"\nsecurity = "none"\n')
    assert any("route: nobody would be routed" in line for line in found)


def test_a_backend_for_both_may_log_in_as_a_master(load: Load) -> None:
    """What only one protocol of a backend has is no error for the other."""
    text = FORWARDER + (
        'imap = "tcp:127.0.0.1:143"\nsecurity = "none"\nlogin = "master"\n'
        'master_user = "root"\nmaster_password_file = "master.txt"\n'
    )
    assert load(text).backends["east"].master is not None


def test_only_the_listeners_own_backend_has_to_check_passwords(load: Load, errors: Errors) -> None:
    """A backend that takes anybody is safe from a listener that leads to another one, and from no other."""
    text = SMALL.replace("[[route]]", '[backend.open]\nimap = "tcp:10.0.0.2:143"\nlogin = "none"\n[[route]]')
    assert any("anybody would get in unchecked" in line for line in errors(text))
    assert load(text.replace("[backend.east", 'backend = "east"\n[backend.east'))


def test_finished_parts_are_checked_as_well() -> None:
    """Settings made in Python need a backend, or a route, for each listener."""
    backends = {"east": Backend(endpoints={"tcp": "tcp:127.0.0.1:80"})}
    listener = Listener(protocol="tcp", endpoint="tcp:8080", backend="east")
    assert Settings(listeners=(listener,), backends=backends).routes == ()
    with pytest.raises(ConfigError, match=r"listen\[1\]\.backend: missing"):
        Settings(listeners=(Listener(protocol="tcp", endpoint="tcp:8080"),), backends=backends)
    with pytest.raises(ConfigError, match="route: nobody would be routed"):
        Settings(
            listeners=(Listener(protocol="imap", endpoint="tcp:143", security="none"),),
            backends={"east": Backend(endpoints={"imap": "tcp:127.0.0.1:143"})},
        )


def test_a_forwarder_in_sentences(load: Load, folder: Path) -> None:
    """What is told of a forwarder is about connections, and not about logins that there are none of."""
    assert describe(load(FORWARDER)) == [
        "Listens for tcp on tcp:8080, in the clear: joins every client to backend east, whoever it is.",
        "Backend east: tcp at tcp:127.0.0.1:80; in the clear; does not tell the client's address.",
        "A client's TLS and the backend's connection have 60 s together.",
        "A backend has 30 s to take a connection.",
        "A session ends after 1800 s without a byte.",
        "A session ends when one side takes nothing for 300 s.",
        "A session may last for ever.",
        "At most 10000 connections at once.",
        "At most 200 connections at once from one address.",
    ]
    with_tls = describe(load(FORWARDER.replace("tcp:127.0.0.1:80", "tls:east.example.com:443")))
    assert with_tls[1].startswith(
        "Backend east: tcp at tls:east.example.com:443; with the endpoint's own TLS; "
    )
    endpoint = f"ssl:8443:privateKey={folder}/key.pem:certKey={folder}/cert.pem"
    (first, *_) = describe(load(FORWARDER.replace("tcp:8080", endpoint)))
    assert first.startswith(f"Listens for tcp on {endpoint}, with the endpoint's own TLS: joins every client")
    (first, *_) = describe(load(CERTIFICATE + TLS))
    assert first == (
        "Listens for tcp on tcp:8080, with TLS from the first byte: joins every client to backend east, "
        "whoever it is."
    )
