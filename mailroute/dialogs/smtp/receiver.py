"""The client's side of SMTP and LMTP (RFC 5321, 2033, 1870, 2920, 3030, 3207, 6152, 6531)."""

from __future__ import annotations

from zope.interface import implementer

from mailroute.dialogs.common.dialog import MAX_AHEAD
from mailroute.dialogs.common.foreign import foreign
from mailroute.dialogs.smtp import arguments, replies
from mailroute.dialogs.smtp.bounds import MAX_COMMAND, MAX_COMMANDS
from mailroute.dialogs.smtp.commands import COMMANDS, Commands, State
from mailroute.dialogs.smtp.content import Content
from mailroute.dialogs.smtp.dialect import Seam
from mailroute.dialogs.smtp.replies import reply_to, together, written
from mailroute.envelope import (
    Outcome,
    ReceiverEvent,
)
from mailroute.events import Farewell, Send
from mailroute.interfaces import IReceiver
from mailroute.wire.lines import Stop


@implementer(IReceiver)
class Receiver(Commands):
    """One client's dialog."""

    # --- IReceiver ---

    def greet(self) -> list[ReceiverEvent]:
        """Greet (RFC 5321 section 4.3.1)."""
        self._greet()
        return self._flush()

    def receive(self, data: bytes) -> list[ReceiverEvent]:
        """Take bytes from the client."""
        if self._state is State.OVER:
            return []
        self._reader.feed(data)
        return self._go_on()

    def secured(self) -> list[ReceiverEvent]:
        """TLS is on: what was said in the clear is forgotten (RFC 3207 section 4.2)."""
        self._tls = True
        self._reader.forget()
        self._hello = b""
        self._state = State.COMMAND
        return []

    def answer(self, outcome: Outcome) -> list[ReceiverEvent]:
        """Answer a RCPT, or a BDAT that is not the last."""
        reply = reply_to(outcome)
        if self._state is State.RECIPIENT:
            self._accepted += reply.positive
            self._commands -= reply.positive
            self._out.append(Send(written(reply)))
        elif self._state is State.ENDING:
            self._say(b"250 2.0.0 Chunk taken")
        self._state = State.COMMAND
        return self._go_on()

    def proceed(self) -> list[ReceiverEvent]:
        """Have the message sent."""
        self._state = State.CONTENT
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
        ended = self._state is State.ENDING and (self._chunk is None or self._chunk.last)
        if ended and self._dialect.splits:
            self._out += [Send(written(reply_to(outcome))) for outcome in outcomes]
        else:
            self._out.append(Send(written(together(outcomes))))
        data_refused = self._state is State.BEGINNING and self._chunk is None
        adrift = self._content is not None and self._content.adrift
        self._forget_transaction()
        self._commands = self._bad = 0
        self._state = State.COMMAND
        if adrift:
            # What follows may be a part of the message, that a stranger wrote.
            self._hang_up(Farewell.BAD_LINE_ENDS)
        elif data_refused:
            self._nothing_may_follow()
        return self._go_on()

    def seam(self) -> Seam:
        """Return what logins at backends have to know."""
        return Seam(self._terms.host_name, self._hello, self._ttl)

    # --- running ---

    def _flush(self) -> list[ReceiverEvent]:
        events, self._out = self._out, []
        return events

    def _go_on(self) -> list[ReceiverEvent]:
        going = True
        while going:
            if self._state is State.COMMAND:
                going = self._next_command()
            elif self._state is State.CONTENT:
                going = self._more_content()
            elif self._state is State.OVER:
                self._reader.forget()
                going = False
            else:
                going = False
                if self._state is State.HANDSHAKE and len(self._reader):
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
        if (why := foreign(line)) is not None:
            self._hang_up(why)
            return True
        verb, rest = arguments.read_command(line)
        command = COMMANDS.get(verb)
        if command is None:
            self._bad_command(replies.NOT_UNDERSTOOD)
        else:
            command(self, rest)
        return True

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
            self._state = State.ENDING
        else:  # a chunk that nobody has asked for is read, as it would look like commands
            self._forget_transaction()
            self._state = State.COMMAND
            self._say(b"503 5.5.1 Nobody to send it to")
        return True
