"""Both halves of a delivery by SMTP and LMTP, as transcripts, and what holds for any bytes."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from logins import Case
from receiving import MAIL, RCPT, SENT, TERMS, TO, in_message, talking
from transcripts import told

from mailroute.dialogs.common.dialog import MAX_AHEAD
from mailroute.dialogs.smtp import LMTP, SMTP
from mailroute.dialogs.smtp.bounds import PIECE
from mailroute.dialogs.smtp.dialect import TOKEN, Seam
from mailroute.dialogs.smtp.replies import FAREWELLS, REPLIES, together
from mailroute.envelope import (
    Answered,
    Begin,
    Broken,
    Chunk,
    End,
    MailFrom,
    Obstacle,
    Piece,
    RcptTo,
    Reply,
    Reset,
    Spoilt,
)
from mailroute.events import (
    NOBODY,
    Address,
    Client,
    Farewell,
    HangUp,
    LoggedIn,
    Reason,
    Refused,
    Send,
    StartTLS,
)
from mailroute.testing import CLIENT, Conversation

# --- the client's half --------------------------------------------------------


def test_what_is_announced():
    """The greeting names the host, extensions are those that can be kept, and TLS is not offered twice."""
    talk = Conversation(LMTP.receiver(TERMS))
    talk.take(talk.half.greet())
    assert talk.said() == b"220 mx.example LMTP mailroute %s ready\r\n" % TOKEN
    assert told(talk, b"lhlo me") == (
        b"250-mx.example\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"
        b"250-CHUNKING\r\n250-XCLIENT TTL\r\n250-SIZE\r\n250 STARTTLS\r\n"
    )
    assert told(talk, b"STARTTLS") == b"220 2.0.0 Begin TLS\r\n"
    assert talk.event() == StartTLS()
    talk.take(talk.half.secured())
    assert told(talk, MAIL[:-2]) == b"503 5.5.1 Say LHLO first\r\n"
    assert b"STARTTLS" not in told(talk, b"LHLO me")
    assert told(talk, b"STARTTLS") == b"502 5.5.1 STARTTLS is not offered\r\n"
    talk = talking(SMTP, b"EHLO me\r\n", extensions=("DSN",), message_size=1000)
    assert b"250-DSN\r\n250-XCLIENT TTL\r\n250-SIZE 1000\r\n" in told(talk, b"EHLO me")
    assert told(talk, b"HELO me") == b"250 mx.example\r\n"


@pytest.mark.parametrize("step", [0, 1])
def test_bytes_behind_starttls_end_the_connection(step):
    """What follows STARTTLS in the clear, at once or later, is never taken for something inside TLS."""
    talk = talking()
    talk.hears(b"STARTTLS\r\nNOOP\r\n", step)
    assert talk.events[-1] == HangUp(Farewell.INJECTION)
    assert b"Nothing done" not in talk.said()


def test_a_transaction():
    """MAIL, RCPT and DATA as the session sees them; what is pipelined waits for each answer."""
    talk = talking()
    talk.hears(MAIL + RCPT + RCPT + b"DATA\r\nNOOP\r\n")
    assert talk.events == [evolve(SENT, hello=b"me"), TO]
    talk.take(talk.half.answer(Reply(250, (b"2.1.5 yes",))))
    talk.take(talk.half.answer(Obstacle.UNKNOWN))
    assert talk.said() == b"250 2.1.0 Sender taken\r\n250 2.1.5 yes\r\n550 5.1.1 No such mailbox here\r\n"
    assert talk.events == [evolve(SENT, hello=b"me"), TO, TO, Begin()]
    talk.events.clear()
    talk.take(talk.half.proceed())
    assert talk.said() == b"354 Send the message, and a dot on a line by itself\r\n"
    talk.hears(b"..x\r\n.\r\nQUIT\r\n")
    assert b"".join(e.data for e in talk.events if isinstance(e, Piece)) == b"NOOP\r\n..x\r\n"
    assert talk.events[-1] == End()
    talk.events.clear()
    talk.take(talk.half.finish((Reply(250, (b"2.0.0 one",)),)))
    assert talk.said() == b"250 2.0.0 one\r\n221 2.0.0 Bye\r\n"
    assert talk.event() == HangUp(Farewell.LOGGED_OUT)


def test_lmtp_answers_each_recipient_and_smtp_the_message():
    """RFC 2033 section 4.2: a reply for each recipient that was accepted; RFC 5321: one."""
    outcomes = (Reply(250, (b"2.0.0 one",)), Reason.UNAVAILABLE)
    for protocol, hello, replies in (
        (LMTP, b"LHLO", b"250 2.0.0 one\r\n451 4.4.1 The mail server cannot be reached, try again later\r\n"),
        (SMTP, b"EHLO", b"451 4.4.1 The mail server cannot be reached, try again later\r\n"),
    ):
        talk = talking(protocol, hello + b" me\r\n")
        talk.hears(MAIL + RCPT + RCPT + b"DATA\r\n")
        talk.take(talk.half.answer(Reply(250)))
        talk.take(talk.half.answer(Reply(250)))
        talk.take(talk.half.proceed())
        talk.hears(b".\r\n")
        talk.said()
        talk.take(talk.half.finish(outcomes))
        assert talk.said() == replies


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        (b"EHLO me", b"500 5.5.1 "), (b"LHLO", b"501 5.5.4 "), (b"DATA", b"503 5.5.1 "),
        (RCPT[:-2], b"503 5.5.1 "),
        (b"AUTH PLAIN AGEAYg==", b"502 5.5.1 "), (b"XCLIENT ADDR=1.2.3.4", b"502 5.5.1 "),
        (b"XCLIENT TTL=6 ADDR=1.2.3.4", b"502 5.5.1 "), (b"XCLIENT", b"502 5.5.1 "),
        (b"XCLIENT TTL=-1", b"502 5.5.1 "), (b"XCLIENT TTL=1", b"550 5.4.6 "),
        (b"XCLIENT TTL=0", b"550 5.4.6 "),
        (b"XFORWARD ADDR=1.2.3.4", b"502 5.5.1 "), (b"VRFY bob", b"252 2.5.0 "), (b"EXPN x", b"502 5.5.1 "),
        (b"what", b"500 5.5.2 "), (b"", b"500 5.5.2 "), (b"NOOP\nRSET", b"500 5.5.2 "),
        (b"NOOP \rx", b"500 5.5.2 "),
        (b"MAIL FROM:<a@b> BODY=BINARYMIME", b"501 5.5.4 "), (b"MAIL FROM:<a@b> AUTH=<>", b"555 5.5.4 "),
        (b"MAIL FROM:<a@b> RET=FULL", b"555 5.5.4 "), (b"MAIL FROM:<a@b> SIZE=x", b"501 5.5.4 "),
        (b"MAIL FROM:<a@b> SIZE=1001", b"552 5.3.4 "), (b"MAIL FROM:<a@b> SMTPUTF8=1", b"501 5.5.4 "),
        (b"MAIL <a@b>", b"501 5.5.4 "), (b"MAIL FROM:a@b", b"501 5.1.7 "),
        ("MAIL FROM:<ü@b>".encode(), b"553 5.6.7 "), (b"STARTTLS x", b"501 5.5.4 "),
    ],
)  # fmt: skip
def test_what_is_refused(line, reply):
    """Commands that are wrong, out of order or not offered are answered as RFC 5321, 3463 and 6531 say."""
    said = told(talking(message_size=1000), line)
    assert said.startswith(reply)
    assert said.count(b"\r\n") == 1


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        (b"RCPT TO:<>", b"501 5.1.3 "), (b'RCPT TO:<"a@b">', b"501 5.1.3 "),
        (b"RCPT TO:<a@b> NOTIFY=NEVER", b"555 5.5.4 "),
        ("RCPT TO:<ü@b>".encode(), b"553 5.6.7 "), (MAIL[:-2], b"503 5.5.1 "), (b"DATA", b"503 5.5.1 "),
    ],
)  # fmt: skip
def test_what_is_refused_in_a_transaction(line, reply):
    """A recipient that is none is refused here, and nobody is looked up for it."""
    talk = talking()
    talk.hears(MAIL)
    talk.said()
    talk.events.clear()
    assert told(talk, line).startswith(reply)
    assert not talk.events


def test_limits():
    """Recipients, messages and bad commands are bounded, and lines too."""
    talk = talking(recipients=1)
    talk.hears(MAIL + RCPT)
    talk.take(talk.half.answer(Reply(250)))
    talk.said()
    assert told(talk, RCPT[:-2]) == b"452 4.5.3 Too many recipients\r\n"
    talk = talking(messages=1)
    talk.hears(MAIL + b"RSET\r\n" + MAIL)
    assert talk.events[1:] == [Reset(), HangUp(Farewell.TOO_MANY_MESSAGES)]
    talk = talking(bad_commands=2)
    talk.hears(b"X\r\n" * 3)
    assert talk.event() == HangUp(Farewell.TOO_MANY_BAD_COMMANDS)
    talk = talking()
    talk.hears(b"X" * 5000)
    assert talk.event() == HangUp(Farewell.TOO_LONG)
    talk = talking()
    talk.hears(b"NOOP\r\n" * 3000)
    assert talk.event() == HangUp(Farewell.TOO_MANY_COMMANDS)
    talk = talking()
    talk.hears(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nMAIL FROM:<a@b>\r\n")
    assert talk.event() == HangUp(Farewell.NOT_THIS_PROTOCOL)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"a\nb\r\n.\r\nRSET\r\n", Obstacle.BAD_LINE_ENDS),
        (b"x" * 30 + b"\r\n.\r\nRSET\r\n", Obstacle.TOO_LARGE),
    ],
)
def test_a_message_that_cannot_be_taken_is_read_to_its_end(text, why):
    """Nothing of what makes it bad is passed on, once; and commands are only what follows its end."""
    talk = in_message(message_size=20)
    talk.hears(text, 1)
    [spoilt] = [event for event in talk.events if isinstance(event, Spoilt)]
    assert spoilt.why is why
    assert talk.events[-1] == End()
    assert sum(len(event.data) for event in talk.events if isinstance(event, Piece)) <= 20
    talk.take(talk.half.finish((why,)))
    reply = b"%d %s\r\n" % (REPLIES[why].code, REPLIES[why].lines[0])
    if why is Obstacle.TOO_LARGE:
        assert talk.said() == reply + b"250 2.0.0 Forgotten\r\n"
    else:  # which end the client means is uncertain
        assert talk.said() == reply + FAREWELLS[Farewell.BAD_LINE_ENDS] + b"\r\n"
        assert talk.events[-1] == HangUp(Farewell.BAD_LINE_ENDS)


def test_chunks():
    """BDAT's bytes are counted, and never taken for commands, whatever has become of the transaction."""
    talk = talking()
    talk.hears(MAIL + RCPT + b"BDAT 6\r\nQUIT\r\nBDAT 2 last\r\n\r\nRSET\r\n")
    talk.take(talk.half.answer(Reply(250)))
    assert talk.events[2:] == [Begin(chunked=True)]
    talk.take(talk.half.proceed())
    assert talk.events[3:] == [Chunk(6, last=False), Piece(b"QUIT\r\n"), End(last=False)]
    talk.take(talk.half.answer(Reply(250)))
    assert talk.events[6:] == [Chunk(2, last=True), Piece(b"\r\n"), End()]
    talk.take(talk.half.finish((Reply(250, (b"2.0.0 one",)),)))
    assert talk.said().endswith(b"250 2.0.0 Chunk taken\r\n250 2.0.0 one\r\n250 2.0.0 Forgotten\r\n")
    talk = talking()
    talk.hears(b"BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n")
    assert talk.said() == b"503 5.5.1 Nobody to send it to\r\n250 2.0.0 Nothing done\r\n"
    assert told(talk, b"BDAT x").startswith(b"501 5.5.4 ")
    assert talk.event() == HangUp(Farewell.TOO_MANY_BAD_COMMANDS)


