"""A connection until its PROXY header is there: any bytes, in any pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from mailroute.descriptors import Descriptors
from mailroute.events import Address, Farewell
from mailroute.failures import FailureTiming
from mailroute.gate import Gate
from mailroute.house import House
from mailroute.legs import IClientLeg, ISession
from mailroute.networks import Networks
from mailroute.relayed import HEADER_TIMEOUT, RelayedFactory
from mailroute.testing import FakeRouter
from mailroute.wire.proxy_header import SIGNATURE, version_1, version_2
from mailroute.wire.proxy_reader import MAX_BODY

ENDS = ("203.0.113.9", 40000), ("198.51.100.1", 143)
HEADERS = [version_1(*ENDS), version_2(*ENDS), version_2(*ENDS, unique_id="s-1", tls="TLSv1.3")]


@implementer(ISession)
class Session:
    """Keeps what it is told."""

    def __init__(self, leg: IClientLeg) -> None:
        self.leg = leg
        self.began = 0
        self.heard = b""

    def begin(self) -> None:
        assert not self.heard
        self.began += 1

    def received(self, data: bytes) -> None:
        assert self.began == 1
        assert data
        self.heard += data

    def half_closed(self) -> None:
        raise AssertionError

    def secured(self) -> None:
        raise AssertionError

    def lost(self, why: str) -> None:
        del why

    def leave(self, why: Farewell) -> None:
        raise AssertionError(why)


class Wire(StringTransport):
    """A connection of Twisted's kind, from a proxy."""

    connected = True

    def __init__(self, factory: RelayedFactory) -> None:
        super().__init__(IPv4Address("TCP", "10.0.0.1", 143), IPv4Address("TCP", "10.0.0.2", 50000))
        self.protocol: Any = factory.buildProtocol(None)
        self.protocol.makeConnection(self)

    def says(self, data: bytes) -> None:
        if not self.disconnected:
            self.protocol.dataReceived(data)

    def ends(self) -> None:
        self.protocol.connectionLost()


class Room:
    """A factory whose connections have to begin with a header, and the sessions that it makes."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.clock = Clock()
        house = House(
            router=FakeRouter({}),
            backends={},
            normalise=bytes.decode,
            join=lambda *_: None,
            failures=FailureTiming(0, ()),
            clock=self.clock,
        )
        self.gate = Gate(10, 1)
        self.factory = RelayedFactory(
            "here",
            Networks.of(["10.0.0.2"]),
            house,
            self._begin,
            self.gate,
            None,
            Descriptors(self.clock, 10),
            tls_first=False,
        )

    def _begin(self, leg: IClientLeg) -> Session:
        self.sessions.append(Session(leg))
        return self.sessions[-1]


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """Cut bytes into pieces."""
    places = sorted({cut for cut in cuts if 0 < cut < len(data)})
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        yield data[start:end]


CUTS = st.lists(st.integers(1, 200))


@given(st.sampled_from(HEADERS), st.binary(max_size=60), CUTS)
def test_a_header_in_any_pieces(header: bytes, rest: bytes, cuts: list[int]) -> None:
    """However the bytes are cut, there is one session of the header's client, which hears what follows it."""
    room = Room()
    wire = Wire(room.factory)
    assert len(room.gate) == 1
    for piece in pieces(header + rest, cuts):
        wire.says(piece)
    (session,) = room.sessions
    assert session.began == 1
    assert session.heard == rest
    assert session.leg.client().source == Address(*ENDS[0])
    assert session.leg.client().destination == Address(*ENDS[1])
    assert len(room.gate) == 1
    wire.ends()
    assert len(room.gate) == 0
    assert not len(room.factory.house.deadlines)


BEGINNINGS = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\x0f\xff"])


@given(BEGINNINGS, st.binary(max_size=5000), CUTS)
def test_any_bytes_in_any_pieces(beginning: bytes, junk: bytes, cuts: list[int]) -> None:
    """Whatever comes, no more is kept than a header may have, and in the end nothing is left of it."""
    room = Room()
    wire = Wire(room.factory)
    introduction = wire.protocol
    for piece in pieces(beginning + junk, cuts):
        wire.says(piece)
        if introduction in room.factory._waiting:
            assert len(introduction._read) < 16 + MAX_BODY
    if not room.sessions:
        room.clock.advance(HEADER_TIMEOUT + 1)
        assert wire.disconnected
        assert not wire.value()
    wire.ends()
    assert len(room.gate) == 0
    assert not room.factory._waiting
    assert not len(room.factory.house.deadlines)


def test_the_patience_for_a_header_does_not_grow() -> None:
    """A connection that sends a byte now and then is closed as early as one that sends nothing."""
    room = Room()
    wire = Wire(room.factory)
    for byte in HEADERS[0][:11]:
        assert not wire.disconnected
        wire.says(bytes([byte]))
        room.clock.advance(HEADER_TIMEOUT / 10)
    assert wire.disconnected
    assert not room.sessions
