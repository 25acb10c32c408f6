"""How one end's close reaches the other."""

from __future__ import annotations

import contextlib
import socket
import ssl

import pytest
import pytest_twisted
from pipe.splice_rig import KINDS, PIPES, is_open, until, wiring
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.internet.threads import deferToThread

from mailroute.pipe import End, SpliceTerms

PLAIN = [("tcp", "tcp"), ("unix", "unix")]
INTO_TLS = [("tcp", "tls"), ("tcp", "starttls")]
BULK = 3_000_000


@pytest.mark.parametrize("kinds", PLAIN, ids="-".join)
@pytest_twisted.ensureDeferred
async def test_half_close_both_ways(rig, join, kinds):
    """An end that has finished sending still gets the whole answer, then the other's end."""
    pair = await rig.pair(kinds)
    result = join(pair.a, pair.b)
    sending = deferToThread(pair.client.send, bytes(BULK))
    assert await deferToThread(pair.server.receive, BULK) == bytes(BULK)
    await sending
    await deferToThread(pair.client.finish)
    assert await deferToThread(pair.server.drain) == b""
    sending = deferToThread(pair.server.send, bytes(BULK))
    assert await deferToThread(pair.client.receive, BULK) == bytes(BULK)
    await sending
    await deferToThread(pair.server.finish)
    assert await deferToThread(pair.client.drain) == b""
    outcome = await result
    assert (outcome.ended_by, outcome.clean) == (End.A, True)
    assert outcome.bytes_b_to_a == BULK


@pytest.mark.parametrize("kinds", PLAIN, ids="-".join)
@pytest_twisted.ensureDeferred
async def test_half_close_behind_a_slow_reader(rig, join, kinds):
    """The end of a stream waits for its bytes to be taken, and does not overtake them."""
    pair = await rig.pair(kinds)
    result = join(pair.a, pair.b)
    sent = await deferToThread(pair.client.fill)
    await deferToThread(pair.client.finish)
    assert len(await deferToThread(pair.server.drain)) == sent
    await deferToThread(pair.server.send, b"thanks")
    pair.server.sock.close()
    assert await deferToThread(pair.client.drain) == b"thanks"
    assert (await result).clean


class PausedOnce:
    """A producer that a transport has had before it was spliced."""

    def __init__(self) -> None:
        self.paused = False

    def pauseProducing(self) -> None:
        self.paused = True

    def stopProducing(self) -> None:
        pass

    resumeProducing = stopProducing


@pytest.mark.parametrize("pipe", ["wiring", "best"])  # sockets in the hub have no producers
@pytest.mark.parametrize("kinds", PLAIN, ids="-".join)
@pytest_twisted.ensureDeferred
async def test_half_close_after_another_producer(rig, pipe, kinds):
    """A half-close is passed on though the transport believes that it has a producer paused."""
    join = PIPES[pipe]
    pair = await rig.pair(kinds)
    producer = PausedOnce()
    pair.b.registerProducer(producer, True)
    pair.b.write(bytes(BULK))
    assert producer.paused
    pair.b.unregisterProducer()
    assert await deferToThread(pair.server.receive, BULK) == bytes(BULK)
    await until(lambda: pair.b not in reactor.getWriters(), "all is sent")
    result = join(pair.a, pair.b)
    await deferToThread(pair.client.finish)
    assert await deferToThread(pair.server.drain) == b""
    pair.server.sock.close()
    assert await deferToThread(pair.client.drain) == b""
    assert (await result).clean


@pytest.mark.parametrize("kinds", [("tls", "tcp"), ("starttls", "tls")], ids="-".join)
@pytest_twisted.ensureDeferred
async def test_goodbye_of_a_full_tls_end(rig, join, kinds):
    """A TLS end that says goodbye with bytes still waiting for it is closed once it has taken them."""
    pair = await rig.pair(kinds)
    result = join(pair.a, pair.b)
    await deferToThread(pair.server.fill)

    def leave_without_reading() -> None:
        with contextlib.suppress(ssl.SSLError):
            pair.client.sock.unwrap()
        # What is left of TLS is of no interest, only the socket's end.
        while socket.socket.recv(pair.client.sock, 65536):
            pass

    await deferToThread(leave_without_reading)
    rig.close_peers()
    assert (await result).ended_by is End.A


@pytest.mark.parametrize("kinds", INTO_TLS, ids="-".join)
@pytest_twisted.ensureDeferred
async def test_half_close_into_tls_lets_the_answer_through(rig, join, kinds, clock):
    """TLS cannot be told of a half-close: it may answer till it is silent, then it is told goodbye."""
    pair = await rig.pair(kinds)
    result = join(pair.a, pair.b, terms=SpliceTerms(grace=5), clock=clock)
    await deferToThread(pair.client.send, b"last words")
    await deferToThread(pair.client.finish)
    assert await deferToThread(pair.server.receive, 10) == b"last words"
    await until(lambda: pair.a not in reactor.getReaders(), "the end was noticed")
    for _ in range(3):
        clock.advance(4)
        await deferToThread(pair.server.send, b"answer")
        assert await deferToThread(pair.client.receive, 6) == b"answer"
    clock.advance(6)
    assert await deferToThread(pair.server.drain) == b""
    await deferToThread(pair.server.goodbye)
    assert await deferToThread(pair.client.drain) == b""
    outcome = await result
    assert (outcome.ended_by, outcome.clean, outcome.bytes_b_to_a) == (End.A, True, 18)


