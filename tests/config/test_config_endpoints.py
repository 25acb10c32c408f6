"""Endpoint strings are taken apart as Twisted does it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock

from mailroute.config import endpoints
from mailroute.demo.certificate import self_signed

# Twisted's quoting leaves the equals sign alone, so that no positional part may hold one.
WORDS = st.text(alphabet="ab1:\\.é ")
VALUES = st.text(alphabet="ab1:=\\.é ")
NAMES = st.sampled_from(["host", "port", "interface"])


@given(st.lists(WORDS), st.dictionaries(NAMES, VALUES))
def test_quoted_parts_come_out_as_they_went_in(positional: list[str], named: dict[str, str]) -> None:
    """Whatever Twisted's own quoting protects is not taken for punctuation."""
    text = ":".join(
        ["tcp", *(quoteStringArgument(part) for part in positional)]
        + [f"{name}={quoteStringArgument(part)}" for name, part in named.items()]
    )
    assert endpoints.parts(text) == (["tcp", *positional], named)


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("tcp:mail.example.com:143", "mail.example.com"),
        ("tcp:host=mail.example.com:port=143", "mail.example.com"),
        ("tcp:143:host=mail.example.com", "mail.example.com"),
        (r"tcp:\:\:1:143", "::1"),
        (r"tcp:host=2001\:db8\:\:1:port=143:timeout=5", "2001:db8::1"),
        ("tls:mail.example.com:993", "mail.example.com"),
        ("unix:/run/imap", ""),
        ("unix:path=/run/imap:host=x", ""),
        (object(), ""),
    ],
)
def test_the_host_that_is_dialled(endpoint: object, host: str) -> None:
    """The certificate of a backend is held to the host that its endpoint string names."""
    assert endpoints.host(endpoint) == host


@pytest.mark.parametrize(
    ("text", "positional", "named"),
    [
        ("", [""], {}),
        ("a::c", ["a", "", "c"], {}),
        ("tcp:host=a:1", ["tcp", "1"], {"host": "a"}),
        ("tcp:a=b=c", ["tcp"], {"a": "b=c"}),
        (r"tcp:x\:y=1:2", ["tcp", "2"], {"x:y": "1"}),
    ],
)
def test_odd_strings_are_split_as_twisted_does(
    text: str, positional: list[str], named: dict[str, str]
) -> None:
    """Empty parts, second equals signs and quoted names mean what they mean to Twisted."""
    assert endpoints.parts(text) == (positional, named)


@pytest.mark.parametrize(
    ("endpoint", "backlog"),
    [
        ("tcp:143", endpoints.BACKLOG),
        ("tcp:port=143:interface=127.0.0.1", endpoints.BACKLOG),
        (r"tcp6:143:interface=\:\:1", endpoints.BACKLOG),
        ("unix:/run/imap:mode=600", endpoints.BACKLOG),
        ("tcp:143:backlog=7", 7),
        ("tcp:143:127.0.0.1:7", 7),
        ("tcp6:143:7", 7),
        ("unix:/run/imap:600:7", 7),
    ],
)
def test_a_listener_may_be_called_by_a_crowd(endpoint: str, backlog: int) -> None:
    """The kernel keeps many connections until they are accepted, unless the string says how many."""
    reactor = MemoryReactorClock()
    endpoints.server_endpoint(endpoint, reactor).listen(Factory())
    (listening,) = reactor.tcpServers + reactor.unixServers
    assert listening[2] == backlog


@pytest.mark.parametrize(
    ("endpoint", "host", "port", "text"),
    [
        ("tcp:10.0.0.1:143", "10.0.0.2", None, "tcp:host=10.0.0.2:port=143"),
        ("tcp:10.0.0.1:143", None, 1143, "tcp:host=10.0.0.1:port=1143"),
        ("tcp:10.0.0.1:143:timeout=5", "2001:db8::1", 1143, r"tcp:host=2001\:db8\:\:1:port=1143:timeout=5"),
        ("tcp:port=143:host=a", "b", None, "tcp:port=143:host=b"),
    ],
)
def test_an_endpoint_with_another_host_or_port(
    endpoint: str, host: str | None, port: int | None, text: str
) -> None:
    """Only what is otherwise is replaced, and nothing in a host can add to the string."""
    assert endpoints.moved(endpoint, host, port) == text
    assert endpoints.literal(endpoints.moved("tcp:h:1", "10.0.0.9", 9)) is not None


