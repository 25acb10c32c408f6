"""The client's side of SMTP and LMTP (RFC 5321, 2033, 1870, 2920, 3030, 3207, 6152, 6531)."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

from zope.interface import implementer

from mailroute.dialogs.common.dialog import MAX_AHEAD
from mailroute.dialogs.smtp import arguments, replies
from mailroute.dialogs.smtp.bounds import MAX_BAD_WITHOUT_BOUND, MAX_COMMAND, MAX_COMMANDS
from mailroute.dialogs.smtp.content import Content
from mailroute.dialogs.smtp.dialect import Dialect, Seam
from mailroute.dialogs.smtp.extensions import announced
from mailroute.dialogs.smtp.replies import FAREWELLS, reply_to, together, written
from mailroute.envelope import (
    Begin,
    Chunk,
    DeliveryTerms,
    MailFrom,
    Outcome,
    RcptTo,
    ReceiverEvent,
    Reply,
    Reset,
)
from mailroute.events import Farewell, HangUp, Send, StartTLS
from mailroute.interfaces import IReceiver
from mailroute.wire.lines import LineReader, Stop, is_http


class _State(enum.Enum):
    """What the next bytes from the client are."""

    COMMAND = "a command"
    RECIPIENT = "whatever it pipelines behind a RCPT that is under way"
    BEGINNING = "whatever it pipelines behind a DATA or BDAT that is under way"
    CONTENT = "the message, or a chunk of it"
    ENDING = "whatever it pipelines behind a message or a chunk that is under way"
    HANDSHAKE = "TLS; nothing in the clear"
    OVER = "of no interest"


@implementer(IReceiver)
class Receiver:
    """One client's dialog."""

    def __init__(self, dialect: Dialect, terms: DeliveryTerms) -> None:
        self._dialect = dialect
        self._terms = terms
        self._host = terms.host_name.encode("ascii", "replace")
        self._reader = LineReader(MAX_COMMAND, strict=True)
        self._state = _State.COMMAND
        self._tls = False
        self._hello = b""
        self._bad = self._commands = self._messages = 0
        self._mail: MailFrom | None = None
        self._accepted = self._offered = 0
        self._content: Content | None = None
        self._chunk: Chunk | None = None
        self._chunks_begun = False
        self._out: list[ReceiverEvent] = []

    # --- IReceiver ---

    def greet(self) -> list[ReceiverEvent]:
        """Greet (RFC 5321 section 4.3.1)."""
        name = self._dialect.name.upper().encode("ascii")
        self._say(replies.greeting(self._host, name))
        return self._flush()

    def receive(self, data: bytes) -> list[ReceiverEvent]:
        """Take bytes from the client."""
        if self._state is _State.OVER:
            return []
        self._reader.feed(data)
        return self._go_on()

    def secured(self) -> list[ReceiverEvent]:
        """TLS is on: what was said in the clear is forgotten (RFC 3207 section 4.2)."""
        self._tls = True
        self._reader.forget()
        self._hello = b""
        self._state = _State.COMMAND
        return []

    def answer(self, outcome: Outcome) -> list[ReceiverEvent]:
        """Answer a RCPT, or a BDAT that is not the last."""
        reply = reply_to(outcome)
        if self._state is _State.RECIPIENT:
            self._accepted += reply.positive
            self._out.append(Send(written(reply)))
        elif self._state is _State.ENDING:
            self._say(b"250 2.0.0 Chunk taken")
        self._state = _State.COMMAND
        return self._go_on()

    def proceed(self) -> list[ReceiverEvent]:
        """Have the message sent."""
        self._state = _State.CONTENT
        if self._chunk is None:
            self._content = Content(self._terms.message_size)
            self._say(b"354 Send the message, and a dot on a line by itself")
        else:
            self._chunks_begun = True
            self._content = self._content or Content(self._terms.message_size, chunked=True)
            self._begin_chunk(self._chunk)
        return self._go_on()

    def finish(self, outcomes: tuple[Outcome, ...]) -> list[ReceiverEvent]:
        """Answer the message's end; where there is one reply, it is for all of it."""
        ended = self._state is _State.ENDING and (self._chunk is None or self._chunk.last)
        if ended and self._dialect.splits:
            self._out += [Send(written(reply_to(outcome))) for outcome in outcomes]
        else:
            self._out.append(Send(written(together(outcomes))))
        self._forget_transaction()
        self._state = _State.COMMAND
        self._commands = 0
        return self._go_on()

    def farewell(self, why: Farewell) -> bytes:
        """Say why (RFC 5321 section 3.8)."""
        self._state = _State.OVER
        return FAREWELLS[why] + b"\r\n"

    def seam(self) -> Seam:
        """Return what logins at backends have to know."""
        return Seam(self._terms.host_name, self._hello)

    def idle(self) -> bool:
        """Whether it waits for a command, and has not got the half of one."""
        return self._state in (_State.COMMAND, _State.OVER) and not len(self._reader)

    # --- running ---

    def _flush(self) -> list[ReceiverEvent]:
        events, self._out = self._out, []
        return events

    def _say(self, line: bytes) -> None:
        self._out.append(Send(line + b"\r\n"))

    def _hang_up(self, why: Farewell) -> None:
        self._out.append(Send(self.farewell(why)))
        self._out.append(HangUp(why))

    def _go_on(self) -> list[ReceiverEvent]:
        going = True
        while going:
            if self._state is _State.COMMAND:
                going = self._next_command()
            elif self._state is _State.CONTENT:
                going = self._more_content()
            elif self._state is _State.OVER:
                self._reader.forget()
                going = False
            else:
                going = False
                if self._state is _State.HANDSHAKE and len(self._reader):
                    self._hang_up(Farewell.INJECTION)
                elif len(self._reader) > MAX_AHEAD:
                    self._hang_up(Farewell.TOO_LONG)
        return self._flush()

    def _next_command(self) -> bool:
        line = self._reader.line(MAX_COMMAND)
        if line is Stop.MORE:
            return False
        if isinstance(line, Stop):
            self._hang_up(Farewell.TOO_LONG)
            return True
        self._commands += 1
        if self._commands > MAX_COMMANDS:
            self._hang_up(Farewell.TOO_MANY_COMMANDS)
            return True
        if is_http(line):
            self._hang_up(Farewell.NOT_THIS_PROTOCOL)
            return True
        verb, rest = arguments.read_command(line)
        command = _COMMANDS.get(verb)
        if command is None:
            self._bad_command(replies.NOT_UNDERSTOOD)
        else:
            command(self, rest)
        return True

    def _bad_command(self, line: bytes) -> None:
        self._bad += 1
        if self._bad > (self._terms.bad_commands or MAX_BAD_WITHOUT_BOUND):
            self._hang_up(Farewell.TOO_MANY_BAD_COMMANDS)
        else:
            self._say(line)

    def _forget_transaction(self) -> None:
        self._mail = self._content = self._chunk = None
        self._accepted = self._offered = 0
        self._chunks_begun = False

    # --- the message ---

    def _more_content(self) -> bool:
        content = self._content
        assert content is not None  # noqa: S101 (the state says so)
        events = content.read(self._reader)
        if self._mail is not None:
            self._out += events
        if not content.ended:
            return False
        if self._mail is not None:
            self._state = _State.ENDING
        else:  # a chunk that nobody has asked for is read, as it would look like commands
            self._forget_transaction()
            self._state = _State.COMMAND
            self._say(b"503 5.5.1 Nobody to send it to")
        return True

    def _begin_chunk(self, chunk: Chunk) -> None:
        assert self._content is not None  # noqa: S101 (whoever calls it has made one)
        self._state = _State.CONTENT
        self._content.begin_chunk(chunk)
        if self._mail is not None:
            self._out.append(chunk)

    # --- the commands ---

    def _cmd_hello(self, rest: bytes, verb: bytes) -> None:
        if (verb == b"LHLO") != (self._dialect.hello == b"LHLO"):
            self._bad_command(b"500 5.5.1 This server speaks " + self._dialect.name.upper().encode("ascii"))
            return
        if not rest or len(rest) > arguments.MAX_HELLO:
            self._bad_command(replies.NO_NAME)
            return
        self._call_off()
        self._hello = rest
        lines = [] if verb == b"HELO" else announced(self._terms, self._tls)
        self._out.append(Send(written(Reply(250, (self._host, *lines)))))

    def _cmd_starttls(self, rest: bytes) -> None:
        if rest:
            self._bad_command(replies.STARTTLS_TAKES_NOTHING)
        elif not self._terms.tls_offered or self._tls:
            self._bad_command(replies.NO_TLS)
        elif len(self._reader):
            self._hang_up(Farewell.INJECTION)
        else:
            self._call_off()
            self._say(replies.BEGIN_TLS)
            self._out.append(StartTLS())
            self._state = _State.HANDSHAKE

    def _cmd_mail(self, rest: bytes) -> None:
        if not self._hello:
            self._bad_command(b"503 5.5.1 Say %s first" % self._dialect.hello)
        elif self._mail is not None:
            self._bad_command(b"503 5.5.1 There is a sender already")
        elif self._terms.messages and self._messages >= self._terms.messages:
            self._hang_up(Farewell.TOO_MANY_MESSAGES)
        else:
            mail = arguments.read_mail(rest, self._terms)
            if isinstance(mail, bytes):
                self._bad_command(mail)
                return
            self._messages += 1
            self._mail = mail
            self._out.append(mail)
            self._say(b"250 2.1.0 Sender taken")

    def _cmd_rcpt(self, rest: bytes) -> None:
        if self._mail is None or self._chunks_begun:
            self._bad_command(b"503 5.5.1 Send MAIL first")
            return
        recipient = arguments.read_rcpt(rest, self._terms, self._mail)
        if not isinstance(recipient, RcptTo):
            self._bad_command(recipient)
        elif self._terms.recipients and self._offered >= self._terms.recipients:
            self._say(b"452 4.5.3 Too many recipients")
        else:
            self._offered += 1
            self._state = _State.RECIPIENT
            self._out.append(recipient)

    def _cmd_data(self, rest: bytes) -> None:
        if rest:
            self._bad_command(b"501 5.5.4 DATA takes nothing behind it")
        elif self._mail is None or self._chunks_begun:
            self._bad_command(b"503 5.5.1 Send MAIL and RCPT first")
        elif not self._accepted:
            # No offence: whoever pipelines cannot know (RFC 2920 section 3.1).
            self._say(b"%d 5.5.1 No valid recipients" % (503 if self._dialect.splits else 554))
        else:
            self._state = _State.BEGINNING
            self._out.append(Begin())

    def _cmd_bdat(self, rest: bytes) -> None:
        chunk = arguments.read_bdat(rest)
        if chunk is None:
            # How much follows is not known, and so neither where the next command begins.
            self._say(b"501 5.5.4 BDAT takes a size")
            self._hang_up(Farewell.TOO_MANY_BAD_COMMANDS)
            return
        if self._mail is None or not self._accepted:
            self._call_off()
        self._chunk = chunk
        if self._mail is None:
            self._content = Content(0, chunked=True)
            self._begin_chunk(chunk)
        elif self._chunks_begun:
            self._begin_chunk(chunk)
        else:
            self._state = _State.BEGINNING
            self._out.append(Begin(chunked=True))

    def _call_off(self) -> None:
        if self._mail is not None:
            self._out.append(Reset())
        self._forget_transaction()

    def _cmd_rset(self, rest: bytes) -> None:
        del rest
        self._call_off()
        self._say(replies.FORGOTTEN)

    def _cmd_noop(self, rest: bytes) -> None:
        del rest
        self._say(replies.NOTHING_DONE)

    def _cmd_vrfy(self, rest: bytes) -> None:
        del rest
        self._say(b"252 2.5.0 Send the message, and see")

    def _cmd_help(self, rest: bytes) -> None:
        del rest
        self._say(b"214 2.0.0 RFC 2033" if self._dialect.splits else b"214 2.0.0 RFC 5321")

    def _cmd_refused(self, rest: bytes) -> None:
        del rest
        self._bad_command(replies.NOT_OFFERED)

    def _cmd_quit(self, rest: bytes) -> None:
        del rest
        self._call_off()
        self._hang_up(Farewell.LOGGED_OUT)


def _hello(verb: bytes) -> Callable[[Receiver, bytes], None]:
    return lambda receiver, rest: receiver._cmd_hello(rest, verb)


_COMMANDS: Mapping[bytes, Callable[[Receiver, bytes], None]] = {
    **{verb: _hello(verb) for verb in (b"EHLO", b"HELO", b"LHLO")},
    b"STARTTLS": Receiver._cmd_starttls,
    b"MAIL": Receiver._cmd_mail,
    b"RCPT": Receiver._cmd_rcpt,
    b"DATA": Receiver._cmd_data,
    b"BDAT": Receiver._cmd_bdat,
    b"RSET": Receiver._cmd_rset,
    b"NOOP": Receiver._cmd_noop,
    b"VRFY": Receiver._cmd_vrfy,
    b"HELP": Receiver._cmd_help,
    b"QUIT": Receiver._cmd_quit,
    # What would let a client say that it is somebody else.
    **dict.fromkeys((b"AUTH", b"XCLIENT", b"XFORWARD", b"EXPN", b"ETRN", b"TURN"), Receiver._cmd_refused),
}