def test_a_chunk_that_fails_ends_the_transaction():
    """The chunks that a client has pipelined behind one that failed are read, and refused."""
    talk = in_message(b"BDAT 2\r\nabBDAT 6 LAST\r\nQUIT\r\n")
    talk.hears(b"NOOP\r\n")
    talk.take(talk.half.finish((Obstacle.LOST,)))
    assert talk.said() == (
        b"451 4.4.2 The connection to the mail server was lost, try again later\r\n"
        b"503 5.5.1 Nobody to send it to\r\n250 2.0.0 Nothing done\r\n"
    )


@pytest.mark.parametrize("why", list(Farewell))
def test_every_farewell_has_words(why):
    """Whatever ends a connection, the client hears why."""
    assert FAREWELLS[why]
    assert LMTP.receiver(TERMS).farewell(why).endswith(b"\r\n")


@pytest.mark.parametrize("why", [*Obstacle, *Reason])
def test_every_obstacle_has_a_reply(why):
    """Whatever goes wrong has a code, and an enhanced one of the same class."""
    reply = REPLIES[why]
    assert reply.lines[0][:1] == b"%d" % (reply.code // 100)


def test_what_is_told_of_several():
    """One who may still get it makes it 4xx; nobody, 5xx; only all make it 2xx."""
    yes, no, later = Reply(250), Reply(550), Reply(450)
    assert together([yes, yes]) is yes
    assert together([yes, no]) is no
    assert together([no, yes, later]) is later


CLIENT_SHARDS = st.lists(
    st.sampled_from(
        [
            b"LHLO me\r\n", MAIL, RCPT, b"DATA\r\n", b".\r\n", b"..x\r\n", b"x\n", b"\r", b"\0",
            b"BDAT 7\r\n", b"BDAT 0 LAST\r\n",
            b"RSET\r\n", b"NOOP\r\n", b"STARTTLS\r\n", b"text\r\n", b"QUIT\r\n", b"\xff\xfe", b"HELP x\r\n",
        ]
    )
    | st.binary(max_size=20),
    max_size=25,
)  # fmt: skip


def run_receiver(data: bytes, step: int) -> list[object]:
    """Speak with a receiver, answering all that it asks, and return all it says, pieces put together."""
    half = LMTP.receiver(TERMS)
    half._nothing_may_follow = lambda: None
    todo, said = half.greet(), []
    for at in range(0, len(data), step):
        todo += half.receive(data[at : at + step])
        while todo:
            event = todo.pop(0)
            if isinstance(event, Spoilt) and said and isinstance(said[-1], Piece):
                said.pop()  # how much of it went before depends on the segments, and nobody gets it
            if type(event) in (Send, Piece) and said and type(said[-1]) is type(event):
                said[-1] = type(event)(said[-1].data + event.data)
            else:
                said.append(event)
            if isinstance(event, RcptTo) or event == End(last=False):
                todo += half.answer(Reply(250))
            elif isinstance(event, Begin):
                todo += half.proceed()
            elif event == End():
                todo += half.finish((Reply(250),))
        assert len(half._reader) <= MAX_AHEAD + step
    return said


@settings(max_examples=200)
@given(CLIENT_SHARDS, st.integers(1, 50))
def test_segments_make_no_difference_to_a_receiver(shards, step):
    """Any bytes, in any segments, give the same events, and no exception."""
    # What follows STARTTLS, and a DATA that is refused (`run_receiver` lets that pass), segments decide.
    data = b"LHLO me\r\n" + MAIL + RCPT + b"".join(shards).replace(b"STARTTLS", b"NOOP")
    assert run_receiver(data, step) == run_receiver(data, len(data))


@given(CLIENT_SHARDS, st.integers(1, 50))
def test_a_receiver_that_is_not_answered_holds_little(shards, step):
    """While it waits it says nothing, and ends the connection before it holds too much."""
    half = LMTP.receiver(TERMS)
    half.receive(b"LHLO me\r\n" + MAIL + RCPT)
    for _ in range(8):
        half.receive(b"".join(shards)[:step] + b"x" * 50_000)
        assert len(half._reader) <= MAX_AHEAD + 50_050


def test_pieces_are_small():
    """As much as a piece has may wait at each backend."""
    talk = in_message()
    talk.hears(b"x" * 100_000)
    assert {len(event.data) <= PIECE for event in talk.events} == {True}


# --- the backend's half ---------------------------------------------------------

EXTENSIONS = {b"PIPELINING": (), b"CHUNKING": (), b"8BITMIME": (), b"SMTPUTF8": (), b"SIZE": ()}


def sending(protocol=LMTP, *without: bytes) -> Conversation:
    return Conversation(protocol.sender({k: v for k, v in EXTENSIONS.items() if k not in without}))


def test_sending_with_pipelining():
    """The sender goes out with the first recipient; parameters go on as they came."""
    talk = sending()
    mail = MailFrom(b"s@x.example", ((b"SIZE", b"5"), (b"BODY", b"8BITMIME")))
    talk.take(talk.half.recipient(mail, TO))
    assert talk.said() == b"MAIL FROM:<s@x.example> SIZE=5 BODY=8BITMIME\r\nRCPT TO:<a@b.example>\r\n"
    talk.hears(b"250 2.1.0 s\r\n250-2.1.5 a\r\n250 2.1.5 \x01b\r\n", 1)
    assert talk.event() == Answered(Reply(250, (b"2.1.5 a", b"2.1.5 ?b")))
    talk.take(talk.half.recipient(mail, TO))
    assert talk.said() == b"RCPT TO:<a@b.example>\r\n"
    talk.hears(b"250 2.1.5 a\r\n")
    talk.events.clear()
    talk.take(talk.half.begin(Begin()))
    talk.hears(b"354 go\r\n")
    assert talk.event().outcome.positive
    talk.take(talk.half.piece(Piece(b"..x\r\n")))
    talk.take(talk.half.end(End()))
    assert talk.said() == b"DATA\r\n..x\r\n.\r\n"
    talk.hears(b"250 one\r\n452 two\r\n")
    assert talk.events == [Answered(Reply(250, (b"one",))), Answered(Reply(452, (b"two",)))]
    talk.take(talk.half.reset())
    assert talk.said() == b""


def test_sending_without_pipelining():
    """Without PIPELINING nothing is sent before the answer to what came before."""
    talk = sending(LMTP, b"PIPELINING")
    talk.take(talk.half.recipient(SENT, TO))
    assert talk.said() == b"MAIL FROM:<s@x.example>\r\n"
    talk.hears(b"250 2.1.0 s\r\n")
    assert talk.said() == b"RCPT TO:<a@b.example>\r\n"
    talk.hears(b"550 5.1.1 no\r\n")
    assert talk.event() == Answered(Reply(550, (b"5.1.1 no",)))
    talk.take(talk.half.reset())
    talk.take(talk.half.recipient(SENT, TO))
    assert talk.said() == b"RSET\r\n"
    talk.hears(b"250 ok\r\n")
    assert talk.said() == b"MAIL FROM:<s@x.example>\r\n"
    talk.hears(b"452 4.3.1 not now\r\n")
    assert talk.event() == Answered(Reply(452, (b"4.3.1 not now",)))
    talk.take(talk.half.recipient(SENT, TO))
    assert talk.event() == Answered(Reply(452, (b"4.3.1 not now",)))
    assert talk.said() == b""


def test_a_sender_that_is_refused_is_the_recipients_answer():
    """A MAIL that a backend refuses is told at RCPT, whatever it says to that."""
    talk = sending()
    talk.take(talk.half.recipient(SENT, TO))
    talk.hears(b"550 5.7.1 not from there\r\n503 5.5.1 no MAIL\r\n")
    assert talk.event() == Answered(Reply(550, (b"5.7.1 not from there",)))


@pytest.mark.parametrize(
    ("missing", "parameters", "mailbox", "obstacle"),
    [
        (b"8BITMIME", ((b"BODY", b"8bitmime"),), b"a@b", Obstacle.NO_8BITMIME),
        (b"SMTPUTF8", ((b"SMTPUTF8", None),), b"a@b", Obstacle.NO_SMTPUTF8),
        (b"SMTPUTF8", ((b"SMTPUTF8", None),), "ü@b".encode(), Obstacle.NO_SMTPUTF8),
        (b"DSN", ((b"RET", b"HDRS"),), b"a@b", Obstacle.NO_DSN),
    ],
)
def test_a_backend_that_lacks_an_extension_is_not_asked(missing, parameters, mailbox, obstacle):
    """What a message needs and a backend has not, its recipients are refused for (RFC 6152, 6531)."""
    talk = sending(LMTP, missing)
    talk.take(talk.half.recipient(MailFrom(b"s@x", parameters), RcptTo(mailbox, mailbox)))
    assert talk.event() == Answered(obstacle)
    assert talk.said() == b""


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (b"503 5.5.1 what", Reason.MISCONFIGURED), (b"530 5.7.0 TLS", Reason.MISCONFIGURED),
        (b"354 go", Obstacle.PROTOCOL), (b"450 4.2.1 later", Reply(450, (b"4.2.1 later",))),
    ],
)  # fmt: skip
def test_what_a_reply_means(reply, outcome):
    """What a backend finds wrong with us does not cost the sender its message for good."""
    talk = sending()
    talk.take(talk.half.recipient(SENT, TO))
    talk.hears(b"250 ok\r\n" + reply + b"\r\n")
    assert talk.event() == Answered(outcome)


