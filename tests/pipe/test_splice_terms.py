"""The limits of a splice's patience, and what is left when it is over."""

from __future__ import annotations

import gc
from enum import Enum
from pathlib import Path

import pytest
import pytest_twisted
from pipe.splice_rig import until
from timers import waiting
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.tcp import Connection
from twisted.internet.threads import deferToThread
from twisted.protocols.tls import TLSMemoryBIOProtocol

from mailroute.pipe import End, SpliceResult, SpliceTerms
from mailroute.pipe.kernel_pipes import PIPES as KERNEL_PIPES
from mailroute.pipe.kernel_pipes import KernelPipe, KernelPipes
from mailroute.sockets.hub import Hub


async def echo(pair, text: bytes = b"x") -> None:
    """Send something each way."""
    await deferToThread(pair.client.send, text)
    assert await deferToThread(pair.server.receive, len(text)) == text
    await deferToThread(pair.server.send, text)
    assert await deferToThread(pair.client.receive, len(text)) == text


async def see_the_end(pair) -> None:
    """Both peers see an end in good order, and close."""
    for peer in (pair.client, pair.server):
        assert await deferToThread(peer.drain) == b""
    for peer in (pair.client, pair.server):
        peer.sock.close()


@pytest_twisted.ensureDeferred
async def test_idle(rig, join, kinds, clock):
    """A splice ends once no byte has come either way for the time allowed, and not before."""
    pair = await rig.pair(kinds)
    result = join(pair.a, pair.b, clock=clock, terms=SpliceTerms(idle_timeout=100))
    for _ in range(5):
        clock.advance(70)
        await echo(pair)
    clock.advance(99)
    assert not result.called
    await echo(pair)
    clock.advance(99)
    await deferToThread(pair.server.send, b"y")
    assert await deferToThread(pair.client.receive, 1) == b"y"
    clock.advance(2)
    await echo(pair)
    clock.advance(101)
    await see_the_end(pair)
    outcome = await result
    assert (outcome.ended_by, outcome.clean) == (End.IDLE, False)
    assert outcome.duration == pytest.approx(5 * 70 + 99 + 99 + 2 + 101)


@pytest_twisted.ensureDeferred
async def test_lifetime(rig, join, kinds, clock):
    """A splice ends when its lifetime is over, however busy it is."""
    pair = await rig.pair(kinds)
    result = join(pair.a, pair.b, clock=clock, terms=SpliceTerms(lifetime=100))
    for _ in range(3):
        clock.advance(33)
        await echo(pair)
    clock.advance(1)
    await see_the_end(pair)
    assert (await result).ended_by is End.LIFETIME


@pytest_twisted.ensureDeferred
async def test_limits_switched_off(rig, join, clock):
    """A limit of 0 is no limit, and needs no timer."""
    pair = await rig.pair()
    terms = SpliceTerms(idle_timeout=0, stall_timeout=0, lifetime=0)
    result = join(pair.a, pair.b, clock=clock, terms=terms)
    assert clock.getDelayedCalls() == []
    clock.advance(1e6)
    await echo(pair)
    rig.close_peers()
    assert (await result).bytes_a_to_b == 1


@pytest.mark.parametrize("stuck", ["client", "server"])
@pytest_twisted.ensureDeferred
async def test_stall(rig, join, kinds, clock, stuck):
    """A peer that takes no bytes though some wait is let go, and the other told in good order."""
    pair = await rig.pair(kinds)
    near, far, full = (
        (pair.server, pair.client, End.STALLED_A)
        if stuck == "client"
        else (pair.client, pair.server, End.STALLED_B)
    )
    result = join(pair.a, pair.b, clock=clock, terms=SpliceTerms(stall_timeout=50))
    sent = await deferToThread(near.fill)
    clock.advance(40)
    assert len(await deferToThread(far.receive, sent)) == sent
    await deferToThread(near.send, b"again")
    assert await deferToThread(far.receive, 5) == b"again"
    clock.advance(40)
    await echo(pair)
    await deferToThread(near.fill)
    clock.advance(45)
    assert not result.called
    clock.advance(10)
    rig.close_peers()
    outcome = await result
    assert (outcome.ended_by, outcome.clean) == (full, False)


