"""The message on its way from the client, cut into pieces and looked at."""

from __future__ import annotations

from mailroute.dialogs.smtp.bounds import PIECE
from mailroute.envelope import Chunk, End, Obstacle, Piece, Spoilt
from mailroute.wire.lines import LineReader
from mailroute.wire.smtp_data import ContentCheck, DataReader

AT_ONCE = 1 << 16
"""Bytes to look at in one go."""


class Content:
    """One message, whether it comes with DATA or with BDAT.

    A message that is found bad, or too large, is read to its end all the same,
    which is where the client hears of it; but nothing more of it is passed on.

    :param limit: bytes that it may have, 0 for any number.
    :ivar ended: the message, or the chunk, has come to its end.
    """

    def __init__(self, limit: int, *, chunked: bool = False) -> None:
        self._limit = limit
        self._size = self._wanted = 0
        self._last = True
        self._spoilt = False
        self._data = None if chunked else DataReader()
        self._check = ContentCheck()
        self.ended = False

    @property
    def adrift(self) -> bool:
        """Whether the client may think that the message ends elsewhere, and its commands begin there."""
        return self._data is not None and self._data.bad

    def begin_chunk(self, chunk: Chunk) -> list[Chunk | Spoilt]:
        """Take a chunk; an empty last one ends the message by its command, which shall not end it badly."""
        self._wanted, self._last = chunk.size, chunk.last
        self.ended = False
        if self._spoilt:
            return []
        if chunk.last and not chunk.size and self._check.ends_badly():
            self._spoilt = True
            return [Spoilt(Obstacle.BAD_LINE_ENDS)]
        return [chunk]

    def read(self, reader: LineReader) -> list[Piece | End | Spoilt]:
        """Take what the reader has of it."""
        events: list[Piece | End | Spoilt] = []
        while True:
            data = self._read_data(reader) if self._data is not None else self._read_chunk(reader)
            obstacle = self._look_at(data)
            if obstacle is not None and not self._spoilt:
                self._spoilt = True
                events.append(Spoilt(obstacle))
            if not self._spoilt:
                events += [Piece(data[at : at + PIECE]) for at in range(0, len(data), PIECE)]
            if self.ended:
                events.append(End(self._last))
            if self.ended or not len(reader):
                return events

    def _read_data(self, reader: LineReader) -> bytes:
        assert self._data is not None  # noqa: S101 (asked by the caller)
        data, rest = self._data.feed(reader.take(AT_ONCE))
        reader.give_back(rest)
        self.ended = self._data.done
        return data

    def _read_chunk(self, reader: LineReader) -> bytes:
        data = reader.take(min(self._wanted, AT_ONCE))
        self._wanted -= len(data)
        self.ended = self._wanted == 0
        return data

    def _look_at(self, data: bytes) -> Obstacle | None:
        self._size += len(data)
        if self._limit and self._size > self._limit:
            return Obstacle.TOO_LARGE
        if self._data is not None:
            bad = self._data.bad
        else:
            bad = self._check.is_bad(data) or (self.ended and self._last and self._check.ends_badly())
        return Obstacle.BAD_LINE_ENDS if bad else None
