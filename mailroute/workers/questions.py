"""A question of the parent's to a worker, and the answer, over the channel that they have.

The answer may be longer than a message: it comes in pieces.  Each says for
which question it is and how many are still to come.
"""

from __future__ import annotations

import itertools

from twisted.internet.defer import Deferred, succeed

from mailroute.workers.channel import MAX_MESSAGE, Channel

FIGURES = b"metrics"
"""Asks for the metrics of a worker."""

MAX_PIECE = MAX_MESSAGE // 2
"""Bytes of a piece of an answer."""


class Questions:
    """The parent's side: asks a worker, as often as is liked, one word.

    :param word: the question, which is the answer's word too.
    """

    def __init__(self, channel: Channel, word: bytes) -> None:
        self._channel = channel
        self._word = word
        self._numbers = itertools.count()
        self._open: dict[int, tuple[Deferred[bytes | None], list[bytes]]] = {}

    def ask(self) -> Deferred[bytes | None]:
        """Return the answer; None if the worker is gone, or goes before it has answered.

        Whoever cancels the Deferred does not hear an answer that comes too late.
        """
        if not self._channel.open:
            return succeed(None)
        number = next(self._numbers)
        answer: Deferred[bytes | None] = Deferred(lambda _: self._forget(number))
        self._open[number] = answer, []
        self._channel.send(self._word, b"%d" % number)
        return answer

    def _forget(self, number: int) -> None:
        del self._open[number]

    def received(self, rest: bytes) -> None:
        """Take a piece of an answer."""
        number, left, piece = rest.split(b" ", 2)
        if int(number) not in self._open:
            return  # nobody waits any longer
        answer, pieces = self._open[int(number)]
        pieces.append(piece)
        if left == b"0":
            del self._open[int(number)]
            answer.callback(b"".join(pieces))

    def lost(self) -> None:
        """The worker is gone."""
        waiting, self._open = list(self._open.values()), {}
        for answer, _ in waiting:
            answer.callback(None)


def reply(channel: Channel, word: bytes, number: bytes, answer: bytes) -> None:
    """Answer a question of the parent's, in a worker.

    :param number: what came with the question.
    """
    pieces = [answer[first : first + MAX_PIECE] for first in range(0, len(answer), MAX_PIECE)] or [b""]
    for left, piece in zip(reversed(range(len(pieces))), pieces, strict=True):
        if not channel.send(word, b"%s %d %s" % (number, left, piece)):
            break  # the parent takes nothing, and waits for nothing either