@pytest.mark.parametrize("words", [b"421 4.3.2 bye\r\n", b"250 what\r\n", b"hello\r\n", b"2" * 5000])
def test_a_backend_that_says_what_nobody_asked_is_left(words):
    """A reply out of order would be taken for the next one's: the connection is of no use any more."""
    talk = sending()
    talk.hears(words)
    assert isinstance(talk.event(), Broken)


@given(
    st.lists(
        st.sampled_from([b"250 x\r\n", b"250-x\r\n", b"354 go\r\n", b"550 no\r\n"]) | st.binary(max_size=9)
    )
)
def test_a_backend_may_send_anything(shards):
    """Any bytes from a backend give answers or the connection's end, and no exception."""
    talk = sending()
    talk.take(talk.half.recipient(SENT, TO))
    for shard in shards:
        talk.hears(shard)


REPLIES_TO_A_MESSAGE = [
    b"250 x\r\n",
    b"250-x\r\n",
    b"452 no\r\n",
    b"421 bye\r\n",
    b"354 go\r\n",
    b"\r",
    b"\n",
]


@given(st.lists(st.sampled_from(REPLIES_TO_A_MESSAGE) | st.binary(max_size=6), max_size=8), st.integers(1, 9))
def test_segments_make_no_difference_to_a_sender(shards, step):
    """What a backend answers to a message's end comes to the same, however it is cut."""

    def outcomes(segment):
        talk = sending()
        for _ in range(2):
            talk.take(talk.half.recipient(SENT, TO))
        talk.hears(b"250 s\r\n250 one\r\n250 two\r\n")
        talk.take(talk.half.begin(Begin()))
        talk.hears(b"354 go\r\n")
        talk.take(talk.half.end(End()))
        talk.events.clear()
        talk.hears(b"".join(shards), segment)
        broken = [isinstance(event, Broken) for event in talk.events]
        # With that the connection is closed.
        return talk.events[: broken.index(True) + 1] if any(broken) else talk.events

    assert outcomes(step) == outcomes(0)


