"""What holds for any bytes and any segments, on both halves of IMAP."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from logins import Case
from streams import TERMS, check_backend, check_client, play_backend, play_client, ways

from mailroute.dialogs.imap import IMAP
from mailroute.dialogs.imap.login import MAX_UNTAGGED
from mailroute.events import (
    Attempt,
    Credentials,
    DialogTerms,
    LoggedIn,
    Refused,
    StartTLS,
)
from mailroute.wire.literal_reader import MAX_LINE, MAX_LITERAL, MAX_UNIT

ORDER = Case(Credentials("LOGIN", b"bob", b"sec\xffret"), "bob", tell_client=True)

CLIENT_LINES = st.sampled_from(
    [
        b"a NOOP\r\n",
        b"b CAPABILITY\n",
        b'c ID ("name" {4+}\r\nMail)\r\n',
        b"d LOGIN bob secret\r\n",
        b'e LOGIN "b\\"ob" {3+}\r\na\r\n\r\n',
        b"f LOGIN {3}\r\nbob {2}\r\nxy\r\n",
        b"g AUTHENTICATE PLAIN AGJvYgBz\r\n",
        b"h AUTHENTICATE LOGIN\r\nYm9i\r\ncw==\r\n",
        b"i AUTHENTICATE XOAUTH2 =\r\n",
        b"*\r\n",
        b"\r\n",
        b"j LOGIN {9000}\r\n",
        b"k LOGOUT\r\n",
        b"GET / HTTP/1.0\r\n",
    ]
)
SERVER_LINES = st.sampled_from(
    [
        b"* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN ID] hi\r\n",
        b"* OK hi\r\n",
        b"* PREAUTH hi\r\n",
        b"* BYE no\r\n",
        b"* CAPABILITY IMAP4rev1 LITERAL+ AUTH=LOGIN\r\n",
        b"* CAPABILITY IMAP4rev1\r\n",
        b"* LIST {3}\r\nabc\r\n",
        b"+ \r\n",
        b"+\r\n",
        b"M1 OK done\r\n",
        b"M2 OK [CAPABILITY IMAP4rev1] done\r\n",
        b"M3 OK [CAPABILITY IMAP4rev1] done\r\n",
        b"M2 NO [LIMIT] x\r\n",
        b"M1 BAD x\r\n",
    ]
)


def streams(lines: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    piece = st.one_of(lines, lines, lines, st.binary(max_size=40))
    return st.lists(piece, max_size=12).map(b"".join)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """The stream in segments: ``cuts`` are their lengths, the last one repeated."""
    segments = []
    while data:
        size = cuts.pop(0) if len(cuts) > 1 else cuts[0]
        segments.append(data[:size])
        data = data[size:]
    return segments


@given(streams(CLIENT_LINES), st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_any_split_of_a_clients_stream_gives_the_same(data, cuts):
    """However a client's bytes are cut, the same is said, the same happens and the same is left."""
    assert play_client(IMAP.dialog(TERMS), cut(data, cuts)) == play_client(IMAP.dialog(TERMS), [data])


@given(streams(SERVER_LINES), st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_any_split_of_a_backends_stream_gives_the_same(data, cuts):
    """However a backend's bytes are cut, the same is said and the same comes of it."""
    assert play_backend(ORDER.login(IMAP), cut(data, cuts)) == play_backend(ORDER.login(IMAP), [data])


@given(
    terms=st.sampled_from([TERMS, DialogTerms(tls_offered=True, login_allowed=False)]),
    data=st.lists(st.one_of(st.binary(max_size=300), CLIENT_LINES), max_size=20),
)
def test_any_bytes_from_a_client(terms, data):
    """No bytes of a client raise, and what is kept of them is bounded."""
    check_client(IMAP.dialog(terms), data, b"a NOOP\r\n")


@given(
    order=st.sampled_from(ways(ORDER)),
    data=st.lists(st.one_of(st.binary(max_size=300), SERVER_LINES), max_size=20),
)
def test_any_bytes_from_a_backend(order, data):
    """No bytes of a backend raise, what is kept is bounded, and it ends at most once."""
    login = order.login(IMAP)
    ends = 0
    for segment in data:
        for event in login.receive(segment):
            ends += isinstance(event, LoggedIn | Refused)
            if isinstance(event, StartTLS):
                login.secured()
        assert ends or len(login._reader) <= MAX_UNIT + MAX_LINE
    assert ends <= 1


@given(
    order=st.sampled_from(ways(ORDER)),
    data=st.lists(st.one_of(st.binary(max_size=300), SERVER_LINES), max_size=20),
    opened=st.integers(0, 20),
)
def test_an_order_at_any_time(order, data, opened):
    """Whenever the order comes, the login is ready at most once and before it, and ends at most once."""
    check_backend(IMAP, order, data, opened, lambda login: len(login._untagged) <= MAX_UNTAGGED + 1)


@settings(max_examples=30)
@given(st.sampled_from([b"x", b"{", b"(", b'"', b"a LOGIN ", b"+", b"\r", b"A", b"\0"]))
def test_endless_input_stays_bounded(unit):
    """A flood without an end is cut off at the bound."""
    dialog, login = IMAP.dialog(TERMS), ORDER.login(IMAP)
    for _ in range(200):
        dialog.receive(unit * 100)
        login.receive(unit * 100)
        assert len(dialog._reader) <= MAX_LINE + MAX_LITERAL
        assert len(login._reader) <= MAX_LINE + 800


@given(st.binary(max_size=40).filter(lambda b: b"\0" not in b), st.booleans(), st.booleans())
def test_no_password_becomes_syntax(password, literals, plain):
    """Whatever is in a password, the backend reads it back as one argument of one command."""
    capabilities = b"IMAP4rev1" + b" LITERAL+" * literals + b" SASL-IR AUTH=PLAIN" * plain
    order = Case(Credentials("LOGIN", b"bob", password), "bob")
    said, _ = play_backend(
        order.login(IMAP), [b"* OK [CAPABILITY " + capabilities + b"] hi\r\n", b"+ go\r\n"]
    )
    server = IMAP.dialog(TERMS)
    attempts = [event for event in server.receive(said) if isinstance(event, Attempt)]
    assert [(a.credentials.user, a.credentials.secret) for a in attempts] == [(b"bob", password)]
    assert server.rest() == b""
