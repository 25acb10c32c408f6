"""Every byte arrives, in order, and few are ever held."""

from __future__ import annotations

import hashlib
import select
import time
import tracemalloc

import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipe.splice_rig import KINDS, PATIENCE, PIPES, Rig
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from mailroute.pipe import HELD_AT_MOST, End, SpliceTerms

MEGABYTE = 1 << 20


async def exchange(pair, a_to_b: int, b_to_a: int):
    """Pour bytes both ways at once, and check what arrives."""
    (sent_a, got_a), (sent_b, got_b) = await gatherResults(
        [
            deferToThread(pair.client.exchange, a_to_b, b_to_a),
            deferToThread(pair.server.exchange, b_to_a, a_to_b),
        ],
        consumeErrors=True,
    )
    assert (got_a, got_b) == (sent_b, sent_a)


@pytest_twisted.ensureDeferred
async def test_megabytes_both_ways(rig, join, kinds):
    """Many megabytes both ways at once arrive byte for byte, and are counted."""
    size = 64 * MEGABYTE
    pair = await rig.pair(kinds)
    result = join(pair.a, pair.b, terms=SpliceTerms(grace=0.1))
    await exchange(pair, size, size)
    await deferToThread(pair.client.goodbye)
    assert await deferToThread(pair.server.drain) == b""
    pair.server.sock.close()
    outcome = await result
    assert (outcome.bytes_a_to_b, outcome.bytes_b_to_a) == (size, size)
    assert outcome.ended_by is End.A
    assert outcome.clean


@pytest_twisted.ensureDeferred
async def test_first_bytes(rig, join, kinds):
    """The first bytes come before all others, and are counted."""
    pair = await rig.pair(kinds)
    await deferToThread(pair.client.send, b"from the client")
    await deferToThread(pair.server.send, b"from the server")
    result = join(pair.a, pair.b, first_to_a=b"welcome, ", first_to_b=b"login, ")
    assert await deferToThread(pair.client.receive, 24) == b"welcome, from the server"
    assert await deferToThread(pair.server.receive, 22) == b"login, from the client"
    rig.close_peers()
    outcome = await result
    assert (outcome.bytes_a_to_b, outcome.bytes_b_to_a) == (22, 24)


@pytest_twisted.ensureDeferred
async def test_old_protocols_hear_nothing_more(rig, join, kinds):
    """The protocols that held the transports before are told neither of bytes nor of the end."""
    pair = await rig.pair(kinds)
    result = join(pair.a, pair.b)
    await deferToThread(pair.client.send, b"hello")
    assert await deferToThread(pair.server.receive, 5) == b"hello"
    rig.close_peers()
    await result
    assert pair.holder_a.heard == b""
    assert not pair.holder_a.lost.called
    assert not pair.holder_b.lost.called


@pytest_twisted.ensureDeferred
async def test_held_bytes_are_bounded(rig, join, kinds):
    """With nobody reading, both directions together hold no more than the bound, copies included."""
    pair = await rig.pair(kinds)
    meter = pair.meter()
    block = bytes(16384)
    tracemalloc.start()
    try:
        result = join(pair.a, pair.b)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        sent_a, sent_b = await gatherResults(
            [deferToThread(pair.client.fill), deferToThread(pair.server.fill)]
        )
        if pair.client.tls or pair.server.tls:
            pair.client.sock.close()
            pair.server.sock.close()
        else:
            await gatherResults(
                [
                    deferToThread(pair.client.exchange, 0, sent_b, 4096),
                    deferToThread(pair.server.exchange, 0, sent_a, 4096),
                ]
            )
            rig.close_peers()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    await result
    assert min(sent_a, sent_b) > len(block)
    assert meter.blind or meter.peak <= HELD_AT_MOST
    assert peak - before <= HELD_AT_MOST


@pytest_twisted.ensureDeferred
async def test_slow_reader(rig, join, kinds):
    """A reader slower than the writer gets every byte, and the rest waits in the kernel."""
    pair = await rig.pair(kinds)
    meter = pair.meter()
    result = join(pair.a, pair.b)
    # The meter reads the wire: where only one end has TLS, its records' headers add up in it.
    size = (200 if kinds[0] == kinds[1] else 32) * MEGABYTE
    (sent, _), (_, got) = await gatherResults(
        [deferToThread(pair.client.exchange, size, 0), deferToThread(pair.server.exchange, 0, size, 8192)]
    )
    assert got == sent
    assert meter.blind or meter.peak <= HELD_AT_MOST
    rig.close_peers()
    await result


def converse(client, server, steps) -> None:
    """Send and read bits at a time, then read what is left; all must be what was sent."""
    sent = {"client": b"", "server": b""}
    waiting = {"client": b"", "server": b""}
    got = {"client": b"", "server": b""}
    peers = {"client": client, "server": server}
    other = {"client": "server", "server": "client"}
    for peer in peers.values():
        peer.sock.setblocking(False)

    def push(who: str) -> None:
        while waiting[who] and (count := peers[who]._try(peers[who].sock.send, waiting[who])):
            waiting[who] = waiting[who][count:]

    def pull(who: str, size: int) -> None:
        while size and (part := peers[who]._try(peers[who].sock.recv, size)):
            got[who] += part
            size -= len(part)

    for number, (who, sends, size) in enumerate(steps):
        if sends:
            data = hashlib.shake_128(b"%d" % number).digest(size)
            sent[who] += data
            waiting[who] += data
        else:
            pull(who, size)
        push(who)
    deadline = time.monotonic() + PATIENCE
    while any(len(got[who]) < len(sent[other[who]]) for who in peers):
        assert time.monotonic() < deadline
        for who in peers:
            push(who)
            pull(who, 1 << 20)
        select.select([peer.sock for peer in peers.values()], [], [], 0.001)
    assert got["client"] == sent["server"]
    assert got["server"] == sent["client"]


steps = st.lists(
    st.tuples(st.sampled_from(["client", "server"]), st.booleans(), st.integers(1, 300_000)), max_size=20
)


# Kinds and pipes are drawn: pytest-twisted cannot run a test with both parameters and examples.
@given(
    pipe=st.sampled_from(list(PIPES)),
    kinds=st.sampled_from(KINDS),
    steps=steps,
    first=st.binary(max_size=40),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest_twisted.ensureDeferred
async def test_any_conversation(credentials, pipe, kinds, steps, first):
    """Whatever is sent in whatever pieces, and read or left lying, arrives byte for byte."""
    rig = Rig(credentials)
    rig.hub = pipe == "hub"
    try:
        pair = await rig.pair(kinds, small=True)
        result = PIPES[pipe](pair.a, pair.b, first_to_a=first)
        assert await deferToThread(pair.client.receive, len(first)) == first
        await deferToThread(converse, pair.client, pair.server, steps)
        rig.close_peers()
        await result
    finally:
        await rig.close()
