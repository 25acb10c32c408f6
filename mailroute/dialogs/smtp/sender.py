"""The backend's side of a delivery by SMTP or LMTP (RFC 5321, 2033, 2920, 3030)."""

from __future__ import annotations

from collections import deque

from zope.interface import implementer

from mailroute.dialogs.smtp.dialect import Dialect
from mailroute.dialogs.smtp.extensions import Extensions, lacking, passed_on
from mailroute.dialogs.smtp.replies import CLOSING, harmless, outcome_of, said
from mailroute.envelope import (
    Answered,
    Begin,
    Broken,
    Chunk,
    End,
    MailFrom,
    Obstacle,
    Outcome,
    Piece,
    RcptTo,
    Reply,
    SenderEvent,
)
from mailroute.events import Send
from mailroute.interfaces import ISender
from mailroute.wire.lines import Malformed, Stop
from mailroute.wire.smtp_data import DotStuffer
from mailroute.wire.smtp_reader import ReplyReader

_DONE = Answered(Reply(250))

_RSET, _MAIL, _RCPT, _DATA, _BDAT, _END = "RSET", "MAIL", "RCPT", "DATA", "BDAT", "the message's end"


@implementer(ISender)
class Sender:
    """One backend's connection."""

    def __init__(self, dialect: Dialect, extensions: Extensions) -> None:
        self._dialect = dialect
        self._extensions = extensions
        self._pipelines = b"PIPELINING" in extensions
        self._reader = ReplyReader()
        self._expected: deque[str] = deque()
        self._later: deque[tuple[str, bytes]] = deque()
        self._out: list[SenderEvent] = []
        self._forget_transaction()

    def _forget_transaction(self) -> None:
        self._begun = False
        self._no_mail: Outcome | None = None  # what was said to a MAIL that was refused
        self._accepted = 0
        self._chunked = False
        self._stuffer: DotStuffer | None = None

    # --- what it is asked ---

    def recipient(self, mail: MailFrom, recipient: RcptTo) -> list[SenderEvent]:
        """Offer a recipient, and before the first one of a transaction its sender."""
        obstacle = self._no_mail or lacking(mail, recipient, self._extensions)
        if obstacle is not None:
            return [Answered(obstacle)]
        if not self._begun:
            self._begun = True
            parameters = passed_on(mail.parameters, self._extensions)
            self._say(_MAIL, b"MAIL FROM:<%s>%s\r\n" % (mail.mailbox, parameters))
        parameters = passed_on(recipient.parameters, self._extensions)
        self._say(_RCPT, b"RCPT TO:<%s>%s\r\n" % (recipient.mailbox, parameters))
        return self._flush()

    def begin(self, event: Begin) -> list[SenderEvent]:
        """Ask for leave to send the message; with CHUNKING it takes none.

        By BDAT it could not be taken back any more once the whole last chunk is there.
        """
        self._chunked = event.chunked and not event.revocable and b"CHUNKING" in self._extensions
        if self._chunked:
            return [_DONE]
        if event.chunked:
            self._stuffer = DotStuffer()
        self._say(_DATA, b"DATA\r\n")
        return self._flush()

    def chunk(self, event: Chunk) -> list[SenderEvent]:
        """Begin a chunk."""
        if not self._chunked:
            return []
        return [Send(b"BDAT %d%s\r\n" % (event.size, b" LAST" if event.last else b""))]

    def piece(self, event: Piece) -> list[SenderEvent]:
        """Pass a piece of the message on."""
        return [Send(event.data if self._stuffer is None else self._stuffer.encode(event.data))]

    def end(self, event: End) -> list[SenderEvent]:
        """End a chunk, or the message."""
        if not event.last:
            if not self._chunked:
                return [_DONE]
            self._expected.append(_BDAT)
            return []
        self._expected.extend([_END] * (self._accepted if self._dialect.splits else 1))
        if self._chunked:
            return []
        return [Send(b".\r\n" if self._stuffer is None else self._stuffer.end())]

    def reset(self) -> list[SenderEvent]:
        """Call the transaction off."""
        if self._begun:
            self._say(_RSET, b"RSET\r\n")
        self._forget_transaction()
        return self._flush()

    def quit(self) -> list[SenderEvent]:
        """Say the last words."""
        return [Send(b"QUIT\r\n")]

    # --- what it hears ---

    def receive(self, data: bytes) -> list[SenderEvent]:
        """Take bytes from the backend."""
        self._reader.feed(data)
        try:
            while not isinstance(parts := self._reader.unit(), Stop):
                if not self._reply(harmless(parts)):
                    break
        except Malformed as bad:
            self._out.append(Broken(Obstacle.PROTOCOL, f"the backend sent {bad}"))
        return self._flush()

    def doing(self) -> str:
        """Say what it waits for."""
        return f"waiting for the answer to {self._expected[0]}" if self._expected else "sending"

    def _reply(self, reply: Reply) -> bool:
        """Take one reply; false if nothing more can follow."""
        if not self._expected or reply.code == CLOSING:
            # It says by itself what it has to say, and that is never good.
            self._out.append(
                Broken(outcome_of(reply) if reply.code >= 400 else Obstacle.PROTOCOL, said(reply))
            )
            return False
        kind = self._expected.popleft()
        if kind == _MAIL:
            self._mail_answered(reply)
        elif kind == _RCPT:
            self._accepted += reply.positive and self._no_mail is None
            self._out.append(Answered(self._no_mail or outcome_of(reply)))
        elif kind == _DATA:
            self._out.append(_DONE if reply.code == 354 else Answered(self._refusal(reply)))
        elif kind == _BDAT:
            self._out.append(Answered(outcome_of(reply)))
        elif kind == _END:
            self._ended(reply)
        if self._later and not self._expected:
            self._send_later()
        return True

    def _mail_answered(self, reply: Reply) -> None:
        if reply.positive:
            return
        self._no_mail = self._refusal(reply)
        if self._later:
            self._later.clear()  # the RCPT that has not been sent
            self._out.append(Answered(self._no_mail))

    def _ended(self, reply: Reply) -> None:
        outcome = outcome_of(reply)
        self._out += [Answered(outcome)] * (1 if self._dialect.splits else self._accepted)
        if not self._expected:
            self._forget_transaction()

    @staticmethod
    def _refusal(reply: Reply) -> Outcome:
        """Return what a reply means that ought to be another one."""
        return Obstacle.PROTOCOL if reply.code < 400 else outcome_of(reply)

    # --- sending ---

    def _say(self, kind: str, line: bytes) -> None:
        if self._pipelines or not (self._expected or self._later):
            self._expected.append(kind)
            self._out.append(Send(line))
        else:
            self._later.append((kind, line))

    def _send_later(self) -> None:
        kind, line = self._later.popleft()
        self._expected.append(kind)
        self._out.append(Send(line))

    def _flush(self) -> list[SenderEvent]:
        events, self._out = self._out, []
        return events
