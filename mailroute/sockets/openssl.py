"""OpenSSL without pyOpenSSL in between, for the bytes of a session.

pyOpenSSL allocates and copies for every record, and tells with an exception
that there is nothing to read: twice the work of OpenSSL itself.  The library
under it is at hand, though under private names; where they are missing one
day, TLS connections stay with Twisted (`AVAILABLE`).
"""

from __future__ import annotations

import errno
from typing import Any

from OpenSSL import SSL

_lib: Any = getattr(SSL, "_lib", None)
_ffi: Any = getattr(SSL, "_ffi", None)

_FUNCTIONS = (
    "SSL_read",
    "SSL_write",
    "SSL_get_error",
    "SSL_shutdown",
    "SSL_set_fd",
    "SSL_clear_mode",
    "SSL_MODE_AUTO_RETRY",
    "BIO_get_mem_data",
    "ERR_clear_error",
)
_ATTRIBUTES = {"_ssl", "_into_ssl", "_from_ssl"}

AVAILABLE = (
    _ffi is not None
    and all(hasattr(_lib, name) for name in _FUNCTIONS)
    and vars(SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)).keys() >= _ATTRIBUTES
)
"""Whether this pyOpenSSL has what is needed."""

ROOM_SIZE = 64 * 1024
"""What is read at once, at the most."""

if AVAILABLE:
    ADDRESS = _ffi.new("char[]", ROOM_SIZE)
    ROOM = memoryview(_ffi.buffer(ADDRESS))
    """Where everybody reads to.  What is in it is passed on, or copied, before the next one reads."""

    read, write, shutdown = _lib.SSL_read, _lib.SSL_write, _lib.SSL_shutdown
    get_error, clear_errors = _lib.SSL_get_error, _lib.ERR_clear_error
    from_buffer = _ffi.from_buffer

    WANT_READ, WANT_WRITE = _lib.SSL_ERROR_WANT_READ, _lib.SSL_ERROR_WANT_WRITE
    ZERO_RETURN = _lib.SSL_ERROR_ZERO_RETURN
else:
    ROOM = memoryview(bytearray(ROOM_SIZE))


def is_at_rest(connection: SSL.Connection) -> bool:
    """Whether nothing is left in the connection's memory BIOs, of what came or of what is to be sent."""
    inner: Any = connection
    where = _ffi.new("char **")
    return not (
        _lib.BIO_get_mem_data(inner._into_ssl, where) or _lib.BIO_get_mem_data(inner._from_ssl, where)
    )


def attach(connection: SSL.Connection, descriptor: int) -> Any:
    """Have a connection over memory BIOs, which must be empty, use a socket from now on.

    A read then takes one record, whatever is in it: otherwise OpenSSL would go on within one call
    for as long as the peer sends KeyUpdates (RFC 8446 section 4.6.3), and nobody else had a turn.

    :return: OpenSSL's own object, which lives as long as the connection.
    """
    inner: Any = connection
    # OpenSSL frees them.
    inner._into_ssl = inner._from_ssl = None
    if _lib.SSL_set_fd(inner._ssl, descriptor) != 1:
        raise SSL.Error
    _lib.SSL_clear_mode(inner._ssl, _lib.SSL_MODE_AUTO_RETRY)
    return inner._ssl


RECORD = 16 * 1024
"""Plaintext in one TLS record at the most (RFC 8446 section 5.1)."""


def send(ssl: Any, data: Any) -> int:
    """Encrypt and send; return how many bytes of it have gone.

    What OpenSSL has begun to send must be given to it again, from the same byte on.

    :raises OSError: the connection is broken.
    """
    text = from_buffer(data)
    size, sent = len(data), 0
    while sent < size:
        result = write(ssl, text + sent, size - sent)
        if result > 0:
            sent += result
            continue
        if get_error(ssl, result) == WANT_WRITE:
            break
        clear_errors()
        raise OSError(errno.EPIPE, "the TLS connection is broken")
    return sent
