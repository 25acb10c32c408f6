"""Questions to a worker: answered in pieces, given up, or never answered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.testing import MemoryReactorClock

from mailroute.workers.channel import MAX_MESSAGE, Channel, pair
from mailroute.workers.questions import MAX_PIECE, Questions, reply


class Ends:
    """Both ends of a channel; what a worker is asked is kept, and answered when the test says so."""

    def __init__(self) -> None:
        ours, theirs = pair()
        reactor = MemoryReactorClock()  # it watches nothing: the test reads
        self.asked: list[bytes] = []
        self.lengths: list[int] = []
        self.parent = Channel(ours, reactor, self._received, lambda: self.questions.lost())
        self.worker = Channel(
            theirs, reactor, lambda _word, rest, _fds: self.asked.append(rest), lambda: None
        )
        self.questions = Questions(self.parent, b"what")

    def _received(self, word: bytes, rest: bytes, _: object) -> None:
        assert word == b"what"
        self.lengths.append(len(word) + 1 + len(rest))
        self.questions.received(rest)

    def answer(self, text: bytes) -> None:
        """Have the worker answer what it was asked first."""
        self.worker.drain()
        reply(self.worker, b"what", self.asked.pop(0), text)
        self.worker.doWrite()
        self.parent.drain()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.parent.close()
    ends.worker.close()


@pytest.mark.parametrize("length", [0, 1, MAX_PIECE, MAX_PIECE + 1, 5 * MAX_PIECE])
def test_an_answer_may_have_any_length(ends: Ends, length: int) -> None:
    """What is longer than a message arrives whole, and no message is longer than may be."""
    text = bytes(range(256)) * (length // 256) + b" " * (length % 256)
    answer = ends.questions.ask()
    ends.answer(text)
    assert answer.result == text
    assert max(ends.lengths) <= MAX_MESSAGE


def test_each_question_has_its_own_answer(ends: Ends) -> None:
    """Questions may be asked before the last one is answered."""
    first, second = ends.questions.ask(), ends.questions.ask()
    ends.answer(b"one")
    ends.answer(b"two")
    assert (first.result, second.result) == (b"one", b"two")


def test_an_answer_that_comes_too_late_is_nobody_s(ends: Ends) -> None:
    """Who has given up is not told, and the next one gets no other's answer."""
    first = ends.questions.ask()
    first.addErrback(lambda _: "given up")
    first.cancel()
    second = ends.questions.ask()
    ends.answer(b"one")
    assert first.result == "given up"
    assert not second.called
    ends.answer(b"two")
    assert second.result == b"two"


def test_who_is_gone_does_not_answer(ends: Ends) -> None:
    """A worker that goes ends the waiting, and so does one that has gone before it is asked."""
    before = ends.questions.ask()
    ends.worker.close()
    ends.parent.drain()
    assert before.result is None
    assert ends.questions.ask().result is None


def test_half_an_answer_is_none(ends: Ends) -> None:
    """A worker that goes in the middle of its answer has not answered."""
    answer = ends.questions.ask()
    ends.worker.drain()
    ends.worker.send(b"what", ends.asked[0] + b" 1 half")
    ends.worker.close()
    ends.parent.drain()
    assert answer.result is None