@pytest_twisted.ensureDeferred
async def test_the_other_end_of_a_stall_is_not_waited_for_long(rig, join, clock):
    """When one end stalls, the other has as long to say goodbye as behind a broken connection."""
    pair = await rig.pair(("tls", "tcp"))
    terms = SpliceTerms(stall_timeout=50, linger=1000, broken_linger=2)
    result = join(pair.a, pair.b, clock=clock, terms=terms)
    await deferToThread(pair.client.fill)
    clock.advance(51)
    assert not result.called
    clock.advance(3)
    await until(lambda: result.called, "the splice has ended")
    assert (await result).ended_by is End.STALLED_B


@pytest_twisted.ensureDeferred
async def test_stall_on_a_half_close(rig, join, clock):
    """A peer that does not take the end of the stream is let go as well."""
    pair = await rig.pair()
    pair.b.write(bytes(20_000_000))
    result = join(pair.a, pair.b, clock=clock, terms=SpliceTerms(stall_timeout=50))
    await deferToThread(pair.client.finish)
    await until(lambda: pair.a not in reactor.getReaders(), "the end was noticed")
    clock.advance(51)
    assert await deferToThread(pair.client.drain) == b""
    rig.close_peers()
    assert (await result).ended_by is End.STALLED_B


@pytest_twisted.ensureDeferred
async def test_reason_says_nothing_of_the_stream(rig, join, kinds):
    """The reason is a sentence, and has nothing of the stream in it."""
    pair = await rig.pair(kinds)
    result = join(pair.a, pair.b, first_to_a=b"secret")
    await deferToThread(pair.client.receive, 6)
    await deferToThread(pair.client.send, b"secret")
    await deferToThread(pair.server.receive, 6)
    rig.close_peers()
    outcome = await result
    assert isinstance(outcome, SpliceResult)
    assert outcome.reason.startswith(("A ", "B "))
    assert "secret" not in repr(outcome)


async def come_and_go(rig, join, kinds) -> None:
    """Splice once, from the first byte to the last."""
    pair = await rig.pair(kinds)
    result = join(pair.a, pair.b, terms=SpliceTerms(grace=0.01))
    await echo(pair)
    rig.close_peers()
    await result
    rig.forget()


def pieces() -> list[object]:
    """Return the objects of ours that a splice is made of, as far as they still exist.

    The hub and the pipes of the kernel are the reactor's and the process's, if they are not in use.
    """
    assert KERNEL_PIPES.lent == 0
    ours = [one for one in gc.get_objects() if str(type(one).__module__).startswith("mailroute.pipe")]
    return [
        one for one in ours if not isinstance(one, type | SpliceTerms | Enum | Hub | KernelPipes | KernelPipe)
    ]


def connections() -> int:
    return sum(isinstance(one, Connection | TLSMemoryBIOProtocol) for one in gc.get_objects())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest_twisted.ensureDeferred
async def test_nothing_is_left(rig, join):
    """Two hundred splices leave no file descriptor, no timer and no object."""
    kinds = [("tcp", "tcp"), ("tls", "tls"), ("unix", "unix"), ("starttls", "tcp")]
    for one in kinds:
        await come_and_go(rig, join, one)
    # A connection of an earlier test may still have its two seconds to end in.
    await until(lambda: waiting() == 0, "nobody waits")
    gc.collect()
    timers, files, before = waiting(), open_files(), connections()
    for number in range(200):
        await come_and_go(rig, join, kinds[number % 4])
    await deferLater(reactor, 0)
    gc.collect()
    assert pieces() == []
    assert connections() <= before
    assert waiting() == timers
    assert open_files() == files


@pytest_twisted.ensureDeferred
async def test_no_cycles(rig, join, kinds):
    """A splice that is over needs no garbage collector: ten thousand must not pile up until it comes."""
    gc.collect()
    gc.disable()
    try:
        await come_and_go(rig, join, kinds)
        await deferLater(reactor, 0)
        assert pieces() == []
    finally:
        gc.enable()
