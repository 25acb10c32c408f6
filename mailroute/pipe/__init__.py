"""Two transports become one pipe.

`splice` and `join` are all that the rest of mailroute knows of this room.
`contract` says what a pipe promises.  A `joint` has two legs and knows what
one's fate means for the other; `choice` picks the kind of legs: sockets that
`takeover` has taken out of the reactor, in the clear (`socket_leg`) or with TLS
(`tls_leg`), or any two Twisted transports as they are (`transport_leg`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, ITransport

from mailroute.pipe.choice import join
from mailroute.pipe.contract import HELD_AT_MOST, End, Order, SpliceCancelled, SpliceResult, SpliceTerms
from mailroute.pipe.joint import Joint, Listener

__all__ = [
    "HELD_AT_MOST",
    "End",
    "Joint",
    "Order",
    "SpliceCancelled",
    "SpliceResult",
    "SpliceTerms",
    "join",
    "splice",
]

DEFAULT_TERMS = SpliceTerms()


def splice(
    a: ITransport,
    b: ITransport,
    *,
    first_to_a: bytes = b"",
    first_to_b: bytes = b"",
    terms: SpliceTerms = DEFAULT_TERMS,
    clock: IReactorTime | None = None,
) -> Deferred[SpliceResult]:
    """Join two connections until both are closed.

    ``a`` and ``b`` are transports as a protocol sees them: TCP or UNIX
    sockets, in the clear or with TLS on top.  They may be paused, on their way
    out, or dead.  From now on they belong to the splice: their protocols hear
    nothing more, and nobody must touch them.

    A half-close is passed on where both ends know such a thing.  Where TLS
    does not, ``a`` is taken for the end that asks and ``b`` for the one that
    answers: an ``a`` that has finished still gets ``b``'s answers, and a ``b``
    that has finished is not waited for.

    :param first_to_a: bytes for ``a`` before anything that ``b`` sends.
    :param first_to_b: bytes for ``b`` before anything that ``a`` sends.
    :param terms: how long to put up with what.
    :param clock: tells the time; the reactor that ``a`` lives in unless given.
    :return: the result, once both connections are closed.  It never fails
        unless it is cancelled, which closes both connections: then at once,
        with `SpliceCancelled`.
    """
    return with_deferred(Order(a, b, first_to_a, first_to_b, terms, clock or _reactor_of(a)), join)


def with_deferred(order: Order, how: Callable[[Order, Listener], Joint]) -> Deferred[SpliceResult]:
    """Join, and return a Deferred for the result; cancelling it cancels the joint."""

    def cancel(spliced: Deferred[SpliceResult]) -> None:
        passed = joint.bytes_a_to_b, joint.bytes_b_to_a
        joint.cancel()
        spliced.errback(SpliceCancelled(*passed))

    spliced: Deferred[SpliceResult] = Deferred(cancel)
    joint = how(order, _Waiting(spliced))
    return spliced


class _Waiting:
    """Has a Deferred fire with the result."""

    def __init__(self, spliced: Deferred[SpliceResult]) -> None:
        self._spliced = spliced

    def parted(self, result: SpliceResult) -> None:
        """Both connections are closed."""
        self._spliced.callback(result)


def _reactor_of(transport: ITransport) -> IReactorTime:
    """Return the reactor that a transport lives in (a TLS layer passes the question down)."""
    reactor = getattr(transport, "reactor", None)
    if reactor is None:
        # Importing it installs it, hence here and only where no transport knows better.
        from twisted.internet import reactor
    return cast(IReactorTime, reactor)