@pytest.mark.parametrize("endpoint", ["unix:/run/imap", "tls:a:993", object()])
def test_an_endpoint_without_host_cannot_be_moved(endpoint: object) -> None:
    """What dials no host and port has none to replace."""
    with pytest.raises(ValueError, match='needs a "tcp:" endpoint'):
        endpoints.moved(endpoint, "a", None)


# --- strings that are no endpoints ------------------------------------------

COLON = "a colon that is part of an IPv6 address needs a backslash in front"
TYPES = "known: ssl, systemd, tcp, tcp6, tls, unix"

NOT_LISTENED_ON = [
    ("", "it is empty", "tcp:143"),
    ("8080", f'there is no type "8080"; {TYPES}', "tcp:8080"),
    ("*:8080", f'there is no type "*"; {TYPES}', "tcp:8080"),
    ("127.0.0.1:8080", f'there is no type "127.0.0.1"; {TYPES}', "tcp:8080:interface=127.0.0.1"),
    ("/run/imap", f'there is no type "/run/imap"; {TYPES}', "unix:/run/imap"),
    ("http:8080", f'there is no type "http"; {TYPES}', "tcp:143"),
    ("tcp", "the port is missing", "tcp:143"),
    ("tcp:", "the port is missing", "tcp:143"),
    ("tcp:http", 'the port must be a number, not "http"', "tcp:143"),
    ("tcp:127.0.0.1:80", "the port comes first, and then the interface", "tcp:80:interface=127.0.0.1"),
    ("tcp:80:interface=::1", COLON, r"tcp:80:interface=\:\:1"),
    ("tcp:[::1]:80", COLON, r"tcp:80:interface=\:\:1"),
    ("tcp6:::1:80", COLON, r"tcp6:80:interface=\:\:1"),
    ("tcp:80:iface=a", 'a tcp: endpoint has no "iface"; did you mean "interface"?', "tcp:143"),
    ("tcp:80:backlog=x", 'the backlog must be a number, not "x"', "tcp:143"),
    ("tcp:80:127.0.0.1:5:6", '"6" is one part too many', "tcp:143"),
    ("unix:", "the address is missing", "unix:/run/mailroute/imap:mode=660"),
    (
        "unix:/a:mode=rw",
        'the mode must be an octal number such as 660, not "rw"',
        "unix:/run/mailroute/imap:mode=660",
    ),
]

NOT_DIALLED = [
    ("", "it is empty", "tcp:10.0.0.1:143"),
    ("localhost:80", 'there is no type "localhost"; known: ssl, tcp, tls, unix', "tcp:localhost:80"),
    ("http://localhost:80/", 'there is no type "http"; known: ssl, tcp, tls, unix', "tcp:localhost:80"),
    ("[::1]:80", 'there is no type "["; known: ssl, tcp, tls, unix', r"tcp:host=\:\:1:port=80"),
    ("/run/imap", 'there is no type "/run/imap"; known: ssl, tcp, tls, unix', "unix:/run/imap"),
    ("tcp://localhost:80", '"//localhost" is no host', "tcp:localhost:80"),
    ("tcp:a b:80", '"a b" is no host', "tcp:10.0.0.1:143"),
    ("tcp:localhost", "the port is missing", "tcp:10.0.0.1:143"),
    ("tcp:port=80", "the host is missing", "tcp:10.0.0.1:143"),
    ("tcp:localhost:http", 'the port must be a number, not "http"', "tcp:10.0.0.1:143"),
    ("tcp:a:80:timeout=1m", 'the timeout must be a number, not "1m"', "tcp:10.0.0.1:143"),
    ("tcp:a:80:time=5", 'a tcp: endpoint has no "time"; did you mean "timeout"?', "tcp:10.0.0.1:143"),
    ("tcp:a:80:5", '"5" is one part too many', "tcp:10.0.0.1:143"),
    ("tcp:::1:80", COLON, r"tcp:host=\:\:1:port=80"),
    ("tcp:[::1]:80", COLON, r"tcp:host=\:\:1:port=80"),
    ("tcp:host=::1:port=80", COLON, r"tcp:host=\:\:1:port=80"),
    ("tcp:2001:db8::1:80", COLON, r"tcp:host=2001\:db8\:\:1:port=80"),
    ("tls:::1:443", COLON, r"ssl:host=\:\:1:port=443:hostname=mail.example.com"),
    ("tls:localhost", "the port is missing", "tls:mail.example.com:993"),
    ("unix:", "the path is missing", "unix:/run/dovecot/imap"),
]


def exactly(said: str, text: str, example: str) -> str:
    return "^" + re.escape(f'"{text}" is no endpoint {said} "{example}"') + "$"


