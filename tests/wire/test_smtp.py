"""The syntax of SMTP: lines, replies, paths, xtext, and a message on the wire."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailroute.wire.lines import LineReader, Malformed, Stop
from mailroute.wire.smtp_data import ContentCheck, DataReader, DotStuffer
from mailroute.wire.smtp_reader import MAX_REPLY, ReplyReader
from mailroute.wire.smtp_syntax import BadSyntax, account_of, read_path, spell
from mailroute.wire.xtext import xtext

CUTS = st.lists(st.integers(0, 200), max_size=8)
SHARDS = st.lists(st.sampled_from([b"\r\n", b".", b"..", b"a", b"\xff\x00", b"\r\n.x", b" "]), max_size=30)
LINE_ENDS = st.lists(st.sampled_from([b"\r", b"\n", b".", b"\0", b"x"]), max_size=12)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return the data in pieces."""
    places = sorted({0, len(data), *(place for place in cuts if place < len(data))})
    return [data[a:b] for a, b in pairwise(places)]


def through_data(wire: bytes, cuts: list[int]) -> tuple[DataReader, bytes, bytes]:
    reader, passed, rest = DataReader(), b"", b""
    for piece in cut(wire, cuts):
        if reader.done:
            rest += piece
        else:
            text, behind = reader.feed(piece)
            passed, rest = passed + text, rest + behind
    return reader, passed, rest


def stuffed(text: bytes, cuts: list[int]) -> bytes:
    stuffer = DotStuffer()
    return b"".join([stuffer.encode(piece) for piece in cut(text, cuts)]) + stuffer.end()


@given(SHARDS, CUTS, CUTS)
def test_a_message_passes_whole(shards, cuts, again):
    """What is written for DATA is found again by who reads it, however it is cut; what follows stays."""
    text = b"".join(shards).replace(b"\n\0", b"\n")
    lines = text if text.endswith(b"\r\n") or not text else text + b"\r\n"
    wire = stuffed(text, cuts)
    reader, passed, rest = through_data(wire + b"QUIT\r\n", again)
    if text.startswith(b"\0"):
        return
    assert reader.done
    assert not reader.bad
    assert rest == b"QUIT\r\n"
    assert passed == wire[:-3]
    undone = b"\r\n".join(line.removeprefix(b".") for line in passed.split(b"\r\n"))
    assert undone == lines


@given(LINE_ENDS, CUTS)
def test_only_one_end_is_an_end(ends, cuts):
    """Nothing but CR LF . CR LF ends a message; any other end of line makes it bad, and is not passed on."""
    text = b"x" + b"".join(ends)
    reader, passed, rest = through_data(text, cuts)
    wire = b"\r\n" + text
    end = wire.find(b"\r\n.\r\n")
    assert reader.done == (end >= 0)
    message = wire if end < 0 else wire[: end + 2]
    alone = message.replace(b"\r\n", b"")
    if end >= 0:
        other_ends = b"\n\0" in message or b"\n.\0" in message
        assert reader.bad == (b"\r" in alone or b"\n" in alone or other_ends)
        assert rest == wire[end + 5 :]
    # Whatever else happens, what was passed on has no end of line by itself, and no message's end.
    assert b"\r" not in passed.replace(b"\r\n", b"")
    assert b"\n" not in passed.replace(b"\r\n", b"")
    assert b"\r\n.\r\n" not in b"\r\n" + passed


@given(LINE_ENDS, CUTS)
def test_chunks_are_looked_at_as_a_whole(ends, cuts):
    """Where a message is cut into chunks makes no difference to what is bad in it."""
    text = b"".join(ends)
    check = ContentCheck()
    found = [check.is_bad(piece) for piece in cut(text, cuts)]  # each of them is looked at
    bad = any(found) or check.ends_badly()
    alone = text.replace(b"\r\n", b"")
    assert bad == (b"\r" in alone or b"\n" in alone or b"\n\0" in b"\n" + text)


@given(st.binary(max_size=300), CUTS)
def test_lines_end_with_cr_lf_alone(data, cuts):
    """Lines are the same however they are cut, and end with nothing but CR LF."""
    reader, lines = LineReader(1000, strict=True), []
    for piece in cut(data, cuts):
        reader.feed(piece)
        while isinstance(line := reader.line(1000), bytes):
            lines.append(line)
    assert [*lines, reader.take(1000)] == data.split(b"\r\n")


@given(CUTS)
def test_a_line_has_a_bound(cuts):
    """A line may be as long as the bound says, and no longer, however it is cut."""
    reader = LineReader(4, strict=True)
    found = []
    for piece in cut(b"abcd\r\nabcde\r\n", cuts):
        reader.feed(piece)
        while Stop.TOO_LONG not in found and (line := reader.line(4)) is not Stop.MORE:
            found.append(line)
    assert found == [b"abcd", Stop.TOO_LONG]


