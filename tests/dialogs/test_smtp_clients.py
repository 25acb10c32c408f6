"""What clients get wrong, or try, in SMTP and LMTP; as transcripts."""

from __future__ import annotations

import pytest
from receiving import MAIL, RCPT, in_message, talking
from transcripts import told

from mailroute.dialogs.smtp.bounds import MAX_COMMANDS
from mailroute.envelope import Begin, Chunk, Obstacle, RcptTo, Reply, Spoilt
from mailroute.events import Farewell, HangUp


def test_an_empty_last_chunk_does_not_end_a_bad_message():
    """A bare CR that nothing follows is known as one when the last chunk is empty: no backend gets that."""
    talk = in_message(b"BDAT 3\r\nab\rBDAT 0 LAST\r\n")
    talk.take(talk.half.answer(Reply(250)))
    assert Spoilt(Obstacle.BAD_LINE_ENDS) in talk.events
    assert Chunk(0, last=True) not in talk.events


@pytest.mark.parametrize(
    ("commands", "reply"),
    [
        (b"DATA\r\n", b"503 5.5.1 "),
        (MAIL + b"DATA\r\n", b"503 5.5.1 "),
        (MAIL + b"DATA x\r\n", b"501 5.5.4 "),
    ],
)
def test_a_message_behind_a_data_that_is_refused_is_not_run(commands, reply):
    """Nobody may send a message before the 354 (RFC 2920 section 3.1): its lines would be run as commands."""
    talk = talking(bad_commands=5)
    talk.hears(commands + b"MAIL FROM:<admin@x.example>\r\n" + RCPT)
    assert talk.events[-1] == HangUp(Farewell.TOO_MANY_BAD_COMMANDS)
    assert not [event for event in talk.events if isinstance(event, RcptTo)]
    assert reply in talk.said()


def test_a_message_behind_a_data_that_backends_refuse_is_not_run():
    """The same where it is a backend that refuses, at once or later."""
    talk = talking()
    talk.hears(MAIL + RCPT + b"DATA\r\nNOOP\r\n")
    talk.take(talk.half.answer(Reply(250)))
    assert talk.events[-1] == Begin()
    talk.said()
    talk.take(talk.half.finish((Obstacle.LOST,)))
    assert talk.events[-1] == HangUp(Farewell.TOO_MANY_BAD_COMMANDS)
    said = talk.said()
    assert said.startswith(b"451 4.4.2 ")
    assert b"Nothing done" not in said


def test_what_is_pipelined_behind_a_sender_that_is_refused_is_no_offence():
    """Whoever pipelines cannot know: all of it is answered, and the connection goes on."""
    talk = talking(bad_commands=3, message_size=1000)
    talk.hears(b"MAIL FROM:<s@x.example> SIZE=1001\r\n" + RCPT * 20 + b"DATA\r\n")
    assert talk.said().count(b"503 5.5.1 ") == 21
    assert told(talk, b"NOOP") == b"250 2.0.0 Nothing done\r\n"


def test_addresses_that_are_refused_are_no_offence():
    """A message to many addresses, some of them wrong, is one for the right ones."""
    talk = talking(bad_commands=3)
    talk.hears(MAIL + b"RCPT TO:<bob at home>\r\n" * 10 + RCPT)
    assert talk.said().count(b"501 5.1.3 ") == 10
    assert talk.events[-1] == RcptTo(b"a@b.example", b"a@b.example")


def test_bad_commands_are_counted_anew_for_each_message():
    """An MTA may keep a connection for hours: what counts is what it has said since its last message."""
    talk = talking(bad_commands=2)
    for _ in range(5):
        talk.hears(b"WHAT\r\nWHAT\r\n" + MAIL + RCPT + b"DATA\r\n")
        talk.take(talk.half.answer(Reply(250)))
        talk.take(talk.half.proceed())
        talk.hears(b".\r\n")
        talk.take(talk.half.finish((Reply(250, (b"2.0.0 taken",)),)))
        assert talk.said().endswith(b"250 2.0.0 taken\r\n")
    talk.events.clear()
    talk.hears(b"WHAT\r\n" * 3)
    assert talk.event() == HangUp(Farewell.TOO_MANY_BAD_COMMANDS)


@pytest.mark.parametrize("recipients", [0, 3000])
def test_a_message_may_have_as_many_recipients_as_the_configuration_says(recipients):
    """Recipients that are taken do not count as commands, of which there is a bound; those refused do."""
    talk = talking(recipients=recipients)
    talk.hears(MAIL)
    for _ in range(3000):
        talk.hears(RCPT)
        talk.take(talk.half.answer(Reply(250, (b"2.1.5 yes",))))
    assert talk.said().count(b"2.1.5 yes") == 3000
    for _ in range(MAX_COMMANDS):
        talk.hears(RCPT if not recipients else b"NOOP\r\n")
        if not recipients and not isinstance(talk.events[-1], HangUp):
            talk.take(talk.half.answer(Obstacle.UNKNOWN))
    assert talk.events[-1] == HangUp(Farewell.TOO_MANY_COMMANDS)
