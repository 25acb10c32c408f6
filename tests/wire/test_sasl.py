"""SASL messages and their base64."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailroute.wire.sasl import MECHANISMS, Answer, Exchange, SaslError, decode, encode, plain


@given(st.binary())
def test_base64_round_trip(message):
    """Every message survives, the empty one as an equals sign."""
    assert decode(encode(message)) == message
    assert encode(message)


@given(st.binary(max_size=60))
@example(b"AAAA=")
@example(b"AAAA==")
def test_any_line_decodes_or_is_refused(line):
    """No line raises anything but a SaslError; what is taken is canonical but for its padding bits."""
    try:
        message = decode(line)
    except SaslError:
        return
    assert len(base64.b64encode(message)) == len(line) or line == b"="


@given(st.sampled_from(sorted(MECHANISMS)), st.lists(st.binary(max_size=60), min_size=2, max_size=2))
def test_any_messages_answer_or_are_refused(name, messages):
    """No message raises anything but a SaslError."""
    exchange = Exchange(name)
    try:
        answer = exchange.respond(base64.b64encode(messages[0]))
        if answer is None:
            answer = exchange.respond(base64.b64encode(messages[1]))
    except SaslError:
        return
    assert isinstance(answer, Answer)


def test_nul_cannot_be_smuggled_into_plain():
    """A NUL in a name or password would move the fields of a PLAIN message."""
    with pytest.raises(ValueError, match="NUL"):
        plain(b"bob\0root", b"x")


def test_an_answer_does_not_show_its_secret():
    """The repr of an answer is dull."""
    assert "hunter2" not in repr(Answer(b"bob", b"hunter2"))
