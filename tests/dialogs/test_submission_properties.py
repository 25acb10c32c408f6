"""What holds for any bytes and any segments, on both halves of mail submission."""

from __future__ import annotations

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from logins import Case
from properties import properties
from streams import TERMS, play_backend, ways

from mailroute.dialogs.smtp import SUBMISSION
from mailroute.dialogs.smtp.dialect import Seam
from mailroute.dialogs.smtp.submission import MAX_LINE
from mailroute.events import (
    Attempt,
    Client,
    Credentials,
)
from mailroute.wire.smtp_reader import MAX_REPLY

SEAM = Seam("mx.example", b"me.example")
ORDER = Case(Credentials("PLAIN", b"bob", b"sec\xffret"), "bob", tell_client=True, seam=SEAM)

CLIENT_LINES = st.sampled_from(
    [
        b"EHLO me.example\r\n",
        b"HELO\r\n",
        b"NOOP\n",
        b"NOOP\r\n",
        b"MAIL FROM:<>\r\n",
        b"BDAT 3\r\nabc",
        b"AUTH PLAIN AGJvYgBz\r\n",
        b"AUTH PLAIN AGJvYgBz\r\nMAIL FROM:<>\r\n",
        b"AUTH LOGIN\r\nYm9i\r\ncw==\r\n",
        b"AUTH XOAUTH2 =\r\n",
        b"*\r\n",
        b"\r\n",
        b"\r",
        b"STARTTLS\r\n",
        b"QUIT\r\n",
        b"GET / HTTP/1.0\r\n",
    ]
)
SERVER_LINES = st.sampled_from(
    [
        b"220 hi\r\n",
        b"250-b\r\n250 AUTH PLAIN LOGIN XOAUTH2\r\n",
        b"250-b\r\n250-AUTH LOGIN\r\n250-STARTTLS\r\n250 XCLIENT ADDR HELO LOGIN\r\n",
        b"250-",
        b"334 \r\n",
        b"334\r\n",
        b"235 2.7.0 yes\r\n",
        b"250\n",
        b"535 5.7.8 no\r\n",
        b"454-a\r\n454 b\r\n",
    ]
)


TestSubmission = properties(
    SUBMISSION,
    ways(ORDER),
    client=CLIENT_LINES,
    server=SERVER_LINES,
    command=b"NOOP\r\n",
    most=MAX_REPLY + 300,
)


@given(st.sampled_from([b"x", b"EHLO ", b"250-\r\n", b"\r", b"334 ", b"\0"]))
def test_endless_input_stays_bounded(unit):
    """A flood without an end is cut off at the bound."""
    dialog, login = SUBMISSION.dialog(TERMS), ORDER.login(SUBMISSION)
    for _ in range(300):
        dialog.receive(unit * 100)
        login.receive(unit * 100)
        assert len(dialog._reader) <= MAX_LINE + 600
        assert len(login._reader) <= MAX_REPLY + 600


@given(
    st.binary(max_size=40).filter(lambda b: b"\0" not in b),
    st.text(max_size=12).filter(lambda text: "\0" not in text),
    st.sampled_from([b"PLAIN", b"LOGIN"]),
)
def test_no_credentials_become_syntax(password, user, mechanism):
    """Whatever is in a name or a password, the backend reads it back as one, with no command behind it."""
    order = Case(Credentials("PLAIN", b"bob", password), user or "bob", seam=SEAM)
    offers = b"250-b\r\n250 AUTH %s\r\n" % mechanism
    said, _ = play_backend(order.login(SUBMISSION), [b"220 hi\r\n", offers, b"334 \r\n", b"334 \r\n"])
    server = SUBMISSION.dialog(TERMS)
    attempts = [event for event in server.receive(said) if isinstance(event, Attempt)]
    expected = [((user or "bob").encode(), password)]
    assert [(a.credentials.user, a.credentials.secret) for a in attempts] == expected
    assert server.rest() == b""


@given(st.binary(max_size=60), st.text(max_size=12), st.text(max_size=20))
def test_no_client_writes_commands_at_a_backend(hello, name, session):
    """What a client calls itself, or asks for by SNI, stays a word of one EHLO and of one XCLIENT."""
    client = Client(session.encode("ascii", "replace").decode(), None, None, server_name=name)
    order = evolve(ORDER, client=client, seam=Seam("mx.example", hello))
    listed = b"250-b\r\n250 XCLIENT HELO SESSION DESTNAME\r\n"
    said, _ = play_backend(order.login(SUBMISSION), [b"220 hi\r\n", listed])
    lines = said.split(b"\r\n")
    assert [line.partition(b" ")[0] for line in lines] == [b"EHLO", b"XCLIENT", b""]
    assert not set(said) & set(b"\0\t\x7f")
    assert said.count(b"\n") == said.count(b"\r") == 2
    assert [word.partition(b"=")[0] for word in lines[1].split(b" ")[1:]] in ([b"SESSION", b"HELO"],)
