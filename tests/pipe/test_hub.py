"""What only those splices promise whose sockets are served by the hub."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
from types import SimpleNamespace

import pytest
import pytest_twisted
from pipe.splice_rig import KINDS, PATIENCE, socket_under, until
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from mailroute.pipe import HELD_AT_MOST, End, SpliceTerms, kernel_pipes, socket_leg, splice
from mailroute.pipe.hub_leg import LAST_READS
from mailroute.pipe.kernel_pipes import CAPACITY, KernelPipe, KernelPipes
from mailroute.sockets import hub
from mailroute.sockets.hub import Hub, hub_of

PLAIN = [("tcp", "tcp"), ("unix", "unix")]
MEGABYTE = 1_000_000


@pytest.fixture
def pipes(monkeypatch):
    """The process's pipes, as many as the test says, and none in use yet."""

    def make(at_most: int) -> KernelPipes:
        made = KernelPipes(at_most)
        monkeypatch.setattr(socket_leg, "PIPES", made)
        return made

    return make


async def echo(pair) -> None:
    await deferToThread(pair.client.send, b"x")
    assert await deferToThread(pair.server.receive, 1) == b"x"
    await deferToThread(pair.server.send, b"y")
    assert await deferToThread(pair.client.receive, 1) == b"y"


async def exchange(pair, size: int) -> list[tuple[str, str]]:
    """Send so much from the client to the server."""
    return await gatherResults(
        [deferToThread(pair.client.exchange, size, 0), deferToThread(pair.server.exchange, 0, size)]
    )


@pytest_twisted.ensureDeferred
async def test_sockets_leave_the_reactor(rig, kinds):
    """A spliced session costs the reactor no reader and no transport of its own."""
    pair = await rig.pair(kinds)
    sockets = [socket_under(pair.a), socket_under(pair.b)]
    result = splice(pair.a, pair.b)
    await echo(pair)
    for transport in sockets:
        assert transport not in reactor.getReaders() + reactor.getWriters()
        assert not transport.connected
    assert sum(isinstance(reader, Hub) for reader in reactor.getReaders()) == 1
    rig.close_peers()
    await result


@pytest.mark.parametrize("kinds", PLAIN, ids="-".join)
@pytest_twisted.ensureDeferred
async def test_bulk_goes_through_the_kernel(rig, kinds, pipes):
    """A direction borrows a pipe while it is busy, and gives it back when it is not."""
    lent = pipes(10)
    pair = await rig.pair(kinds)
    most = []
    borrow = lent.borrow
    lent.borrow = lambda: (borrow(), most.append(lent.lent))[0]
    result = splice(pair.a, pair.b)
    await echo(pair)
    assert most == []
    digests = await exchange(pair, 50 * MEGABYTE)
    assert digests[0][0] == digests[1][1]
    assert set(most) == {1}
    await echo(pair)
    assert lent.lent == 0
    rig.close_peers()
    assert (await result).bytes_a_to_b == 50 * MEGABYTE + 2


@pytest.mark.parametrize("kinds", PLAIN, ids="-".join)
@pytest_twisted.ensureDeferred
async def test_pipes_are_bounded(rig, kinds, pipes):
    """Who gets no pipe copies its bytes, and loses none of them."""
    lent = pipes(1)
    pipe = lent.borrow()
    assert lent.borrow() is None
    pair = await rig.pair(kinds)
    result = splice(pair.a, pair.b)
    digests = await exchange(pair, 20 * MEGABYTE)
    assert digests[0][0] == digests[1][1]
    assert lent.lent == 1
    pipe.give_back()
    rig.close_peers()
    await result


@pytest_twisted.ensureDeferred
async def test_no_descriptors_for_pipes(rig, pipes, monkeypatch):
    """When no descriptors are left for a pipe, bulk is copied."""

    def no_more(_flags: int) -> None:
        raise OSError(24, "Too many open files")

    lent = pipes(10)
    monkeypatch.setattr(kernel_pipes.os, "pipe2", no_more)
    pair = await rig.pair()
    result = splice(pair.a, pair.b)
    digests = await exchange(pair, 5 * MEGABYTE)
    assert digests[0][0] == digests[1][1]
    assert lent.lent == 0
    rig.close_peers()
    await result