@given(st.lists(st.binary(max_size=9)), st.integers(0, 9), st.binary(max_size=9))
def test_what_is_taken_and_given_back(shards, at_most, back):
    """Bytes that are no lines come as they are, and what is given back comes before what is there."""
    reader = LineReader(1000, strict=True)
    for shard in shards:
        reader.feed(shard)
    taken = reader.take(at_most)
    assert len(taken) == min(at_most, len(b"".join(shards)))
    reader.give_back(back)
    assert taken + reader.rest() == taken + back + b"".join(shards)[len(taken) :]


@given(st.binary(max_size=200), CUTS)
def test_any_bytes_make_replies_or_none(data, cuts):
    """A backend may send anything: it makes replies, or is refused."""
    reader = ReplyReader()
    try:
        for piece in cut(b"250-one\r\n250 two\r\n" + data, cuts):
            reader.feed(piece)
            while reader.unit() is not Stop.MORE:
                pass
    except Malformed:
        pass


def test_replies():
    """A reply may have several lines with one code, and a bound."""
    reader = ReplyReader()
    reader.feed(b"250-one\r\n250-\r\n250 three\r\n221\r\n")
    assert reader.unit() == (b"250", b"one", b"", b"three")
    assert reader.unit() == (b"221", b"")
    assert reader.unit() is Stop.MORE


@pytest.mark.parametrize(
    "text",
    [
        b"250-a\r\n251 b\r\n",
        b"hello\r\n",
        b"250_x\r\n",
        b"650 x\r\n",
        b"250 x" * MAX_REPLY,
        b"250-x\r\n" * 65,
    ],
)
def test_no_reply(text):
    """What is none is refused."""
    reader = ReplyReader()
    reader.feed(text)
    with pytest.raises(Malformed):
        reader.unit()


@given(st.binary(max_size=80))
def test_xtext_hides_everything(value):
    """Any value survives xtext, in which nothing ends a word or a line."""
    text = xtext(value)
    assert re.sub(rb"\+([0-9A-F]{2})", lambda found: bytes.fromhex(found[1].decode()), text) == value
    assert not set(text) & set(b" =\r\n\0")


@pytest.mark.parametrize(
    ("text", "mailbox", "parameters"),
    [
        (b"<a@b.example>", b"a@b.example", ()),
        (b" <a@b.example> SIZE=5 body=8bitmime", b"a@b.example", ((b"SIZE", b"5"), (b"BODY", b"8bitmime"))),
        (b"<>", b"", ()),
        (b"<postmaster>", b"postmaster", ()),
        (b"<@x.example,@y.example:a@b.example>", b"a@b.example", ()),
        (b'<"a b>\\" "@b.example> X', b'"a b>\\" "@b.example', ((b"X", None),)),
        (b"<a@[IPv6:::1]>", b"a@[IPv6:::1]", ()),
        ("<ü@ö.example>".encode(), "ü@ö.example".encode(), ()),
    ],
)
def test_paths(text, mailbox, parameters):
    """Paths and parameters are read as they are spelled; a source route is left out."""
    assert read_path(text) == (mailbox, parameters)


@pytest.mark.parametrize(
    "text",
    [
        b"a@b", b"<a@b", b"<a b@c>", b"<@b>", b"<a@>", b"<a@b>x", b"<a@b> =x", b"<a@b> X=1 X=2", b"<a@b\r>",
        b"<a@b> " + b"X " * 17, b"<" + b"a" * 520 + b"@b>", b"<\xff@b>", b"<a@b c>", b'<"a@b>',
        b"<a@b> X=\xc3", b"<a@b> X\tY",
    ],
)  # fmt: skip
def test_no_paths(text):
    """What is no path, or no parameter, is refused."""
    with pytest.raises(BadSyntax):
        read_path(text)


def test_the_account_is_named_without_quotes():
    """Quotes are spelling; but what they hold is no address by itself."""
    assert account_of(b'"bob"@b.example') == account_of(b"bob@b.example") == b"bob@b.example"
    assert account_of(b'"a\\"b"@b') == b'a"b@b'
    with pytest.raises(BadSyntax):
        account_of(b'"bob@b.example"')


@given(st.text(max_size=40), st.sampled_from([b"x@there.example", b"postmaster"]))
def test_any_name_is_spelled_as_one_mailbox(name, mailbox):
    """Whatever a route calls an account, it stays one path, with nothing behind it."""
    try:
        spelled = spell(name.encode("utf-8", "replace"), mailbox)
    except BadSyntax:
        return
    assert read_path(b"<" + spelled + b">") == (spelled, ())


def test_a_name_takes_the_place_of_the_address_or_its_local_part():
    """With a domain it is the address; without, the domain stays."""
    assert spell(b"bob", b"x@there.example") == b"bob@there.example"
    assert spell(b"bob@here.example", b"x@there.example") == b"bob@here.example"
    assert spell(b"bob> NOTIFY", b"x@there.example") == b'"bob> NOTIFY"@there.example'