@pytest.mark.parametrize("kinds", [("tls", "tcp"), ("starttls", "tcp"), ("tls", "unix")], ids="-".join)
@pytest_twisted.ensureDeferred
async def test_the_answering_sides_end_reaches_a_tls_client_at_once(rig, join, kinds, clock):
    """A server that has said its last word is not waited for: its client is told goodbye at once."""
    pair = await rig.pair(kinds)
    result = join(pair.a, pair.b, clock=clock)
    await deferToThread(pair.server.send, b"* BYE")
    await deferToThread(pair.server.finish)
    assert await deferToThread(pair.client.drain) == b"* BYE"
    await deferToThread(pair.client.goodbye)
    assert await deferToThread(pair.server.drain) == b""
    rig.close_peers()
    outcome = await result
    assert (outcome.ended_by, outcome.clean) == (End.B, True)


@pytest.mark.parametrize("closer", ["client", "server"])
@pytest_twisted.ensureDeferred
async def test_clean_end(rig, join, kinds, closer):
    """An end in good order gives the other all the bytes, and then an end in good order (close_notify)."""
    pair = await rig.pair(kinds)
    near, far = (pair.client, pair.server) if closer == "client" else (pair.server, pair.client)
    result = join(pair.a, pair.b, terms=SpliceTerms(grace=0.1))

    def speak_and_leave() -> None:
        near.send(bytes(BULK))
        near.goodbye()

    leaving = deferToThread(speak_and_leave)
    # The far end's drain raises if its stream is cut short.
    assert await deferToThread(far.drain) == bytes(BULK)
    await deferToThread(far.goodbye)
    await leaving
    outcome = await result
    assert outcome.ended_by is (End.A if closer == "client" else End.B)
    assert outcome.clean


@pytest.mark.parametrize("closer", ["client", "server"])
@pytest_twisted.ensureDeferred
async def test_broken_end(rig, join, kinds, closer):
    """When one end's connection breaks, the other gets what there is, and an end in good order."""
    pair = await rig.pair(kinds)
    near, far = (pair.client, pair.server) if closer == "client" else (pair.server, pair.client)
    result = join(pair.a, pair.b)
    await deferToThread(near.send, b"so far")
    assert await deferToThread(far.receive, 6) == b"so far"
    near.reset()
    assert await deferToThread(far.drain) == b""
    await deferToThread(far.goodbye)
    outcome = await result
    assert outcome.ended_by is (End.A if closer == "client" else End.B)
    assert outcome.clean is (kinds == ("unix", "unix"))


@pytest_twisted.ensureDeferred
async def test_reset_of_the_end_that_is_full(rig, join, kinds):
    """The reset of an end that takes no bytes is noticed though the other is paused because of it."""
    pair = await rig.pair(kinds)
    result = join(pair.a, pair.b)
    await deferToThread(pair.client.fill)
    pair.server.reset()
    await until(lambda: not pair.b.connected, "the reset was noticed")
    rig.close_peers()
    outcome = await result
    assert outcome.ended_by is End.B
    assert not outcome.clean


@pytest.mark.parametrize(
    ("pipe", "kinds"),
    # A UNIX socket cannot break, but for what its transport does.
    [(pipe, kinds) for pipe in PIPES for kinds in KINDS if pipe == "wiring" or kinds != ("unix", "unix")],
)
@pytest_twisted.ensureDeferred
async def test_broken_end_has_little_patience(rig, pipe, kinds, clock):
    """Once one end is broken, a peer that does not read is cut off in seconds."""
    rig.hub = pipe == "hub"
    pair = await rig.pair(kinds, small=True)
    result = PIPES[pipe](pair.a, pair.b, clock=clock, terms=SpliceTerms(linger=30, broken_linger=2, grace=40))
    await deferToThread(pair.client.fill)
    await until(lambda: pair.a not in reactor.getReaders(), "a is paused")
    pair.break_a()
    await until(lambda: clock.getDelayedCalls()[0].getTime() < 3, "a is gone")
    clock.advance(1.5)
    assert not result.called
    clock.advance(1)
    await until(lambda: result.called, "b was cut off")
    outcome = await result
    assert outcome.ended_by is End.A
    assert not outcome.clean


