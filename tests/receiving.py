"""Talks with the client's half of a delivery."""

from __future__ import annotations

from attrs import evolve
from transcripts import greeted

from mailroute.dialogs.smtp import LMTP
from mailroute.envelope import DeliveryTerms, MailFrom, RcptTo, Reply
from mailroute.testing import Conversation

TERMS = DeliveryTerms("mx.example", tls_offered=True, bad_commands=0)
MAIL = b"MAIL FROM:<s@x.example>\r\n"
RCPT = b"RCPT TO:<a@b.example>\r\n"
SENT = MailFrom(b"s@x.example")
TO = RcptTo(b"a@b.example", b"a@b.example")


def talking(protocol=LMTP, hello=b"LHLO me\r\n", **changes) -> Conversation:
    """Return a conversation that has begun."""
    return greeted(Conversation(protocol.receiver(evolve(TERMS, **changes))), hello)


def in_message(command=b"DATA\r\n", **changes) -> Conversation:
    """Return a conversation in which the message may come."""
    talk = talking(**changes)
    talk.hears(MAIL + RCPT + command)
    talk.take(talk.half.answer(Reply(250)))
    talk.take(talk.half.proceed())
    talk.said()
    talk.events.clear()
    return talk
