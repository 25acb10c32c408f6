"""What holds for any bytes and any segments, on both halves of POP3."""

from __future__ import annotations

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from logins import Case
from streams import CUTS, cut, obey, pieces, play_dialog, play_login

from mailroute.dialogs.common.dialog import MAX_AHEAD
from mailroute.dialogs.pop3 import POP3
from mailroute.dialogs.pop3.dialog import MAX_LINE
from mailroute.dialogs.pop3.login import MAX_RESPONSE
from mailroute.events import (
    Attempt,
    Credentials,
    DialogTerms,
    HangUp,
    LoggedIn,
    Method,
    Proof,
    Ready,
    Refused,
)

TERMS = DialogTerms(mechanisms=("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"), bad_commands=0)
ORDER = Case(Credentials("USER", b"bob", b"sec\xffret"), "bob", tell_client=True)
ORDERS = [
    ORDER,
    evolve(ORDER, starttls=True),
    evolve(ORDER, method=Method.NONE),
    evolve(ORDER, credentials=Credentials("XOAUTH2", b"bob", b"t", proof=Proof.TOKEN)),
]

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


@given(pieces(CLIENT_LINES).map(b"".join), CUTS)
def test_any_split_of_a_clients_stream_gives_the_same(data, cuts):
    """However a client's bytes are cut, the same is said, the same happens and the same is left."""
    assert play_dialog(POP3.dialog(TERMS), cut(data, cuts)) == play_dialog(POP3.dialog(TERMS), [data])


@given(
    st.sampled_from([order for order in ORDERS if not order.starttls]),
    pieces(SERVER_LINES).map(b"".join),
    CUTS,
)
def test_any_split_of_a_backends_stream_gives_the_same(order, data, cuts):
    """However a backend's bytes are cut, the same is said and the same comes of it."""
    assert play_login(order.login(POP3), cut(data, cuts)) == play_login(order.login(POP3), [data])


@given(
    st.sampled_from([TERMS, DialogTerms(tls_offered=True, login_allowed=False)]),
    pieces(CLIENT_LINES),
)
def test_any_bytes_from_a_client(terms, data):
    """No bytes of a client raise, and what is kept of them is bounded."""
    dialog = POP3.dialog(terms)
    for segment in data:
        events = obey(dialog, dialog.receive(segment))
        assert len(dialog._reader) <= MAX_AHEAD
        if any(isinstance(event, HangUp) for event in events):
            assert dialog.receive(b"CAPA\r\n") == []
            assert len(dialog._reader) == 0


@given(st.sampled_from(ORDERS), pieces(SERVER_LINES), st.integers(0, 20))
def test_any_bytes_from_a_backend(order, data, opened):
    """No bytes of a backend raise; whenever the order comes, it is ready once at most, and ends so."""
    login = order.unopened(POP3)
    seen = []
    for number, segment in enumerate(data):
        if number == opened:
            seen.append(order)
            seen += obey(login, login.open(order.order))
        seen += obey(login, login.receive(segment))
        assert len(login._reader) <= MAX_RESPONSE + 300
    assert sum(isinstance(event, LoggedIn | Refused) for event in seen) <= 1
    assert seen.count(Ready()) <= 1
    assert Ready() not in (seen[seen.index(order) :] if order in seen else [])


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
    said, _ = play_login(order.login(POP3), [b"+OK hi\r\n", capabilities, *([] if plain else [b"+OK\r\n"])])
    server = POP3.dialog(TERMS)
    attempts = [event for event in server.receive(said) if isinstance(event, Attempt)]
    expected = [] if not plain and (b"\r" in password or b"\n" in password) else [(b"bob", password)]
    assert [(a.credentials.user, a.credentials.secret) for a in attempts] == expected
    assert server.rest() == b""
