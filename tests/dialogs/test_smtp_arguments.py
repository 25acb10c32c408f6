"""What stands behind MAIL and RCPT, from clients that mean harm or cannot do better."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from receiving import MAIL, talking
from transcripts import told

from mailroute.dialogs.smtp import LMTP
from mailroute.envelope import Answered, MailFrom, Obstacle, RcptTo
from mailroute.events import Reason
from mailroute.testing import Conversation
from mailroute.wire.smtp_syntax import read_path

ALL = dict.fromkeys((b"PIPELINING", b"8BITMIME", b"SMTPUTF8", b"SIZE", b"DSN"), ())

WORDS = (
    b'< > a @ b.example " \\ XCLIENT : , [ ] \xff \xc3\xbc SIZE=1 NOTIFY=NEVER ORCPT=rfc822;a +0D SMTPUTF8'
)
PATHS = st.lists(
    st.sampled_from([*WORDS.split(b" "), b" ", b"\r", b"\n", b"\0"]) | st.binary(max_size=4), max_size=20
)


def sent_on(mail: MailFrom, recipient: RcptTo) -> list[bytes]:
    """Return the lines that a backend gets of them."""
    talk = Conversation(LMTP.sender(ALL))
    talk.take(talk.half.recipient(mail, recipient))
    return talk.said().split(b"\r\n")


@settings(max_examples=400)
@given(PATHS, st.booleans())
def test_no_argument_becomes_anything_else(parts, framed):
    """Whatever a client writes, a backend gets one path, spelled as it was, and parameters it announced."""
    path = b"".join(parts)
    path = b"<" + path + b">" if framed else path
    talk = talking(extensions=("DSN",))
    talk.hears(b"MAIL FROM:" + path + b"\r\nRSET\r\n" + MAIL[:-2] + b" SMTPUTF8\r\nRCPT TO:" + path + b"\r\n")
    mails = [event for event in talk.events if isinstance(event, MailFrom)]
    for recipient in (event for event in talk.events if isinstance(event, RcptTo)):
        for mail in mails:
            lines = sent_on(mail, recipient)
            assert len(lines) in (1, 3)
            for line, path_ in zip(lines, (mail, recipient), strict=False):
                if line:
                    assert not set(line) & set(b"\r\n\0")
                    assert read_path(line.partition(b":")[2]) == (path_.mailbox, path_.parameters)


@pytest.mark.parametrize(
    "path",
    [
        b"<a> XCLIENT ADDR=1.2.3.4>", b"<a@b> XCLIENT", b"<a@b\0>", b"<a@b>\0", b"<a@b\rRSET>", b"<a@b\n>",
        b"<<a@b>>", b"<a@b><c@d>", b"<a@b,c@d>", b"<@x:>", b'<"a"b@c>', b"<a@b> SIZE", b"<a@[x y]>",
        b"<a\t@b>", b"<a@b>NOTIFY=NEVER",
    ],
)  # fmt: skip
def test_paths_that_are_none(path):
    """They are refused for good, and nobody is looked up."""
    talk = talking(bad_commands=0)
    talk.hears(MAIL)
    talk.said()
    assert re.match(rb"5[0-9][0-9] 5\.[0-9]\.[0-9] ", told(talk, b"RCPT TO:" + path))
    assert not [event for event in talk.events if isinstance(event, RcptTo)]


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("MAIL FROM:<a@b> ENVID=ü", b"501 5.5.4 "), (b"MAIL FROM:<a@b> ENVID=a+ZZ", b"501 5.5.4 "),
        (b"MAIL FROM:<a@b> ENVID", b"501 5.5.4 "), (b"MAIL FROM:<a@b> RET=ALL", b"501 5.5.4 "),
        (b"MAIL FROM:<a@b> RET=full ENVID=a+0D", b"250 2.1.0 "),
    ],
)  # fmt: skip
def test_parameters_of_mail(line, reply):
    """What is no xtext, or 8-bit without SMTPUTF8, is the client's to mend (RFC 3461 section 4, RFC 6533)."""
    line = line.encode() if isinstance(line, str) else line
    assert told(talking(extensions=("DSN",)), line).startswith(reply)


@pytest.mark.parametrize(
    ("parameters", "reply"),
    [
        ("ORCPT=utf-8;ü", b"553 5.6.7 "), ("ORCPT=a@b", b"501 5.5.4 "), ("ORCPT=rfc822;a+Z", b"501 5.5.4 "),
        ("NOTIFY", b"501 5.5.4 "), ("NOTIFY=NEVER,DELAY", b"501 5.5.4 "), ("NOTIFY=delay,SUCCESS", b""),
        ("ORCPT=rfc822;a+2Bb@c NOTIFY=never", b""),
    ],
)  # fmt: skip
def test_parameters_of_rcpt(parameters, reply):
    """The same; a backend that found it would be taken to find fault with mailroute."""
    talk = talking(extensions=("DSN",))
    talk.hears(MAIL)
    talk.said()
    assert told(talk, f"RCPT TO:<a@b> {parameters}".encode()).startswith(reply)
    assert bool(reply) != any(isinstance(event, RcptTo) for event in talk.events)


@pytest.mark.parametrize("extensions", [ALL, {}])
def test_a_name_that_a_route_gives_is_not_the_clients_fault(extensions):
    """A route's name that needs SMTPUTF8, for a client that has not asked for it, is our mistake: 4xx."""
    talk = Conversation(LMTP.sender(extensions))
    talk.take(talk.half.recipient(MailFrom(b"s@x"), RcptTo("ü@b".encode(), b"u@b")))
    assert talk.event() == Answered(Reason.MISCONFIGURED)
    talk.take(talk.half.recipient(MailFrom(b"s@x", ((b"SMTPUTF8", None),)), RcptTo("ü@b".encode(), b"u@b")))
    assert talk.events == ([] if extensions else [Answered(Obstacle.NO_SMTPUTF8)])