# --- until it is ready ------------------------------------------------------------

LISTED = b"250-b.example\r\n250-STARTTLS\r\n250-PIPELINING\r\n250 XCLIENT NAME ADDR PORT PROTO HELO LOGIN\r\n"


def logging_in(client=CLIENT, seam=None, **changes) -> Conversation:
    case = Case(NOBODY, "", client, seam=seam or Seam("mx.example", b"client.example"), **changes)
    talk = Conversation(case.login(LMTP))
    talk.take(talk.half.start())
    return talk


@pytest.mark.parametrize(
    ("said", "handed_on"), [((), 6), ((6,), 5), ((3, 5), 2), ((999999999,), 6), ((2,), 1)]
)
def test_how_far_a_connection_has_come(said, handed_on):
    """Each XCLIENT begins the session anew, and can only lower what the backend is told."""
    talk = talking()
    for ttl in said:
        assert told(talk, b"XCLIENT TTL=%d" % ttl).startswith(b"220 mx.example LMTP ")
        assert told(talk, MAIL[:-2]) == b"503 5.5.1 Say LHLO first\r\n"
        told(talk, b"LHLO me")
    login = logging_in(seam=talk.half.seam(), tell_client=True)
    login.hears(b"220 b.example ready\r\n250-b.example\r\n250 XCLIENT TTL\r\n", 1)
    assert login.said().endswith(b"XCLIENT TTL=%d\r\n" % handed_on)


