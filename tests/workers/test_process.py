"""A worker as the parent sees it: what it is told, and how its end is noticed."""

from __future__ import annotations

import itertools
import json
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from twisted.internet.task import Clock
from workers.test_channel import Reactor

from mailroute.workers.process import Worker
from mailroute.workers.sockets import HeldPort
from mailroute.workers.supervisor import STOP_TIMEOUT


class ClockReactor(Reactor, Clock):
    """A reactor whose time the test makes pass."""

    def __init__(self) -> None:
        Clock.__init__(self)
        Reactor.__init__(self)


class Nursery:
    """Takes what it is told, and keeps each worker's end."""

    def __init__(self) -> None:
        self.workers: dict[int, Any] = {}
        self.keys = itertools.count()
        self.told: list[tuple[bytes, Any]] = []
        self.ends: list[tuple[socket.socket, int, list[int]]] = []
        self.there = True

    def alive(self) -> bool:
        return self.there

    def send(self, word: bytes, rest: bytes, descriptors: Sequence[int] = ()) -> None:
        self.told.append((word, json.loads(rest)))
        if word == b"make":
            channel, words, *sockets = map(os.dup, descriptors)
            self.ends.append((socket.socket(fileno=channel), words, sockets))


class Stage:
    """A nursery, two listeners, and workers."""

    def __init__(self) -> None:
        self.reactor = ClockReactor()
        self.nursery = Nursery()
        self.sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
        self.ports = [HeldPort(*self.sockets[:3]), HeldPort(self.sockets[3])]
        self.happened: list[str] = []

    def worker(self, place: int = 0) -> Worker:
        return Worker(
            place,
            self.nursery,  # type: ignore[arg-type]
            self.ports,
            self.reactor,
            lambda: self.happened.append("ready"),
            self.happened.append,
        )

    def end(self, worker: Worker, how: str) -> None:
        """Let the process end, and the nursery tell."""
        number = list(self.nursery.workers.values()).index(worker)
        channel, words, sockets = self.nursery.ends[number]
        channel.close()
        for descriptor in (words, *sockets):
            os.close(descriptor)
        self.nursery.workers.pop(number)
        worker.gone(how)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    for channel, words, sockets in stage.nursery.ends:
        if channel.fileno() >= 0:
            channel.close()
            for descriptor in (words, *sockets):
                os.close(descriptor)
    for worker in stage.nursery.workers.values():
        worker.channel.close()
        worker.words.close()
    for each in stage.sockets:
        each.close()


def test_it_gets_its_own_sockets(stage: Stage) -> None:
    """Of a port with a socket for each worker it gets the one of its place, of any other the only one."""
    stage.worker(place=2)
    word, asked = stage.nursery.told[0]
    assert (word, asked["place"], asked["families"]) == (b"make", 2, [socket.AF_INET] * 2)
    _, _, sockets = stage.nursery.ends[0]
    inodes = [os.fstat(descriptor).st_ino for descriptor in sockets]
    assert inodes == [os.fstat(stage.sockets[number].fileno()).st_ino for number in (2, 3)]


def test_its_end_leaves_nothing_to_be_done(stage: Stage) -> None:
    """When it has ended, no timer is left: whoever has its place next is not killed in its stead."""
    worker = stage.worker()
    channel, *_ = stage.nursery.ends[0]
    channel.send(b"ready 4711")
    worker.channel.doRead()
    stage.end(worker, "was killed by SIGKILL")
    assert stage.happened == ["ready", "was killed by SIGKILL"]
    assert worker.pid == 4711
    assert not stage.reactor.getDelayedCalls()
    assert not stage.reactor.readers
    stage.worker()
    stage.reactor.advance(10 * STOP_TIMEOUT)
    assert [word for word, _ in stage.nursery.told] == [b"make", b"make"]


def test_one_that_closes_its_channel_is_killed(stage: Stage) -> None:
    """A worker that is not to be talked to has to end, and is told apart from any other by its key."""
    first, second = stage.worker(0), stage.worker(0)
    stage.nursery.ends[1][0].close()
    second.channel.drain()
    stage.reactor.advance(STOP_TIMEOUT)
    keys = [asked["key"] for word, asked in stage.nursery.told if word == b"make"]
    assert stage.nursery.told[-1] == (b"kill", keys[1])
    assert keys[0] != keys[1]
    assert stage.happened == []
    assert first.channel.open


def test_last_words_come_before_the_end(stage: Stage) -> None:
    """What it has written to its standard error is read before its end is told."""
    worker = stage.worker()
    os.write(stage.nursery.ends[0][1], b"RuntimeError: no more")
    stage.end(worker, "ended with status 1")
    assert worker.words.last == "RuntimeError: no more"
    assert worker.how == "ended with status 1"


def test_without_the_nursery_its_channel_tells(stage: Stage) -> None:
    """If nobody can see how it ends, that its end of the channel is closed is enough."""
    worker = stage.worker()
    stage.nursery.there = False
    worker.unseen()
    assert stage.happened == []
    stage.nursery.ends[0][0].close()
    worker.channel.drain()
    assert stage.happened == ["is gone"]
    assert not stage.nursery.workers
    assert not stage.reactor.getDelayedCalls()


def test_it_helps_with_the_sockets_that_are_not_everybodys(stage: Stage) -> None:
    """Whoever helps out gets the other's own sockets; those that all have, it has."""
    worker = stage.worker()
    channel, *_ = stage.nursery.ends[0]
    worker.adopt(1)
    message, descriptors, _, _ = socket.recv_fds(channel, 1000, 10)
    word, _, rest = message.partition(b" ")
    assert (word, json.loads(rest)) == (b"adopt", {"place": 1, "listeners": [0]})
    assert [os.fstat(each).st_ino for each in descriptors] == [os.fstat(stage.sockets[1].fileno()).st_ino]
    os.close(descriptors[0])
    worker.drop(1)
    worker.stop()
    assert [channel.recv(100), channel.recv(100)] == [b"drop 1", b"stop "]
