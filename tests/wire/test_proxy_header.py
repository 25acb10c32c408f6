"""The PROXY header, read back by Twisted's parser."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser

from mailroute.wire.proxy_header import version_1, version_2

V4 = (("192.0.2.7", 40000), ("192.0.2.1", 143))
V6 = (("2001:db8::7", 40000), ("2001:db8::1", 143))


@pytest.mark.parametrize(("source", "destination"), [V4, V6])
def test_version_1(source, destination):
    """The line carries both addresses, and is at most 107 bytes long."""
    header = version_1(source, destination)
    info, rest = V1Parser().feed(header + b"rest")
    assert (info.source.host, info.source.port) == source
    assert (info.destination.host, info.destination.port) == destination
    assert rest == b"rest"
    assert len(header) <= 107


@pytest.mark.parametrize(("source", "destination"), [V4, V6])
def test_version_2(source, destination):
    """The binary header carries both addresses, and nothing of the TLVs spills over."""
    header = version_2(source, destination, unique_id="s-1", server_name="mail.example", tls="TLSv1.3")
    info, rest = V2Parser().feed(header + b"rest")
    assert (ip_address(info.source.host), info.source.port) == (ip_address(source[0]), source[1])
    assert (ip_address(info.destination.host), info.destination.port) == (
        ip_address(destination[0]),
        destination[1],
    )
    assert rest == b"rest"


def test_version_2_tlvs():
    """SNI, session id and TLS version stand in the TLVs that the specification gives them."""
    bare = version_2(*V4)
    full = version_2(*V4, unique_id="s-1", server_name="mail.example", tls="TLSv1.3")
    assert full[len(bare) :] == (
        b"\x02\x00\x0cmail.example"
        + b"\x05\x00\x03s-1"
        + b"\x20\x00\x0f\x01\x00\x00\x00\x01\x21\x00\x07TLSv1.3"
    )


@pytest.mark.parametrize("ends", [(None, None), (V4[0], None), (V4[0], V6[1])])
def test_without_a_common_family_the_address_is_unknown(ends):
    """A UNIX socket, or ends of different families, are said to be unknown."""
    assert version_1(*ends) == b"PROXY UNKNOWN\r\n"
    assert version_2(*ends)[12:] == b"\x21\x00\x00\x00"
