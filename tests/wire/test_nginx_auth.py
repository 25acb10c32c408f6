"""The headers between nginx and its auth server."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailroute.wire.nginx_auth import MAX_WAIT, NAMES, BadAuthAnswer, escape, read


def answer(**headers):
    """Read an answer with these headers, whose names have _ for -."""
    known = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return read(lambda name: [known[name]] if name in known else [])


@given(st.binary())
def test_no_name_or_password_ends_its_header(text):
    """Whatever a client shows stays within its header, and comes out again as servers undo it."""
    made = escape(text)
    assert not set(made) & set(range(0x21))
    parts = made.split(b"%")
    assert b"".join([parts[0], *(bytes.fromhex(part[:2].decode()) + part[2:] for part in parts[1:])]) == text


def test_what_is_escaped():
    """Spaces, control characters and the escape itself, and nothing else."""
    assert escape(b'a b%c\0\r\n\x1f+"\\\x7f\xc3\xbc') == b'a%20b%25c%00%0D%0A%1F+"\\\x7f\xc3\xbc'


@given(
    st.dictionaries(
        st.sampled_from([*NAMES, b"Auth-Status", b"Auth-Wait", b"Auth-Error-Code"]), st.lists(st.binary())
    )
)
def test_any_answer_is_read_or_refused(headers):
    """Whatever a server says, nothing but BadAuthAnswer comes of it."""
    with contextlib.suppress(BadAuthAnswer):
        read(lambda name: headers.get(name, []))


def test_answers():
    """OK with a server, WAIT, a refusal with or without a time, and one that is no matter of the password."""
    said = answer(Auth_Status=b"OK", Auth_Server=b"10.0.0.1", Auth_Port=b"143", Auth_Pass=b"s3cret")
    assert (said.refusal, said.server, said.port, said.user, said.password) == (
        *(None, b"10.0.0.1", b"143", None, b"s3cret"),
    )
    assert "s3cret" not in repr(said)
    assert answer(Auth_Status=b"WAIT", Auth_Wait=b"3")[1:3] == (True, 3)
    assert answer(Auth_Status=b"no", Auth_Wait=b"9" * 18)[:4] == ("no", False, MAX_WAIT, False)
    assert answer(Auth_Status=b"no", Auth_Error_Code=b"451 4.3.0").temporary
    assert not answer(Auth_Status=b"no", Auth_Error_Code=b"535 5.7.8").temporary
    assert answer(Auth_Status=b"").refusal == ""
    assert answer(Server=b"x") is None


@pytest.mark.parametrize("headers", [{}, {"Auth_Server": b"10.0.0.1"}, {"Auth_Port": b"143"}])
def test_ok_without_a_place_makes_no_sense(headers):
    """Nobody is let in to nowhere."""
    with pytest.raises(BadAuthAnswer, match="missing"):
        answer(Auth_Status=b"OK", **headers)


def test_one_refusal_among_several_counts():
    """A header that comes twice lets nobody in."""
    found = {b"Auth-Status": [b"OK", b"no"], b"Auth-Server": [b"10.0.0.1"], b"Auth-Port": [b"143"]}
    assert read(lambda name: found.get(name, [])).refusal == "no"
