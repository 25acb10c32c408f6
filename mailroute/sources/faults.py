"""What is logged of a source that fails: where, and never what it says."""

from __future__ import annotations

import errno
import os

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.python.failure import Failure

from mailroute.sources.context import Unanswered
from mailroute.tls.errors import explain_error

MAX_FRAMES = 8
"""Places of a traceback that are logged: the innermost, which are the ones of whoever has failed."""


def fault(failure: Failure) -> str:
    """Return what has been raised and where, for the log.

    The exception's own text is left out, and so is every value: a program that somebody
    wrote against a database or a web server has passwords in both.
    """
    kind = failure.type.__name__ if failure.type is not None else "nothing"
    places = [f"{file}:{line} ({function})" for function, file, line, *_ in failure.frames[-MAX_FRAMES:]]
    return " in ".join([kind, *reversed(places)])


_REMEDIES = {
    errno.ECONNREFUSED: "start the server, or correct its address in this block",
    errno.ENOENT: "start the server, or correct its path in this block",
    errno.EACCES: "let mailroute's user open the socket",
}


_CUT_SHORT = ("ResponseFailed", "ResponseNeverReceived", "RequestTransmissionFailed")
"""What `twisted.web` calls connections that end too early; other reasons of theirs are in ``reasons``."""


def cause(error: BaseException | None) -> str:
    """Return why somebody could not be asked, for the log, with the remedy if there is a usual one.

    The exception's own text may hold a password in an address, so all words are the system's or mailroute's.
    """
    kind = type(error).__name__
    if isinstance(error, Unanswered):
        return str(error) or kind
    for each in (error, *(failure.value for failure in getattr(error, "reasons", ()))):
        if isinstance(each, SSL.Error | VerificationError):
            return f"no TLS: {explain_error(each)}; look at ca, and at the name that the certificate is for"
    if isinstance(error, TookTooLong):
        return "no answer in time; see why the server is slow, or raise timeout"
    if isinstance(error, ConnectionClosed) or kind in _CUT_SHORT:
        return f"{kind}: the server ended the connection before its answer; look at the server's log"
    if isinstance(error, DNSLookupError):
        return f"{kind}: the host's name is not known; correct it in this block, or mend the resolver"
    number = error.osError if isinstance(error, ConnectError) else None
    if not isinstance(number, int) or number not in errno.errorcode:
        return kind
    said = f"{kind}: {os.strerror(number)}"
    return f"{said}; {_REMEDIES[number]}" if number in _REMEDIES else said