def test_a_pipe_with_something_in_it_is_not_lent_again():
    """What one session has left in a pipe never gets into another one's stream."""
    pipes = KernelPipes()
    first = pipes.borrow()
    os.write(first.sink, b"secret")
    first.held = 6
    first.give_back()
    second = pipes.borrow()
    assert second is not first
    with pytest.raises(BlockingIOError):
        os.read(second.source, 10)
    second.give_back()
    assert pipes.borrow() is second
    second.close()


@pytest_twisted.ensureDeferred
async def test_a_pipe_goes_back_to_its_lender(rig, pipes):
    """A pipe that is out counts with whoever has lent it, whoever lends them by then."""
    lent = pipes(2)
    pair = await rig.pair()
    for near in (pair.a, pair.b):
        # It takes a full read, which is a sign of bulk, and by far not all that there is.
        near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024)
    await gatherResults([deferToThread(pair.client.fill), deferToThread(pair.server.fill)])
    result = splice(pair.a, pair.b)
    await until(lambda: lent.lent == 2, "both directions have a pipe")
    later = pipes(2)
    rig.close_peers()
    await result
    assert (lent.lent, later.lent) == (0, 0)


def test_a_small_pipe_is_good_enough(monkeypatch):
    """A user who may not have large pipes gets what the kernel gives."""

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(kernel_pipes.fcntl, "fcntl", refused)
    pipe = KernelPipe(KernelPipes())
    os.write(pipe.sink, b"x")
    assert os.read(pipe.source, 10) == b"x"
    pipe.close()


def in_the_kernel(descriptor: int, request: int) -> int:
    return struct.unpack("i", fcntl.ioctl(descriptor, request, bytes(4)))[0]


@pytest.mark.parametrize(("at_most", "bound"), [(0, HELD_AT_MOST), (2, HELD_AT_MOST + 2 * CAPACITY)])
@pytest_twisted.ensureDeferred
async def test_what_is_not_in_the_sockets(rig, pipes, at_most, bound):
    """With nobody reading, what the sockets do not hold stays below the bound, and pipes hold the rest."""
    pipes(at_most)
    pair = await rig.pair()
    near = [os.dup(socket_under(transport).socket.fileno()) for transport in (pair.a, pair.b)]
    far = [pair.client.sock.fileno(), pair.server.sock.fileno()]
    result = splice(pair.a, pair.b)
    try:
        sent = await gatherResults([deferToThread(pair.client.fill), deferToThread(pair.server.fill)])
        waiting = sum(
            in_the_kernel(descriptor, request)
            for descriptor in (*near, *far)
            for request in (termios.FIONREAD, termios.TIOCOUTQ)
        )
    finally:
        for descriptor in near:
            os.close(descriptor)
    assert sum(sent) - waiting <= bound
    rig.close_peers()
    await result


@pytest_twisted.ensureDeferred
async def test_a_defect_costs_one_session(rig, monkeypatch):
    """If serving one socket fails, that session ends and the others go on."""

    def fail(_leg) -> None:
        raise ZeroDivisionError

    logged = []
    monkeypatch.setattr(hub, "_log", SimpleNamespace(failure=logged.append))
    pair, other = await rig.pair(), await rig.pair()
    result, going_on = splice(pair.a, pair.b), splice(other.a, other.b)
    await echo(pair)
    monkeypatch.setattr(socket_leg.SocketLeg, "receive", fail)
    await deferToThread(pair.client.send, b"x")
    await until(lambda: logged, "the defect is logged")
    monkeypatch.undo()
    await echo(other)
    rig.close_peers()
    assert (await result).ended_by is End.A
    assert not (await result).clean
    assert (await going_on).bytes_a_to_b == 1


@pytest_twisted.ensureDeferred
async def test_last_words_of_a_backend_that_is_gone(rig):
    """A backend that says goodbye and vanishes while the client still sends: its words arrive."""
    pair = await rig.pair()
    result = splice(pair.a, pair.b)
    await echo(pair)
    pair.server.send(b"* BYE\r\n")
    pair.client.send(b"more")
    pair.server.reset()
    assert await deferToThread(pair.client.drain) == b"* BYE\r\n"
    rig.close_peers()
    assert (await result).ended_by is End.B


@pytest_twisted.ensureDeferred
async def test_last_words_without_end(rig, monkeypatch):
    """A client that takes nothing any more and is never done sending does not keep the others waiting."""
    reads = []

    def endless(_leg: object) -> bool:
        reads.append(None)
        if len(reads) > 10 * LAST_READS:
            raise BlockingIOError
        return True

    monkeypatch.setattr(socket_leg.SocketLeg, "last_words", endless)
    pair = await rig.pair(("unix", "unix"))
    result = splice(pair.a, pair.b)
    await echo(pair)
    pair.client.sock.shutdown(socket.SHUT_RD)
    pair.server.send(b"it takes nothing")
    await deferToThread(pair.server.drain)
    rig.close_peers()
    assert (await result).ended_by is End.A
    assert len(reads) == LAST_READS


