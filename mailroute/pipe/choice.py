"""The best kind of legs for two transports."""

from __future__ import annotations

from attrs import evolve

from mailroute.pipe.contract import Order
from mailroute.pipe.joint import Joint, Listener
from mailroute.pipe.takeover import Candidate, FromHub, FromTwisted, candidate
from mailroute.pipe.transport_leg import TransportLeg

AGAIN = 0.05
"""Seconds between two looks at a connection that has to come to rest."""


def join(order: Order, listener: Listener) -> Joint:
    """Join two connections until both are closed, as `mailroute.splice` does.

    :param listener: is told the result, unless the joint is cancelled.
    """
    joint = Joint(order.terms, order.clock, listener)
    a, b = candidate(order.a), candidate(order.b)
    if a.ready and b.ready and not a.restless and not b.restless:
        take_over(order, joint, a, b)
    elif isinstance(a, FromTwisted) and isinstance(b, FromTwisted) and not (a.ready and b.ready):
        wire(order, joint)
    else:
        Settling(order, joint, a, b)
    return joint


class Settling:
    """Two connections that come to rest before they are joined: one turn of the reactor is enough for most.

    If both are Twisted's and one does not come to rest, they are joined as
    they are.  Where the other is a socket in the hub, which Twisted knows
    nothing of, that one is waited for.
    """

    def __init__(self, order: Order, joint: Joint, a: Candidate, b: Candidate) -> None:
        self._order = order
        self._joint = joint
        self._a, self._b = a, b
        self._from_a, self._from_b = a.catch(), b.catch()
        self._until = joint.now() + order.terms.linger
        self._reactor = a.hub.reactor
        self._reactor.callLater(0, self._look)

    def _look(self) -> None:
        order, a, b = self._order, self._a, self._b
        ready = a.ready and b.ready
        mixed = isinstance(a, FromHub) or isinstance(b, FromHub)
        if mixed and not ready and not (a.gone or b.gone) and self._joint.now() < self._until:
            self._reactor.callLater(AGAIN, self._look)
            return
        order = evolve(
            order,
            first_to_a=order.first_to_a + self._from_b.caught,
            first_to_b=order.first_to_b + self._from_a.caught,
        )
        if ready or mixed:
            take_over(order, self._joint, a, b)
        else:
            wire(order, self._joint)


def take_over(order: Order, joint: Joint, a: Candidate, b: Candidate) -> None:
    """Join two sockets in the hub."""
    legs = a.take(joint), b.take(joint)
    joint.begin(*legs, order.first_to_a + b.early, order.first_to_b + a.early)


def wire(order: Order, joint: Joint) -> None:
    """Join any two stream transports with Twisted's producers and consumers."""
    joint.begin(
        TransportLeg(order.a, joint), TransportLeg(order.b, joint), order.first_to_a, order.first_to_b
    )


def only_wire(order: Order, listener: Listener) -> Joint:
    """Join as on platforms that have nothing better."""
    joint = Joint(order.terms, order.clock, listener)
    wire(order, joint)
    return joint