def test_a_backend_that_sees_a_loop():
    """It is said in the log, and is a reason to try again: somebody has made a mistake."""
    login = logging_in(tell_client=True)
    login.hears(b"220 b.example ready\r\n250-b.example\r\n250 XCLIENT TTL\r\n", 1)
    login.hears(b"550 5.4.6 Too many proxies: do the routes form a loop?\r\n")
    refusal = login.event().refusal
    assert refusal.reason is Reason.MISCONFIGURED
    assert "do the routes form a loop?" in refusal.detail


def test_nobody_comes_further_in_the_middle_of_a_transaction():
    """XCLIENT begins a session anew, which cannot be while there is a sender."""
    talk = talking()
    told(talk, MAIL[:-2])
    assert told(talk, b"XCLIENT TTL=5").startswith(b"503 5.5.1 ")


def test_tls_and_xclient():
    """STARTTLS, then XCLIENT with what is listed and no LOGIN, and a greeting of ours after each."""
    talk = logging_in(starttls=True, tell_client=True)
    talk.hears(b"220 b.example ready\r\n", 1)
    assert talk.said() == b"LHLO mx.example\r\n"
    talk.hears(LISTED)
    assert talk.said() == b"STARTTLS\r\n"
    talk.hears(b"220 go\r\n")
    assert talk.event() == StartTLS()
    talk.take(talk.half.secured())
    assert talk.said() == b"LHLO mx.example\r\n"
    talk.hears(LISTED)
    assert talk.said() == (
        b"XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7 PORT=40000 PROTO=LMTP HELO=client.example\r\n"
    )
    talk.hears(b"220 b.example ready\r\n")
    assert talk.said() == b"LHLO mx.example\r\n"
    talk.hears(b"250-b.example\r\n250 CHUNKING\r\n")
    assert talk.event() == LoggedIn({b"CHUNKING": ()})


