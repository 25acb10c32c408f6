"""How many connections there may be."""

from __future__ import annotations

from mailroute.events import Farewell
from mailroute.gate import Gate, network_of


def test_connections_are_bounded_in_all():
    """One more than the total is refused, until somebody leaves."""
    gate = Gate(2, 0)
    assert gate.enter("192.0.2.1") is None
    assert gate.enter(None) is None
    assert gate.enter("192.0.2.2") is Farewell.TOO_MANY
    assert len(gate) == 2
    gate.leave(None)
    assert gate.enter("192.0.2.2") is None


def test_connections_are_bounded_by_address():
    """One address cannot take everybody's places."""
    gate = Gate(0, 1)
    assert gate.enter("192.0.2.1") is None
    assert gate.enter("192.0.2.1") is Farewell.TOO_MANY_FROM_ADDRESS
    assert gate.enter("192.0.2.2") is None
    assert len(gate) == 2


def test_an_ipv6_network_counts_as_one_address():
    """A /64 is one customer."""
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:ffff:ffff:ffff")
    assert network_of("2001:db8::1") != network_of("2001:db8:0:1::1")
    gate = Gate(0, 1)
    gate.enter("2001:db8::1")
    assert gate.enter("2001:db8::2") is Farewell.TOO_MANY_FROM_ADDRESS


def test_nothing_is_kept_of_who_has_left():
    """Memory does not grow with the number of addresses ever seen."""
    gate = Gate(0, 5)
    for number in range(256):
        gate.enter(f"192.0.2.{number}")
        gate.leave(f"192.0.2.{number}")
    assert len(gate) == 0
    assert not gate._by_network
