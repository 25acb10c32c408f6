"""The PROXY protocol's header, as it comes in front of a client's bytes (HAProxy's proxy-protocol.txt)."""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

from mailroute.wire.proxy_header import SIGNATURE, End

MAX_LINE = 107
"""Bytes in the line of version 1 with its CR LF (section 2.1): no two addresses make a longer one."""

MAX_BODY = 4096
"""Bytes behind the first 16 of version 2.

The length field has room for 65535.  Addresses take 216 at most, and what
proxies tell besides (a name, an id, a TLS version and cipher) a few hundred;
nginx reads as much as this, header included.
"""

_FIRST_LINE = b"PROXY "
_UNKNOWN = _FIRST_LINE + b"UNKNOWN"
_FIXED = len(SIGNATURE) + 4
"""Bytes of version 2 that every header has: signature, command, family and length."""

_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _UNIX = 0x00, 0x31
_UNKNOWN_TO_US = frozenset({_UNSPECIFIED, 0x12, 0x22, 0x32})
_ADDRESSES = {_UNSPECIFIED: 0, 0x11: 12, 0x21: 36, _UNIX: 216, 0x12: 12, 0x22: 36, 0x32: 216}
"""How many bytes the addresses of each family take: nothing known, TCP over IPv4 and IPv6, UNIX streams,
and datagrams of these, which no connection here can be: they count as unknown (section 2.2)."""

_CRC32C = 0x03


class Incomplete(Exception):
    """More bytes are needed."""


class BadHeader(ValueError):
    """A connection begins with no header, or a broken one; the text says why, without its bytes."""


class ProxyHeader(NamedTuple):
    """What a header says.

    ``relayed``: the connection stands for a client's, whose ends follow; they
    are None if it came over a UNIX socket.  Otherwise it is the proxy's own
    (``LOCAL``, such as a health check) or stands for a client that nothing
    usable is said of (``UNKNOWN``): then the ends of the connection itself count.
    """

    relayed: bool
    source: End | None = None
    destination: End | None = None


_OWN = ProxyHeader(relayed=False)


def read_header(data: bytes | bytearray) -> tuple[ProxyHeader, int]:
    """Return the header that a connection begins with, and how many bytes of these it takes.

    Each look is at bytes that are there, so that a wrong one is not waited
    behind; of what is incomplete, no more than 16 + `MAX_BODY` bytes are ever
    to be kept.

    :raises Incomplete: it has not arrived in full.
    :raises BadHeader: what has arrived is no header.
    """
    if data[:1] == SIGNATURE[:1]:
        return _version_2(data)
    start = bytes(data[: len(_FIRST_LINE)])
    if not _FIRST_LINE.startswith(start):
        raise BadHeader("it begins with something else")
    end = data.find(b"\n", 0, MAX_LINE)
    if end < 0:
        if len(data) >= MAX_LINE:
            raise BadHeader(f"its line is longer than {MAX_LINE} bytes")
        raise Incomplete
    if data[end - 1 : end] != b"\r":
        raise BadHeader("its line does not end with CR LF")
    return _version_1(bytes(data[: end - 1])), end + 1


# --- version 1: a line ------------------------------------------------------


def _version_1(line: bytes) -> ProxyHeader:
    if line == _UNKNOWN or line.startswith(_UNKNOWN + b" "):
        return _OWN  # whatever follows is to be ignored
    try:
        kind, *words = line.decode("ascii").split(" ")[1:]
    except UnicodeDecodeError:
        raise BadHeader("its line is not ASCII") from None
    if kind not in ("TCP4", "TCP6"):
        raise BadHeader("it names no protocol that is known: TCP4, TCP6 and UNKNOWN are")
    if len(words) != 4:
        raise BadHeader("it has not two addresses and two ports")
    source, destination, *ports = words
    source_port, destination_port = map(_port, ports)
    return ProxyHeader(
        relayed=True,
        source=(_address(kind, source), source_port),
        destination=(_address(kind, destination), destination_port),
    )


def _address(kind: str, text: str) -> str:
    try:
        if kind == "TCP4":
            return str(ipaddress.IPv4Address(text))
        if "%" in text:  # a zone, which is of one machine alone
            raise ValueError
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise BadHeader(f"it has an address that is none of {kind}") from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or (text[0] == "0" and text != "0") or int(text) > 65535:
        raise BadHeader("it has a port that is no number from 0 to 65535")
    return int(text)


# --- version 2: binary ------------------------------------------------------


def _version_2(data: bytes | bytearray) -> tuple[ProxyHeader, int]:
    if not SIGNATURE.startswith(data[: len(SIGNATURE)]):
        raise BadHeader("it begins with something else")
    command = data[12] if len(data) > 12 else None
    if command not in (None, _LOCAL, _PROXY):
        raise BadHeader(f"it has version and command 0x{command:02x}, where 0x20 and 0x21 are known")
    family = data[13] if len(data) > 13 and command == _PROXY else None
    if family is not None and family not in _ADDRESSES:
        raise BadHeader(f"it has family and protocol 0x{family:02x}, which the specification does not have")
    if len(data) < _FIXED:
        raise Incomplete
    (length,) = struct.unpack_from("!H", data, _FIXED - 2)
    if length > MAX_BODY:
        raise BadHeader(f"it says that {length} bytes follow, and at most {MAX_BODY} are read")
    whole = _FIXED + length
    if len(data) < whole:
        raise Incomplete
    if family is None:
        return _OWN, whole  # LOCAL: whatever follows is to be ignored
    header = bytes(data[:whole])
    _check_values(header, _FIXED + _ADDRESSES[family])
    if family in _UNKNOWN_TO_US:
        return _OWN, whole
    if family == _UNIX:
        return ProxyHeader(relayed=True), whole
    return ProxyHeader(True, *_ends(header[_FIXED : _FIXED + _ADDRESSES[family]])), whole


def _ends(addresses: bytes) -> tuple[End, End]:
    """Return both ends: two addresses of 4 or 16 bytes, and then their ports."""
    size = (len(addresses) - 4) // 2
    source, destination = (str(ipaddress.ip_address(addresses[start : start + size])) for start in (0, size))
    source_port, destination_port = struct.unpack_from("!HH", addresses, 2 * size)
    return (source, source_port), (destination, destination_port)


def _check_values(header: bytes, at: int) -> None:
    """Go through the TLVs behind the addresses, which are not believed: only the checksum is looked at.

    :raises BadHeader: one is longer than what is there, or the header is not as it was sent (section 2.2.3).
    """
    if at > len(header):
        raise BadHeader("it is too short for its addresses")
    checked = False  # each check goes through the whole header
    while at < len(header):
        if at + 3 > len(header):
            raise BadHeader("its last value is cut short")
        kind, length = struct.unpack_from("!BH", header, at)
        end = at + 3 + length
        if end > len(header):
            raise BadHeader("its last value is cut short")
        if kind == _CRC32C:
            if length != 4 or checked:
                raise BadHeader("its checksum has not 4 bytes, or is there twice")
            checked = True
            if header[at + 3 : end] != struct.pack("!I", _crc32c(header[: at + 3] + bytes(4) + header[end:])):
                raise BadHeader("its checksum is wrong")
        at = end


def _crc32c(data: bytes) -> int:
    """Return the checksum of RFC 4960 appendix B: a microsecond for ten bytes, of which a header has few."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = tuple(map(_entry, range(256)))
