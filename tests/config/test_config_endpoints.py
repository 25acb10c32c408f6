"""Endpoint strings are taken apart as Twisted does it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock

from mailroute.config import endpoints

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
