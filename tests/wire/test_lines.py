"""Lines out of any segments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailroute.wire.lines import LineReader, Stop, is_http, is_proxy_header

LIMIT = 20

STREAMS = st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"\0\xff", b"x" * LIMIT])).map(b"".join)


def read(segments: list[bytes]) -> tuple[list[tuple[bytes, ...] | Stop], bytes]:
    """Return the units in these segments, up to one that is too long, and what is left behind them."""
    reader = LineReader(LIMIT)
    units: list[tuple[bytes, ...] | Stop] = []
    for segment in segments:
        reader.feed(segment)
        while Stop.TOO_LONG not in units and (unit := reader.unit()) is not Stop.MORE:
            units.append(unit)
    return units, b"" if Stop.TOO_LONG in units else reader.rest()


@given(STREAMS, st.integers(1, 7))
def test_any_split_gives_the_same_lines(data, size):
    """However the bytes are cut, the same lines come out, and the same bytes are left."""
    assert read([data[at : at + size] for at in range(0, len(data), size)]) == read([data])


@given(STREAMS)
def test_nothing_is_lost(data):
    """Lines and rest together are the stream, but for the lines' ends."""
    units, rest = read([data])
    if Stop.TOO_LONG not in units:
        lines = data.split(b"\n")
        assert units == [(line.removesuffix(b"\r"),) for line in lines[:-1]]
        assert rest == lines[-1]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_is_bounded(end):
    """A line over the limit is too long as soon as that is known, whether its end has come or not."""
    assert read([b"x" * LIMIT]) == ([], b"x" * LIMIT)
    assert read([b"x" * (LIMIT + 1) + end]) == ([Stop.TOO_LONG], b"")


def test_what_is_forgotten_is_gone():
    """After `forget` the reader begins anew, in the middle of a line too."""
    reader = LineReader(LIMIT)
    reader.feed(b"one\r\ntwo\r\nthr")
    assert reader.unit() == (b"one",)
    assert len(reader) == len(b"two\r\nthr")
    reader.forget()
    assert len(reader) == 0
    reader.feed(b"four\r\n")
    assert reader.unit() == (b"four",)


@pytest.mark.parametrize(
    ("line", "is_one"), [(b"GET / HTTP/1.1", True), (b"post /x http/1.0 ", True), (b"USER HTTP/1.1", False)]
)
def test_requests_of_http(line, is_one):
    """A browser's request is known by its first line."""
    assert is_http(line) is is_one


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2", True),
        (b"PROXY TCP6 ::1 ::1 1 2", True),
        (b"PROXY UNKNOWN", True),
        (b"PROXY UNKNOWN and more", True),
        (b"\0", True),
        (b"PROXY TCP5 1 2", False),
        (b"PROXY UNKNOWNS", False),
        (b"PROXY NOOP", False),
        (b"a PROXY TCP4 192.0.2.1 192.0.2.2 1 2", False),
        (b"", False),
    ],
)
def test_proxy_headers(line, is_one):
    """A header is known by the one line in it that no mail client sends."""
    assert is_proxy_header(line) is is_one