@pytest.mark.parametrize("kinds", [("tls", "tcp"), ("tls", "tls"), ("starttls", "tcp")], ids="-".join)
@pytest_twisted.ensureDeferred
async def test_linger(rig, join, kinds, clock):
    """After an end in good order, a peer that does not read is cut off when the linger time is over."""
    pair = await rig.pair(kinds)
    pair.b.write(bytes(20_000_000))
    result = join(pair.a, pair.b, clock=clock, terms=SpliceTerms(linger=30))
    await deferToThread(pair.client.goodbye)
    await until(lambda: not is_open(pair.a), "a is gone")
    clock.advance(29)
    assert not result.called
    clock.advance(2)
    outcome = await result
    assert outcome.ended_by is End.A
    assert not outcome.clean


@pytest_twisted.ensureDeferred
async def test_bytes_unread_do_not_become_a_reset(rig, join):
    """A peer that is still sending when the other end closes gets its last bytes and no reset."""
    pair = await rig.pair(("tls", "tcp"))
    result = join(pair.a, pair.b)
    talking = deferToThread(pair.server.send, bytes(BULK))
    assert await deferToThread(pair.client.receive, BULK) == bytes(BULK)
    await talking
    await deferToThread(pair.client.send, b"bye")
    leaving = deferToThread(pair.client.goodbye)
    assert await deferToThread(pair.server.drain) == b"bye"
    await deferToThread(pair.server.send, b"too late")
    await deferToThread(pair.server.finish)
    await leaving
    pair.server.sock.close()
    outcome = await result
    assert outcome.clean
    assert outcome.bytes_b_to_a == BULK


@pytest.mark.parametrize("how", ["loseConnection", "abortConnection"])
@pytest.mark.parametrize("dead", ["a", "b"])
@pytest_twisted.ensureDeferred
async def test_dead_before_the_splice(rig, join, kinds, dead, how):
    """A transport that is dead, or dying, when it is spliced: the other gets its bytes, and all ends."""
    pair = await rig.pair(kinds)
    getattr(getattr(pair, dead), how)()
    if how == "abortConnection":
        await until(lambda: not getattr(pair, dead).connected, "it is dead")
    first = {"first_to_b": b"bye"} if dead == "a" else {"first_to_a": b"bye"}
    far = pair.server if dead == "a" else pair.client
    result = join(pair.a, pair.b, **first)
    assert await deferToThread(far.drain) == b"bye"
    rig.close_peers()
    assert (await result).ended_by is (End.A if dead == "a" else End.B)


@pytest_twisted.ensureDeferred
async def test_both_dead_before_the_splice(rig, join, kinds):
    """Two dead transports have a result at once."""
    pair = await rig.pair(kinds)
    pair.a.abortConnection()
    pair.b.abortConnection()
    await until(lambda: not pair.a.connected and not pair.b.connected, "both are dead")
    result = join(pair.a, pair.b, first_to_a=b"x", first_to_b=b"x")
    assert result.called
    assert not (await result).clean


@pytest_twisted.ensureDeferred
async def test_abort_while_it_runs(rig, kinds):
    """A transport still in use, aborted by somebody else, ends the splice like a broken connection."""
    pair = await rig.pair(kinds)
    result = wiring(pair.a, pair.b)
    pair.a.abortConnection()
    assert await deferToThread(pair.server.drain) == b""
    rig.close_peers()
    outcome = await result
    assert (outcome.ended_by, outcome.clean) == (End.A, False)


@pytest_twisted.ensureDeferred
async def test_cancel(rig, join, kinds):
    """Cancelling closes both ends in good order, fails as Deferreds do, and says what has passed."""
    pair = await rig.pair(kinds)
    result = join(pair.a, pair.b, first_to_a=b"hi")
    await deferToThread(pair.client.send, b"hello")
    assert await deferToThread(pair.server.receive, 5) == b"hello"
    assert await deferToThread(pair.client.receive, 2) == b"hi"
    result.cancel()
    with pytest.raises(CancelledError) as cancelled:
        await result
    assert (cancelled.value.bytes_a_to_b, cancelled.value.bytes_b_to_a) == (5, 2)
    assert await deferToThread(pair.client.drain) == b""
    assert await deferToThread(pair.server.drain) == b""
    rig.close_peers()
    await until(lambda: not pair.a.connected and not pair.b.connected, "both are closed")


@pytest_twisted.ensureDeferred
async def test_cancel_while_it_lingers(rig, join, clock):
    """Cancelling a splice that only waits for a slow reader shortens the wait."""
    pair = await rig.pair(("tls", "tcp"))
    pair.b.write(bytes(20_000_000))
    result = join(pair.a, pair.b, clock=clock)
    await deferToThread(pair.client.goodbye)
    await until(lambda: not is_open(pair.a), "a is gone")
    result.cancel()
    with pytest.raises(CancelledError):
        await result
    clock.advance(1)
    assert is_open(pair.b)
    clock.advance(2)
    await until(lambda: not is_open(pair.b), "b is cut off")
    clock.advance(1)
    assert clock.getDelayedCalls() == []
