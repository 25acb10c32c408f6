"""What a configuration will do, in plain sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from config.texts import CONTRACT, SMALL
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

from mailroute.config import Settings, build, describe
from mailroute.events import Lookup, Route
from mailroute.interfaces import IRouter

Load = Callable[[str], Settings]


def test_the_contract_in_sentences(load: Load, folder: Path) -> None:
    """Each listener, certificate, backend, route and limit is told, in the file's order."""
    told = [sentence.replace(f"{folder}/", "") for sentence in describe(load(CONTRACT))]
    assert told[:2] == [
        "Listens for imap on tcp:143: takes logins once STARTTLS is done; the backend checks passwords; "
        "offers PLAIN, LOGIN.",
        "Listens for imap on tcp:993:interface=127.0.0.1: speaks TLS from the first byte; "
        "the backend checks passwords; offers PLAIN, LOGIN.",
    ]
    assert told[2].startswith("The certificate in cert.pem is for mail.example.com, 192.0.2.1, good until 20")
    assert told[3:] == [
        "Backend east: imap at tcp:10.0.0.1:143; STARTTLS, with a certificate for east.example.com from the "
        "authorities in ca.pem; logs in with what the client sent; tells the client's address in the "
        "protocol's own words.",
        "Backend west: imap at tcp:west.example.com:993; TLS from the first byte, with a certificate for "
        "west.example.com from the system's authorities; logs in with what the client sent; tells the "
        "client's address in the protocol's own words.",
        "Route 1: users are looked up in users.txt, which has 1 now.",
        r"Route 2: users who match (?P<user>.+)@example\.org live at west, there named \g<user>.",
        "Route 3: everybody lives at east.",
        "A user whom no route knows is turned away as if the password were wrong.",
        "A client has 60 s to log in.",
        "A backend has 30 s to let a user in.",
        "A session ends after 1800 s without a byte.",
        "A session ends when one side takes nothing for 300 s.",
        "A session may last for ever.",
        "A wrong name or password is answered after 2 s at the earliest.",
        "10 failed logins end a connection.",
        "5 bad commands end a connection.",
        "At most 10000 connections at once.",
        "At most 200 connections at once from one address.",
    ]


def test_no_secret_is_told(load: Load, folder: Path) -> None:
    """Checkers and master users are named, their passwords are not."""
    text = SMALL.replace("[backend", 'authenticate = "memory:alice:wonderland"\n[backend').replace(
        "[[route]]",
        'login = "master"\nmaster_user = "root"\nmaster_password_file = "master.txt"\n'
        'security = "none"\nidentity = "proxy-v2"\n[[route]]',
    )
    told = "\n".join(describe(load(text)))
    assert "InMemoryUsernamePasswordDatabaseDontUse checks passwords" in told
    assert (
        "in the clear; logs in as root for the user; tells the client's address in a PROXY v2 header" in told
    )
    assert "wonderland" not in told
    assert "hunter2" not in told
    assert f"{folder}/passwd checks" in "\n".join(
        describe(load(text.replace("memory:alice:wonderland", "file:passwd")))
    )


def test_what_is_switched_off_is_told(load: Load) -> None:
    """A limit of 0 is told as no limit, not as nothing."""
    names = ["login_timeout", "failure_delay", "failed_logins", "connections"]
    told = describe(load(SMALL + "[limits]\n" + "\n".join(f"{name} = 0" for name in names)))
    assert "A client may take any time to log in." in told
    assert any("guessing is not slowed down" in sentence for sentence in told)
    assert "Any number of failed logins is answered." in told
    assert "Any number of connections at once." in told


def test_user_names_are_told(load: Load) -> None:
    """Options that change who is who are among what is told."""
    told = describe(
        load(SMALL + '[user_names]\ndefault_domain = "example.org"\nlowercase_local_part = true\n')
    )
    assert "A user name without an @ stands for the same name @example.org." in told
    assert any(sentence.startswith("User names are compared in lower case") for sentence in told)


def test_objects_are_told_by_their_kind() -> None:
    """A router of one's own is told by its class, unless it says more of itself."""

    @implementer(IRouter)
    class Mine:
        def route(self, _: Lookup) -> Route:
            return Route("east")

    settings = build(
        MemoryReactorClock(),
        listen=[{"protocol": "imap", "endpoint": "tcp:143", "security": "none"}],
        backend={"east": {"imap": "tcp:10.0.0.1:143"}},
        route=[Mine()],
    )
    assert "Route 1: asks Mine." in describe(settings)
