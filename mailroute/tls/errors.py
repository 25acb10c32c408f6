"""What went wrong with TLS, in words."""

from __future__ import annotations

from twisted.python.failure import Failure


def explain(failure: Failure) -> str:
    """Say why a TLS handshake or connection failed, in the libraries' own terms."""
    return explain_error(failure.value)


def explain_error(error: BaseException | None) -> str:
    """Say the same of an exception."""
    queue = error.args[0] if error is not None and error.args else ""
    if isinstance(queue, list):
        # OpenSSL's are tuples; those of service_identity, which Twisted asks for names, are not.
        queue = "; ".join(str(entry[-1] if isinstance(entry, tuple) else entry) for entry in queue if entry)
    return str(queue) or "no reason given"
