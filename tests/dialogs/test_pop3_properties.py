"""What holds for any bytes and any segments, on both halves of POP3."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from logins import Case
from properties import properties
from streams import TERMS, play_backend, ways

from mailroute.dialogs.pop3 import POP3
from mailroute.dialogs.pop3.dialog import MAX_LINE
from mailroute.dialogs.pop3.login import MAX_RESPONSE
from mailroute.events import (
    Attempt,
    Credentials,
)

ORDER = Case(Credentials("USER", b"bob", b"sec\xffret"), "bob", tell_client=True)

CLIENT_LINES = st.sampled_from(
    [
        b"CAPA\r\n",
        b"NOOP\n",
        b"USER bob\r\n",
        b"PASS two words\r\n",
        b"USER bob\r\nPASS secret\r\nSTAT\r\n",
        b"AUTH PLAIN AGJvYgBz\r\n",
        b"AUTH LOGIN\r\nYm9i\r\ncw==\r\n",
        b"AUTH XOAUTH2 =\r\n",
        b"*\r\n",
        b"\r\n",
        b"STLS\r\n",
        b"QUIT\r\n",
        b"GET / HTTP/1.0\r\n",
    ]
)
SERVER_LINES = st.sampled_from(
    [
        b"+OK hi\r\n",
        b"+OK [XCLIENT] hi\r\n",
        b"+OK\r\nUSER\r\nSASL PLAIN LOGIN XOAUTH2\r\n.\r\n",
        b"+OK\r\nUSER\r\n.\r\n",
        b"SASL LOGIN\r\n",
        b".\r\n",
        b"+ \r\n",
        b"+\r\n",
        b"+OK\n",
        b"-ERR\r\n",
        b"-ERR [IN-USE] x\r\n",
    ]
)


TestPop3 = properties(
    POP3,
    ways(ORDER),
    client=CLIENT_LINES,
    server=SERVER_LINES,
    command=b"CAPA\r\n",
    most=MAX_RESPONSE + 300,
)


@given(st.sampled_from([b"x", b"USER ", b"+", b"\r", b".", b"\0"]))
def test_endless_input_stays_bounded(unit):
    """A flood without an end is cut off at the bound."""
    dialog, login = POP3.dialog(TERMS), ORDER.login(POP3)
    for _ in range(200):
        dialog.receive(unit * 100)
        login.receive(unit * 100)
        assert len(dialog._reader) <= MAX_LINE + 500
        assert len(login._reader) <= MAX_RESPONSE + 500


@given(st.binary(max_size=40).filter(lambda b: b"\0" not in b), st.booleans())
def test_no_password_becomes_syntax(password, plain):
    """Whatever is in a password, the backend reads it back as one password, or gets nothing."""
    order = Case(Credentials("PLAIN", b"bob", password), "bob")
    capabilities = b"+OK\r\nUSER\r\n%s.\r\n" % (b"SASL PLAIN\r\n" * plain)
    said, _ = play_backend(order.login(POP3), [b"+OK hi\r\n", capabilities, *([] if plain else [b"+OK\r\n"])])
    server = POP3.dialog(TERMS)
    attempts = [event for event in server.receive(said) if isinstance(event, Attempt)]
    expected = [] if not plain and (b"\r" in password or b"\n" in password) else [(b"bob", password)]
    assert [(a.credentials.user, a.credentials.secret) for a in attempts] == expected
    assert server.rest() == b""
