"""SASL messages and their base64."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailroute.wire.sasl import MECHANISMS, Answer, Exchange, SaslError, bearer_token, decode, encode, plain


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


@pytest.mark.parametrize(
    "message",
    [
        b"user=bob\1auth=Bearer a.b-c_~+/==\1\1",
        b"n,a=bob,\1host=x\1port=993\1auth=bearer  a.b-c_~+/== \1\1",
        b"n,,\1auth=Bearer a.b-c_~+/==",
    ],
)
def test_the_token_of_a_message(message):
    """What stands behind "Bearer" is the token, whatever else is in the message."""
    assert bearer_token(message) == "a.b-c_~+/=="


@pytest.mark.parametrize("token", [b"", b"=", b"a b", b"a\r\nb", b"a\0", b"\xc3\xa4", b"a=b"])
def test_what_is_no_token_is_told(token):
    """A token has the characters of RFC 6750: nothing else reaches a server that is asked about it."""
    with pytest.raises(SaslError):
        bearer_token(b"n,,\1auth=Bearer " + token + b"\1\1")
    with pytest.raises(SaslError):
        bearer_token(b"auth=Bearer x")
