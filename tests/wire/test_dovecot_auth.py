"""The lines of Dovecot's authentication protocols."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailroute.wire.dovecot_auth import MAX_LINE, escape, fields, line, split, unescape


@given(st.lists(st.binary(), min_size=1))
def test_what_is_written_is_read(words):
    """No value can end its field or its line, and each comes out as it went in."""
    made = b"\t".join(escape(word) for word in words)
    assert not set(made.replace(b"\t", b"")) & set(b"\0\r\n\t")
    assert split(made) == words


@given(st.binary())
def test_any_line_is_read_or_refused(text):
    """Whatever a server says, nothing but ValueError comes of it."""
    with contextlib.suppress(ValueError):
        fields(split(text))


def test_malformed_escapes():
    """An escape that there is not, or that ends with the value, is refused."""
    for text in (b"a\x01", b"\x01x", b"a\x01\x01"):
        with pytest.raises(ValueError, match="escape"):
            unescape(text)


def test_a_line_is_bounded():
    """Dovecot closes the connection at a longer one, with everybody's questions."""
    assert len(line([b"x" * (MAX_LINE - 1)])) == MAX_LINE
    with pytest.raises(ValueError, match="longer than 8192"):
        line([b"x" * MAX_LINE])


def test_fields_with_and_without_value():
    """A flag is there with nothing in it; a value may hold equals signs."""
    assert fields([b"proxy", b"pass=a=b"]) == {"proxy": b"", "pass": b"a=b"}
