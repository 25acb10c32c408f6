"""The name that a TLS client asks for, in its first message (RFC 8446 section 4.1.2, RFC 6066 section 3)."""

from __future__ import annotations

import struct

MAX_HELLO = 16384
"""Bytes in a ClientHello; those of clients with post-quantum key shares have about 1800."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0
_MAX_RECORD = 16384


class Incomplete(Exception):
    """More bytes are needed."""


def server_name(data: bytes | bytearray) -> bytes | None:
    """Return the host name of the ClientHello that a connection begins with; None if it names none.

    None as well for whatever is no ClientHello or breaks its rules: the TLS
    library, which gets the same bytes, says what is wrong with it.

    :raises Incomplete: the ClientHello has not arrived in full.
    """
    message = _message(data)
    if message is None:
        return None
    try:
        return _name(message)
    except (IndexError, struct.error):
        return None


def _message(data: bytes | bytearray) -> bytes | None:
    """Return the ClientHello without its header, put together from the records that carry it."""
    message = bytearray()
    at = 0
    while True:
        # Each look is at bytes that are there, so that a wrong first one is not waited behind.
        if data[at : at + 1] not in (b"", bytes([_HANDSHAKE])):
            return None
        if len(data) < at + 5:
            raise Incomplete
        (length,) = struct.unpack_from("!H", data, at + 3)
        if not 0 < length <= _MAX_RECORD:
            return None
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        if message and message[0] != _CLIENT_HELLO:
            return None
        if len(message) < 4:
            continue
        wanted = int.from_bytes(message[1:4])
        if wanted > MAX_HELLO:
            return None
        if len(message) >= 4 + wanted:
            return bytes(message[4 : 4 + wanted])


def _name(message: bytes) -> bytes | None:
    at = 2 + 32  # the version, and the random bytes
    at += 1 + message[at]  # the session id
    at += 2 + _short(message, at)  # the cipher suites
    at += 1 + message[at]  # the compression methods
    at += 2  # how long the extensions are
    while at < len(message):
        kind, length = struct.unpack_from("!HH", message, at)
        if kind == _SERVER_NAME:
            # A list, of which RFC 6066 allows one entry, of one type.
            if message[at + 6] != _HOST_NAME:
                return None
            size = _short(message, at + 7)
            name = message[at + 9 : at + 9 + size]
            return name if len(name) == size and size + 5 == length else None
        at += 4 + length
    return None


def _short(message: bytes, at: int) -> int:
    value: int = struct.unpack_from("!H", message, at)[0]
    return value
