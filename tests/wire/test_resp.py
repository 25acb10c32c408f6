"""Redis's replies, cut out of a stream."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailroute.wire.lines import Stop
from mailroute.wire.resp import (
    MAX_ITEMS,
    MAX_LINE,
    MAX_REPLY,
    Error,
    Malformed,
    ReplyReader,
    TooLong,
    command,
)

SAID = (
    b"+OK\r\n"
    b":-12\r\n"
    b"$7\r\na\r\nb\x00\xff\n\r\n"
    b"$0\r\n\r\n"
    b"$-1\r\n"
    b"*-1\r\n"
    b"*0\r\n"
    b"*4\r\n$1\r\nf\r\n$-1\r\n:7\r\n-NOPERM no\r\n"
    b"-WRONGTYPE Operation against a key\r\n"
    b"-nothing like a code\r\n"
)
MEANT = [
    b"OK",
    -12,
    b"a\r\nb\x00\xff\n",
    b"",
    None,
    None,
    (),
    (b"f", None, 7, Error("NOPERM")),
    Error("WRONGTYPE"),
    Error("ERR"),
]


def read(*segments):
    """Return all replies of a stream that comes in these segments."""
    reader, replies = ReplyReader(), []
    for segment in segments:
        reader.feed(segment)
        while not isinstance(reply := reader.reply(), Stop):
            replies.append(reply)
    return replies


@given(st.lists(st.integers(0, len(SAID))))
def test_any_split_gives_the_same_replies(cuts):
    """Where segments end makes no difference."""
    ends = [0, *sorted(cuts), len(SAID)]
    assert read(*(SAID[begin:end] for begin, end in pairwise(ends))) == MEANT


@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([b"*2\r\n", b"$3\r\n", b"-ERR\r\n", b":1\r\n"]))
    )
)
def test_any_bytes_are_replies_or_none(segments):
    """Whatever comes, it is cut into replies, waited for, or refused; never more than a bound is kept."""
    reader = ReplyReader()
    for segment in segments:
        reader.feed(segment)
        try:
            while not isinstance(reader.reply(), Stop):
                pass
        except (Malformed, TooLong):
            return
        assert len(reader) <= MAX_REPLY + MAX_LINE


@pytest.mark.parametrize(
    "said",
    [
        b"$65537\r\n",
        b"$999999999999\r\n",
        b"*2\r\n$65000\r\n" + bytes(65000) + b"\r\n$600\r\n",
        b"*257\r\n",
        b"+" + b"x" * (MAX_LINE + 2),
    ],
)
def test_a_reply_is_bounded(said):
    """What passes a bound is refused as soon as it is announced, before it comes."""
    with pytest.raises(TooLong):
        read(said)


def test_bounds_are_of_one_reply():
    """One reply after the other may be as long as one may be."""
    whole = b"$%d\r\n%s\r\n" % (MAX_REPLY, bytes(MAX_REPLY))
    assert len(read(whole * 2)) == 2
    array = b"*%d\r\n" % MAX_ITEMS + b":1\r\n" * MAX_ITEMS
    assert len(read(array * 2)) == 2


@pytest.mark.parametrize(
    "said",
    [
        b"\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"$x\r\n",
        b"$-2\r\n",
        b"*1e3\r\n",
        b":\r\n",
        b": 1\r\n",
        b"$3\r\nabcdef\r\n",
        b"*1\r\n*1\r\n:1\r\n",
        b"*1\r\n*0\r\n",
        b"*-5\r\n",
        b"%1\r\n",
    ],
)
def test_what_is_no_reply_is_refused(said):
    """Another protocol, a length that is wrong and arrays within arrays are told apart."""
    with pytest.raises(Malformed):
        read(said)


def test_an_error_keeps_nothing_of_its_text():
    """A server repeats the arguments of a command that it does not know, and a password is one."""
    [error] = read(b"-ERR unknown command 'AUTH', with args beginning with: 's3cret'\r\n")
    assert "s3cret" not in repr(error)


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=4))
def test_no_word_breaks_a_command(words):
    """Whatever a word holds, the command is read as it was meant."""
    assert read(command(words)) == [tuple(words)]