@pytest.mark.parametrize("kinds", [kinds for kinds in KINDS if kinds != ("unix", "unix")], ids="-".join)
@pytest_twisted.ensureDeferred
async def test_reset_of_a_paused_end_is_noticed(rig, kinds):
    """An end that is not read because the other is full is missed within 2 s when its peer is reset."""
    pair = await rig.pair(kinds, small=True)
    result = splice(pair.a, pair.b)
    await deferToThread(pair.client.fill)
    pair.client.reset()
    result.addTimeout(PATIENCE, reactor)
    outcome = await result
    assert outcome.ended_by is End.A
    assert outcome.duration < PATIENCE


@pytest.mark.parametrize("limit", ["stall_timeout", "idle_timeout"])
@pytest_twisted.ensureDeferred
async def test_a_peer_that_takes_little_by_little_is_not_stalled(rig, limit):
    """The time for a stall begins anew with every byte that is taken, and nobody is idle meanwhile."""
    clock = Clock()
    pair = await rig.pair(small=True)
    result = splice(pair.a, pair.b, clock=clock, terms=SpliceTerms(**{limit: 50}))
    while await deferToThread(pair.client.fill):
        pass
    for _ in range(4):
        clock.advance(40)
        assert not result.called
        # Whatever the kernel's buffers hold, read until more has gone into them.
        for _ in range(100):
            await deferToThread(pair.server.receive, 10_000)
            await deferToThread(pair.client.fill, 0.05, 10_000)
            if waiting() == [clock.seconds()]:
                break
        else:
            raise AssertionError("nothing moves")
    rig.close_peers()
    assert (await result).ended_by in (End.A, End.B)


def waiting() -> list[float]:
    """Since when the legs that wait for their peers have waited."""
    since = [getattr(member, "waiting_since", None) for member in hub_of(reactor)]
    return [moment for moment in since if moment is not None]


@pytest.mark.parametrize("end", ["a", "b"])
@pytest_twisted.ensureDeferred
async def test_one_end_of_twisteds(rig, kinds, end):
    """A socket in the hub and a transport of Twisted's are joined like any two."""
    rig.hub = end
    pair = await rig.pair(kinds)
    terms = SpliceTerms(grace=0.1)
    result = splice(pair.a, pair.b, first_to_a=b"to the client", first_to_b=b"to the server", terms=terms)
    assert await deferToThread(pair.client.receive, 13) == b"to the client"
    assert await deferToThread(pair.server.receive, 13) == b"to the server"
    digests = await gatherResults(
        [deferToThread(peer.exchange, 2 * MEGABYTE, 2 * MEGABYTE) for peer in (pair.client, pair.server)]
    )
    assert digests[0] == digests[1][::-1]
    leaving = deferToThread(pair.client.goodbye)
    assert await deferToThread(pair.server.drain) == b""
    await deferToThread(pair.server.goodbye)
    await leaving
    assert (await result).ended_by is End.A


@pytest.mark.parametrize("how", ["loseConnection", "abortConnection"])
@pytest_twisted.ensureDeferred
async def test_twisteds_end_is_on_its_way_out(rig, kinds, how):
    """If Twisted's end is closing when it is joined, the one in the hub gets its bytes and an end."""
    rig.hub = "a"
    pair = await rig.pair(kinds)
    getattr(pair.b, how)()
    if how == "abortConnection":
        await until(lambda: not pair.b.connected, "it is dead")
    result = splice(pair.a, pair.b, first_to_a=b"bye")
    assert await deferToThread(pair.client.drain) == b"bye"
    rig.close_peers()
    assert (await result).ended_by is End.B


@pytest_twisted.ensureDeferred
async def test_twisteds_end_comes_to_rest(rig):
    """If Twisted's end still has bytes to send, they go out before those of the splice."""
    rig.hub = "a"
    pair = await rig.pair()
    before = bytes(range(256)) * 40_000
    pair.b.write(before)
    result = splice(pair.a, pair.b, first_to_b=b"behind")
    assert await deferToThread(pair.server.receive, len(before) + 6) == before + b"behind"
    await echo(pair)
    rig.close_peers()
    await result
