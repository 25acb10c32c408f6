"""What holds for any bytes and any segments, on both halves of ManageSieve."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from logins import Case
from properties import properties
from streams import TERMS, play_backend, ways

from mailroute.dialogs.managesieve import MANAGESIEVE
from mailroute.dialogs.managesieve.dialog import MAX_UNIT
from mailroute.events import (
    Attempt,
    Credentials,
    LoggedIn,
    Reason,
    Refusal,
)
from mailroute.wire import literal_reader
from mailroute.wire.sieve_syntax import read_reply, read_strings, say

ORDER = Case(Credentials("PLAIN", b"bob", b"sec\xffret"), "bob", tell_client=True)

CLIENT_LINES = st.sampled_from(
    [
        b"CAPABILITY\r\n",
        b"NOOP\n",
        b'noop "x"\r\n',
        b"NOOP {3+}\r\na\r\n\r\n",
        b'AUTHENTICATE "PLAIN" "AGJvYgBz"\r\n',
        b'AUTHENTICATE "PLAIN" {8+}\r\nAGJvYgBz\r\n',
        b'AUTHENTICATE "PLAIN"\r\n{8}\r\nAGJvYgBz\r\n',
        b'AUTHENTICATE "LOGIN"\r\n"Ym9i"\r\n"cw=="\r\nLISTSCRIPTS\r\n',
        b'AUTHENTICATE {7+}\r\nXOAUTH2 ""\r\n',
        b'"*"\r\n',
        b"\r\n",
        b'PUTSCRIPT "x" {8+}\r\nLOGOUT\r\n\r\n',
        b"NOOP {20000+}\r\n",
        b"STARTTLS\r\n",
        b"LOGOUT\r\n",
        b"GET / HTTP/1.0\r\n",
    ]
)
SERVER_LINES = st.sampled_from(
    [
        b'"IMPLEMENTATION" "x"\r\n',
        b'"SASL" "PLAIN LOGIN XOAUTH2"\r\n',
        b'"SASL" {5}\r\nLOGIN\r\n',
        b'"XCLIENT"\r\n',
        b"OK\r\n",
        b'OK "hi"\r\n',
        b'OK (SASL "") {3}\r\na\r\n\r\n',
        b'""\r\n',
        b"{0}\r\n\r\n",
        b'"e30="\n',
        b'NO (TRYLATER) "x"\r\n',
        b"NO\r\n",
        b'BYE "x"\r\n',
    ]
)


TestManageSieve = properties(
    MANAGESIEVE,
    ways(ORDER),
    client=CLIENT_LINES,
    server=SERVER_LINES,
    command=b"NOOP\r\n",
    most=literal_reader.MAX_UNIT + 300,
)


@settings(max_examples=30)
@given(st.sampled_from([b"x", b"{", b"(", b'"', b"NOOP ", b"OK (", b"\r", b"{9+}\r\n", b"\0"]))
def test_endless_input_stays_bounded(unit):
    """A flood without an end is cut off at the bound, on one line or on many."""
    dialog, login = MANAGESIEVE.dialog(TERMS), ORDER.login(MANAGESIEVE)
    for _ in range(200):
        dialog.receive(unit * 100)
        login.receive(unit * 100)
        for half, bound in ((dialog, MAX_UNIT), (login, literal_reader.MAX_UNIT)):
            assert len(half._reader) <= literal_reader.MAX_LINE + 700
            assert sum(map(len, half._reader.peek())) <= bound


@given(st.binary(max_size=1200).filter(lambda b: b"\0" not in b), st.sampled_from(["PLAIN", "LOGIN"]))
def test_no_password_becomes_syntax(password, mechanism):
    """Whatever is in a password, the backend reads it back as one password."""
    order = Case(Credentials("PLAIN", b"bob", password), "bob")
    answers = [b'"SASL" "%s"\r\nOK\r\n' % mechanism.encode(), *([b'""\r\n'] * 2 * (mechanism == "LOGIN"))]
    said, _ = play_backend(order.login(MANAGESIEVE), answers)
    server = MANAGESIEVE.dialog(TERMS)
    attempts = [event for event in server.receive(said) if isinstance(event, Attempt)]
    assert [(a.credentials.user, a.credentials.secret) for a in attempts] == [(b"bob", password)]
    assert server.rest() == b""


@given(st.binary(max_size=600), st.sampled_from([b"", b"(TRYLATER) ", b"(", b'(A "']))
def test_no_text_becomes_syntax(text, before):
    """Whatever a backend's words are, the client gets one line that is a whole reply, or a whole string."""
    dialog = MANAGESIEVE.dialog(TERMS)
    dialog.receive(b'AUTHENTICATE "PLAIN" "AGJvYgBz"\r\n')
    accepted = dialog.accept(LoggedIn(before + text))
    (refused,) = dialog.reject(Refusal(Reason.UNAVAILABLE, "a test", before + text))
    for line, condition in ((accepted, b"OK"), (refused.data, b"NO")):
        assert line.count(b"\n") == 1
        assert read_reply((line.removesuffix(b"\r\n"),)).condition == condition
        line.decode()
    assert len(read_strings((say(text),))) == 1
