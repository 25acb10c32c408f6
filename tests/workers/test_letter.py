"""What the nursery is given, who it becomes, and what it says."""

from __future__ import annotations

import mmap
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import eventAsText, globalLogPublisher
from workers.test_channel import Reactor

from mailroute.config import Source
from mailroute.workers.counts import Layout
from mailroute.workers.letter import Letter, post
from mailroute.workers.nursery import Identity, LateReactor
from mailroute.workers.words import MAX_WORDS, Words

SECRET = "wonderland"


@pytest.fixture
def letter() -> Letter:
    source = Source(Path("/etc"), {"listen": [{"authenticate": SECRET}]}, {Path("key.pem"): SECRET.encode()})
    return Letter("twisted.internet.epollreactor", source, Layout(2, 0), SECRET.encode(), SECRET.encode())


def test_a_letter_arrives_as_it_was_posted(letter: Letter) -> None:
    """Python's path comes first, then the letter; both can be read more than once."""
    descriptor = post(letter)
    try:
        for _ in range(2):
            with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as memory:
                assert pickle.load(memory) == sys.path  # noqa: S301
                assert pickle.load(memory) == letter  # noqa: S301
    finally:
        os.close(descriptor)


def test_nobody_can_change_a_letter(letter: Letter) -> None:
    """Whoever has the descriptor can read, and nothing else: a worker made later gets the same."""
    descriptor = post(letter)
    try:
        for spoil in (lambda: os.write(descriptor, b"x"), lambda: os.ftruncate(descriptor, 0)):
            with pytest.raises(PermissionError):
                spoil()
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, 0, access=mmap.ACCESS_WRITE)
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_a_letter_keeps_its_secrets(letter: Letter) -> None:
    """No repr shows what is in it."""
    assert SECRET not in repr(letter)


def test_who_one_is_already_one_can_become() -> None:
    """Becoming what one is changes nothing, and needs no privilege."""
    mine = Identity.mine()
    folders = [os.open(name, os.O_PATH | os.O_DIRECTORY) for name in ("/", ".")]
    try:
        mine.assume(*folders)
    finally:
        for folder in folders:
            os.close(folder)
    assert Identity.mine() == mine


def test_a_reactor_that_is_not_there_yet_installs_none() -> None:
    """Looking at it, as libraries do, does not make a reactor before the right one is chosen."""
    late = LateReactor()
    assert not hasattr(late, "__provides__")
    assert not hasattr(late, "__conform__")
    from twisted.internet import reactor

    assert late.callLater == reactor.callLater


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []

    def keep(event: dict[str, Any]) -> None:
        lines.append(eventAsText(event, includeTimestamp=False, includeSystem=False))

    globalLogPublisher.addObserver(keep)
    yield lines
    globalLogPublisher.removeObserver(keep)


def test_what_a_process_says_is_logged_line_by_line(said: list[str]) -> None:
    """A line is logged once it is whole, or the process has ended; whatever bytes there are."""
    out, into = os.pipe()
    words = Words("worker 7", out, Reactor())
    os.write(into, b"Traceback:\n  File \xff\n\nrest")
    words.doRead()
    assert said == ["worker 7 says: Traceback:", "worker 7 says:   File \\xff"]
    os.write(into, b" of it")
    os.close(into)
    words.drain()
    assert said[2:] == ["worker 7 says: rest of it"]
    assert words.last == "rest of it"
    assert words.fileno() == -1


def test_long_lines_come_in_pieces(said: list[str]) -> None:
    """A process that says much without end costs no memory."""
    out, into = os.pipe()
    reactor = Reactor()
    words = Words("worker 7", out, reactor)
    for _ in range(5):
        os.write(into, b"x" * 3000)
        words.doRead()
    os.close(into)
    words.drain()
    assert max(map(len, said)) <= MAX_WORDS + len("worker 7 says: ")
    assert sum(line.count("x") for line in said) == 15000
    assert not reactor.readers
