"""``proxy_from``: from where PROXY headers are taken."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest
from config.texts import SMALL
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.testing import MemoryReactorClock

from mailroute.config import ConfigError, Settings, build, describe
from mailroute.events import Address
from mailroute.networks import Networks

Load = Callable[[str], Settings]


def behind(networks: str, endpoint: str = "tcp:143") -> str:
    """Return a configuration with this as the listener's proxy_from."""
    text = SMALL.replace('"tcp:143"', f'"{endpoint}"')
    return text.replace('security = "none"\n', f'security = "none"\nproxy_from = {networks}\n', 1)


def error(load: Load, text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load(text)
    (problem,) = refused.value.problems
    return f"{problem.line}: {problem.key}: {problem.message}"


@pytest.mark.parametrize(
    ("written", "inside", "outside"),
    [
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
        ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
        ("192.0.2.7/32", "192.0.2.7", "::ffff:192.0.2.7"),
        ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
        ("2001:db8::7", "2001:db8::7", "2001:db8::8"),
        ("::ffff:10.0.0.0/104", "10.255.0.1", "11.0.0.1"),
        ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.8"),
        ("0.0.0.0/0", "192.0.2.7", "2001:db8::7"),
        ("::/0", "2001:db8::7", "192.0.2.7"),
    ],
)
def test_what_is_in_a_network(load: Load, written: str, inside: str, outside: str) -> None:
    """IPv4 and IPv6 networks and addresses are told apart, and a mapped IPv4 network is one of IPv4."""
    (listener,) = load(behind(f'["{written}"]')).listeners
    assert Address(inside, 1) in listener.proxy_from
    assert Address(outside, 1) not in listener.proxy_from
    assert None not in listener.proxy_from


def test_unix_stands_for_those_without_an_address(load: Load) -> None:
    """Only "unix" takes a header from a client that has no address."""
    (listener,) = load(behind('["unix", "10.0.0.0/8"]', "systemd:domain=UNIX:index=0")).listeners
    assert None in listener.proxy_from
    assert Address("10.0.0.1", 1) in listener.proxy_from
    assert Address("192.0.2.7", 1) not in listener.proxy_from


@pytest.mark.parametrize("text", [SMALL, behind("[]")])
def test_nobody_is_believed_unless_he_is_listed(load: Load, text: str) -> None:
    """Without the key, or with an empty list, no header is taken."""
    (listener,) = load(text).listeners
    assert not listener.proxy_from
    assert Address("127.0.0.1", 1) not in listener.proxy_from


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            behind('["10.0.0.0/33"]'),
            '5: listen[1].proxy_from: "10.0.0.0/33" is no network: write for example "10.0.0.0/8", '
            '"2001:db8::/32" or "unix"',
        ),
        (behind('["balancer.example.com"]'), '5: listen[1].proxy_from: "balancer.example.com" is no network'),
        (behind('["fe80::1%eth0"]'), '5: listen[1].proxy_from: "fe80::1%eth0" is no network'),
        (behind('[""]'), '5: listen[1].proxy_from: "" is no network'),
        (
            behind('["10.0.0.5/8"]'),
            '5: listen[1].proxy_from: "10.0.0.5/8" is an address within a network: write "10.0.0.0/8", or '
            "leave out the /",
        ),
        (
            behind('"10.0.0.0/8"'),
            '5: listen[1].proxy_from: must be a list of networks, such as ["10.0.0.0/8"], not "10.0.0.0/8"',
        ),
        (behind("[10]"), "5: listen[1].proxy_from: must be a list of networks"),
        (behind("true"), "5: listen[1].proxy_from: must be a list of networks"),
        (
            behind('["10.0.0.0/8"]', "unix:/run/imap"),
            '5: listen[1].proxy_from: names "10.0.0.0/8", and those who come over a UNIX socket have no '
            'address: use ["unix"]',
        ),
        (
            behind('["unix"]'),
            '5: listen[1].proxy_from: names only "unix", and nobody comes to a tcp: endpoint so: '
            "name networks",
        ),
    ],
)
def test_one_mistake(load: Load, text: str, expected: str) -> None:
    """Each mistake is told with its line, what is wrong and what to write instead."""
    assert error(load, text).startswith(expected)


def test_an_endpoint_with_tls_of_its_own(load: Load, folder: Path) -> None:
    """An ssl: endpoint would have the header inside TLS, where nobody sends one."""
    endpoint = f"ssl:993:privateKey={folder}/key.pem:certKey={folder}/cert.pem"
    assert error(load, behind('["10.0.0.0/8"]', endpoint)) == (
        "3: listen[1].endpoint: begins TLS before a PROXY header could be read: use a tcp: endpoint, and "
        'security = "tls"'
    )


def test_it_is_told_what_happens(load: Load) -> None:
    """`mailroute check` says who must send a header, whatever the protocol."""
    told = describe(load(behind('["10.0.0.0/8", "2001:db8::1"]')))
    assert told[0].endswith(
        " A connection from 10.0.0.0/8, 2001:db8::1/128 must begin with a PROXY header, naming the client."
    )
    for protocol in ("tcp", "lmtp"):
        listen = {"protocol": protocol, "endpoint": "unix:/run/x", "backend": "east", "security": "none"}
        settings = build(
            MemoryReactorClock(),
            listen=[listen | {"proxy_from": ["unix"]}],
            backend={"east": {protocol: "tcp:10.0.0.1:24", "security": "none"}},
        )
        assert "A connection from unix must begin with a PROXY header" in describe(settings)[0]


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), st.integers(0, 128))
def test_a_network_is_told_as_it_may_be_written(address: object, length: int) -> None:
    """What the networks say of themselves stands for the same ones."""
    network = ip_network((int(address), length % (address.max_prefixlen + 1)), strict=False)
    if network.version != address.version:
        return
    networks = Networks.of([str(network), "unix"])
    assert Networks.of(str(networks).split(", ")) == networks


@given(st.text(max_size=20))
def test_any_text_is_a_network_or_an_error(text: str) -> None:
    """Whatever is written, it stands for somebody or is refused in the usual way."""
    with contextlib.suppress(ValueError):
        assert Networks.of([text])