def test_a_backend_that_speaks_behind_its_starttls_answer_gets_nothing():
    """What stands in the clear behind the answer to STARTTLS may be anybody's: no mail goes there."""
    talk = logging_in(starttls=True)
    talk.hears(b"220 b.example ready\r\n" + LISTED + b"220 go\r\n250 injected\r\n")
    event = talk.event()
    assert isinstance(event, Refused)
    assert event.refusal.reason is Reason.MISCONFIGURED


def test_xclient_is_split_and_encoded():
    """A line has 512 bytes at most, and nothing that a client says becomes syntax."""
    client = Client("s", Address("2001:db8::7", 1), None)
    hello = b"x \r\nRCPT=\xff" * 23
    talk = logging_in(client, Seam("mx.example", hello), tell_client=True)
    talk.hears(b"220 ready\r\n")
    talk.said()
    talk.hears(b"250-b\r\n250 XCLIENT ADDR DESTADDR HELO SESSION\r\n")
    first = talk.said()
    assert first == b"XCLIENT ADDR=IPV6:2001:db8::7 DESTADDR=[UNAVAILABLE] SESSION=s\r\n"
    talk.hears(b"220 ok\r\n")
    second = talk.said()
    assert second.count(b"\r\n") == 1
    assert second.startswith(b"XCLIENT HELO=x+20+0D+0ARCPT+3D+FF")
    talk = logging_in(client, Seam("mx.example", b"=" * 255), tell_client=True)
    talk.hears(b"220 ready\r\n")
    talk.said()
    talk.hears(b"250-b\r\n250 XCLIENT HELO\r\n")
    assert talk.said() == b"XCLIENT HELO=[UNAVAILABLE]\r\n"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"421 busy\r\n", Reason.UNAVAILABLE), (b"554 no\r\n", Reason.UNAVAILABLE),
        (b"220 hi\r\n250 b\r\n", Reason.MISCONFIGURED), (b"220 hi\r\n500 what\r\n", Reason.MISCONFIGURED),
        (b"HTTP/1.1 400\r\n", Reason.UNAVAILABLE),
        pytest.param(
            b"220 x LMTP mailroute %s ready\r\n" % TOKEN, Reason.MISCONFIGURED, id="ourselves"
        ),
    ],
)  # fmt: skip
def test_backends_that_are_not_ready(said, reason):
    """A backend that does not offer TLS where it should, or is mailroute itself, gets no mail."""
    talk = logging_in(starttls=True)
    talk.hears(said)
    event = talk.event()
    assert isinstance(event, Refused)
    assert event.refusal.reason is reason
