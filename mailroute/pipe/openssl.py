"""OpenSSL without pyOpenSSL in between, for the bytes of a session.

pyOpenSSL allocates and copies for every record, and tells with an exception
that there is nothing to read: twice the work of OpenSSL itself.  The library
under it is at hand, though under private names; where they are missing one
day, TLS connections stay with Twisted (`AVAILABLE`).
"""

from __future__ import annotations

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

if AVAILABLE:
    read, write, shutdown = _lib.SSL_read, _lib.SSL_write, _lib.SSL_shutdown
    get_error, clear_errors = _lib.SSL_get_error, _lib.ERR_clear_error
    from_buffer = _ffi.from_buffer

    WANT_READ, WANT_WRITE = _lib.SSL_ERROR_WANT_READ, _lib.SSL_ERROR_WANT_WRITE
    ZERO_RETURN = _lib.SSL_ERROR_ZERO_RETURN


def is_at_rest(connection: SSL.Connection) -> bool:
    """Whether nothing is left in the connection's memory BIOs, of what came or of what is to be sent."""
    inner: Any = connection
    where = _ffi.new("char **")
    return not (
        _lib.BIO_get_mem_data(inner._into_ssl, where) or _lib.BIO_get_mem_data(inner._from_ssl, where)
    )


def attach(connection: SSL.Connection, descriptor: int) -> Any:
    """Have a connection over memory BIOs, which must be empty, use a socket from now on.

    :return: OpenSSL's own object, which lives as long as the connection.
    """
    inner: Any = connection
    # OpenSSL frees them.
    inner._into_ssl = inner._from_ssl = None
    if _lib.SSL_set_fd(inner._ssl, descriptor) != 1:
        raise SSL.Error
    return inner._ssl