@pytest.mark.parametrize(("text", "reason", "example"), NOT_LISTENED_ON)
def test_what_nobody_can_listen_on(text: str, reason: str, example: str) -> None:
    """The string is named, what is wrong, and what would be right: as it was meant, if that is clear."""
    reactor = MemoryReactorClock()
    with pytest.raises(ValueError, match=exactly(f"({reason}): write for example", text, example)):
        endpoints.check_server_endpoint(text, reactor)
    if not example.startswith("unix"):
        endpoints.check_server_endpoint(example, reactor)


@pytest.mark.parametrize(("text", "reason", "example"), NOT_DIALLED)
def test_what_nobody_can_dial(text: str, reason: str, example: str) -> None:
    """So it is with endpoints of backends."""
    reactor = MemoryReactorClock()
    with pytest.raises(ValueError, match=exactly(f"({reason}): write for example", text, example)):
        endpoints.check_client_endpoint(text, reactor)
    endpoints.check_client_endpoint(example, reactor)


@given(
    st.sampled_from(["", "tcp:", "tcp6:", "ssl:", "unix:", "systemd:"]),
    st.text(alphabet="ab1:[]=./\\@*", max_size=20),
)
def test_any_string_is_an_endpoint_or_told_why_not(kind: str, text: str) -> None:
    """Whatever somebody types is taken, or refused with a reason: no other exception comes of it."""
    for check in (endpoints.check_server_endpoint, endpoints.check_client_endpoint):
        with contextlib.suppress(ValueError):
            check(kind + text, MemoryReactorClock())


def test_files_of_an_endpoint_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that an endpoint's TLS needs is named if it cannot be read, or is not what it should be."""
    monkeypatch.chdir(tmp_path)
    chain, key = self_signed()
    (tmp_path / "cert.pem").write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(key)
    missing = "which cannot be read (No such file or directory): name one that this user can read"
    pem = "needs a certificate and its private key, in PEM:"
    said = {
        "ssl:1:privateKey=/nope.pem": f"names /nope.pem, {missing}",
        f"ssl:1:privateKey={tmp_path}/key.pem:certKey=/nope": f"names /nope, {missing}",
        f"ssl:1:privateKey={tmp_path}/key.pem": f"{pem} {tmp_path}/key.pem has not both",
        "ssl:1": f"names {tmp_path}/server.pem, which cannot be read (No such file or directory): "
        "say where the key and the certificate are, with privateKey=FILE and certKey=FILE",
        "tls:a:1:trustRoots=/nope": f"names /nope, {missing}",
        f"tls:a:1:trustRoots={tmp_path}/key.pem": f"names {tmp_path}/key.pem, which cannot be read "
        "(Not a directory): name a folder with PEM files",
        "tls:a:1:certificate=/nope": f"names /nope, {missing}",
        f"tls:a:1:certificate={tmp_path}/cert.pem": f"{pem} {tmp_path}/cert.pem has not both",
    }
    for text, sentence in said.items():
        check = endpoints.check_server_endpoint if text.startswith("ssl") else endpoints.check_client_endpoint
        with pytest.raises(ValueError, match="^" + re.escape(f'"{text}" {sentence}') + "$"):
            check(text, MemoryReactorClock())


def test_a_folder_of_certificates_has_to_be_there() -> None:
    """What "tls:" wants first is a folder, and not the port: with that, no client would get anywhere."""
    with pytest.raises(ValueError, match=r'there is no folder "8443".*: write "tls:FOLDER:PORT"'):
        endpoints.check_server_endpoint("tls:8443", MemoryReactorClock())


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("ssl:a.example:1", 'write "tls:a.example:1", which does'),
        ("ssl:host=a.example:port=1:timeout=5", 'write "tls:a.example:1", which does'),
        (r"ssl:\:\:1:1", "add the name that it must carry, as in :hostname="),
    ],
)
def test_a_backend_is_not_dialled_unverified(text: str, remedy: str) -> None:
    """An "ssl:" endpoint that has no name to look for takes anybody for the backend, so it is refused."""
    with pytest.raises(ValueError, match=remedy):
        endpoints.check_client_endpoint(text, MemoryReactorClock())
    endpoints.check_client_endpoint(f"{text}:hostname=a.example", MemoryReactorClock())


def test_a_socket_that_systemd_has_not_handed_over() -> None:
    """It is missed when mailroute starts, and the message says who has to start it."""
    with pytest.raises(ValueError, match=r"have systemd start mailroute, with a \.socket unit"):
        endpoints.server_endpoint("systemd:domain=INET:index=0", MemoryReactorClock())
