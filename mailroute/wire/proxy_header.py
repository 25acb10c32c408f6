"""The PROXY protocol's header, as a proxy writes it (HAProxy's proxy-protocol.txt, versions 1 and 2)."""

from __future__ import annotations

import ipaddress
import struct

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

_AUTHORITY = 0x02
_UNIQUE_ID = 0x05
_SSL = 0x20
_SSL_VERSION = 0x21
_CLIENT_SSL = 0x01

End = tuple[str, int]
"""A numeric IP address and a port."""


def version_1(source: End | None, destination: End | None) -> bytes:
    """Return the one-line header; ``UNKNOWN`` where the addresses are not of one family."""
    ends = _one_family(source, destination)
    if ends is None:
        return b"PROXY UNKNOWN\r\n"
    (near, near_port), (far, far_port) = ends
    return f"PROXY TCP{near.version} {near} {far} {near_port} {far_port}\r\n".encode("ascii")


def version_2(
    source: End | None,
    destination: End | None,
    *,
    unique_id: str = "",
    server_name: str | None = None,
    tls: str | None = None,
) -> bytes:
    """Return the binary header.

    :param unique_id: the session's id, at most 128 bytes.
    :param server_name: the name that the client asked for by SNI.
    :param tls: the client's TLS version, None in the clear.
    """
    ends = _one_family(source, destination)
    if ends is None:
        family, addresses = 0x00, b""
    else:
        (near, near_port), (far, far_port) = ends
        family = 0x11 if near.version == 4 else 0x21
        addresses = near.packed + far.packed + struct.pack("!HH", near_port, far_port)
    body = addresses
    if server_name:
        body += _tlv(_AUTHORITY, server_name.encode("utf-8"))
    if unique_id:
        body += _tlv(_UNIQUE_ID, unique_id.encode("ascii"))
    if tls:
        # The client presented no certificate, hence a "verify" that is not 0.
        body += _tlv(_SSL, struct.pack("!BI", _CLIENT_SSL, 1) + _tlv(_SSL_VERSION, tls.encode("ascii")))
    return SIGNATURE + struct.pack("!BBH", 0x21, family, len(body)) + body


def _tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


_Parsed = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


def _one_family(source: End | None, destination: End | None) -> tuple[_Parsed, _Parsed] | None:
    if source is None or destination is None:
        return None
    near, far = ipaddress.ip_address(source[0]), ipaddress.ip_address(destination[0])
    if near.version != far.version:
        return None
    return (near, source[1]), (far, destination[1])
