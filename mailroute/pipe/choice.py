"""The best kind of legs for two transports."""

from __future__ import annotations

from attrs import evolve

from mailroute.pipe.contract import Order
from mailroute.pipe.hub import hub_of
from mailroute.pipe.joint import Ended, Joint
from mailroute.pipe.takeover import Candidate, Catcher
from mailroute.pipe.transport_leg import TransportLeg


def join(order: Order, ended: Ended) -> Joint:
    """Join two connections until both are closed, as `mailroute.splice` does.

    :param ended: is called with the result, unless the joint is cancelled.
    """
    joint = Joint(order.terms, order.clock, ended)
    a, b = Candidate(order.a), Candidate(order.b)
    if not (a.ready and b.ready):
        wire(order, joint)
    elif a.layer is None and b.layer is None:
        take_over(order, joint, a, b)
    else:
        # TLS is likely to be in the middle of something: we may have been
        # called with the bytes that it has just decrypted, and small writes
        # wait in Twisted's TLS for the reactor's next turn.
        a.connection.reactor.callLater(0, settle, order, joint, a.catch(), b.catch())
    return joint


def settle(order: Order, joint: Joint, from_a: Catcher, from_b: Catcher) -> None:
    """Join two connections that have had a turn of the reactor to come to rest."""
    order = evolve(
        order, first_to_a=order.first_to_a + from_b.caught, first_to_b=order.first_to_b + from_a.caught
    )
    a, b = Candidate(order.a), Candidate(order.b)
    if a.ready and b.ready:
        take_over(order, joint, a, b)
    else:
        wire(order, joint)


def take_over(order: Order, joint: Joint, a: Candidate, b: Candidate) -> None:
    """Join two sockets in the hub."""
    hub = hub_of(a.connection.reactor)
    joint.begin(a.take(hub, joint), b.take(hub, joint), order.first_to_a, order.first_to_b)


def wire(order: Order, joint: Joint) -> None:
    """Join any two stream transports with Twisted's producers and consumers."""
    joint.begin(
        TransportLeg(order.a, joint), TransportLeg(order.b, joint), order.first_to_a, order.first_to_b
    )


def only_wire(order: Order, ended: Ended) -> Joint:
    """Join as on platforms that have nothing better."""
    joint = Joint(order.terms, order.clock, ended)
    wire(order, joint)
    return joint
