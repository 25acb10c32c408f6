"""What a client says in SMTP and LMTP, command by command (RFC 5321 section 4.1, 2033, 3030, 3207)."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

from attrs import evolve

from mailroute.dialogs.common.xclient import FIRST_TTL
from mailroute.dialogs.smtp import arguments, replies
from mailroute.dialogs.smtp.bounds import MAX_BAD_WITHOUT_BOUND, MAX_COMMAND
from mailroute.dialogs.smtp.content import Content
from mailroute.dialogs.smtp.dialect import Dialect
from mailroute.dialogs.smtp.extensions import announced
from mailroute.dialogs.smtp.replies import FAREWELLS, written
from mailroute.envelope import Begin, Chunk, DeliveryTerms, MailFrom, RcptTo, ReceiverEvent, Reply, Reset
from mailroute.events import Farewell, HangUp, Send, StartTLS
from mailroute.wire.lines import LineReader


class State(enum.Enum):
    """What the next bytes from the client are."""

    COMMAND = "a command"
    RECIPIENT = "whatever it pipelines behind a RCPT that is under way"
    BEGINNING = "whatever it pipelines behind a DATA or BDAT that is under way"
    CONTENT = "the message, or a chunk of it"
    ENDING = "whatever it pipelines behind a message or a chunk that is under way"
    HANDSHAKE = "TLS; nothing in the clear"
    OVER = "of no interest"


class Commands:
    """A client's dialog, as far as single commands are answered."""

    def __init__(self, dialect: Dialect, terms: DeliveryTerms) -> None:
        self._dialect = dialect
        self._terms = terms
        self._host = terms.host_name.encode("ascii", "replace")
        self._reader = LineReader(MAX_COMMAND, strict=True)
        self._state = State.COMMAND
        self._tls = False
        self._hello = b""
        self._ttl = FIRST_TTL
        self._bad = self._commands = self._messages = 0
        self._mail: MailFrom | None = None
        self._accepted = self._offered = 0
        self._content: Content | None = None
        self._chunk: Chunk | None = None
        self._chunks_begun = False
        self._out: list[ReceiverEvent] = []

    def farewell(self, why: Farewell) -> bytes:
        """Say why (RFC 5321 section 3.8)."""
        self._state = State.OVER
        return FAREWELLS[why] + b"\r\n"

    def _greet(self) -> None:
        self._say(replies.greeting(self._host, self._dialect.name.upper().encode("ascii")))

    def _say(self, line: bytes) -> None:
        self._out.append(Send(line + b"\r\n"))

    def _hang_up(self, why: Farewell) -> None:
        self._out.append(Send(self.farewell(why)))
        self._out.append(HangUp(why))

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

    def _begin_chunk(self, chunk: Chunk) -> None:
        assert self._content is not None  # noqa: S101 (whoever calls it has made one)
        self._state = State.CONTENT
        events = self._content.begin_chunk(chunk)
        if self._mail is not None:
            self._out += events

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
            self._state = State.HANDSHAKE

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
                self._say(mail)
                return
            self._messages += 1
            self._mail = mail = evolve(mail, hello=self._hello)
            self._out.append(mail)
            self._say(b"250 2.1.0 Sender taken")

    def _cmd_rcpt(self, rest: bytes) -> None:
        # Whatever is wrong here is no offence: whoever pipelines cannot know that MAIL was refused,
        # and of many recipients some may have addresses that are none.
        if self._mail is None or self._chunks_begun:
            self._say(b"503 5.5.1 Send MAIL first")
            return
        recipient = arguments.read_rcpt(rest, self._terms, self._mail)
        if not isinstance(recipient, RcptTo):
            self._say(recipient)
        elif self._terms.recipients and self._offered >= self._terms.recipients:
            self._say(b"452 4.5.3 Too many recipients")
        else:
            self._offered += 1
            self._state = State.RECIPIENT
            self._out.append(recipient)

    def _cmd_data(self, rest: bytes) -> None:
        if rest:
            self._refuse_data(b"501 5.5.4 DATA takes nothing behind it")
        elif self._mail is None or self._chunks_begun:
            self._refuse_data(b"503 5.5.1 Send MAIL and RCPT first")
        elif not self._accepted:
            self._refuse_data(b"%d 5.5.1 No valid recipients" % (503 if self._dialect.splits else 554))
        else:
            self._state = State.BEGINNING
            self._out.append(Begin())

    def _refuse_data(self, line: bytes) -> None:
        """Refuse it, which is no offence: whoever pipelines cannot know (RFC 2920 section 3.1)."""
        self._say(line)
        self._nothing_may_follow()

    def _nothing_may_follow(self) -> None:
        """End the connection if a message comes with a DATA that was refused.

        Nobody may send one before the 354; its lines, which may be a stranger's, would be run as commands.
        """
        if len(self._reader):
            self._hang_up(Farewell.TOO_MANY_BAD_COMMANDS)

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
            self._state = State.BEGINNING
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

    def _cmd_xclient(self, rest: bytes) -> None:
        """Hear how many proxies the connection may still pass (Postfix's XCLIENT_README, Dovecot's TTL).

        Nobody gains by lying: it only ever gets less.  Any other attribute would let a client say that
        it is somebody else.
        """
        ttl = arguments.read_ttl(rest)
        if ttl is None:
            self._bad_command(replies.NOT_OFFERED)
        elif self._mail is not None:
            self._bad_command(b"503 5.5.1 There is a sender already")
        elif min(ttl, self._ttl) <= 1:
            self._say(b"550 5.4.6 Too many proxies: do the routes form a loop?")
        else:
            self._ttl = min(ttl, self._ttl)
            self._hello = b""
            self._greet()

    def _cmd_refused(self, rest: bytes) -> None:
        del rest
        self._bad_command(replies.NOT_OFFERED)

    def _cmd_quit(self, rest: bytes) -> None:
        del rest
        self._call_off()
        self._hang_up(Farewell.LOGGED_OUT)


def _hello(verb: bytes) -> Callable[[Commands, bytes], None]:
    return lambda client, rest: client._cmd_hello(rest, verb)


COMMANDS: Mapping[bytes, Callable[[Commands, bytes], None]] = {
    **{verb: _hello(verb) for verb in (b"EHLO", b"HELO", b"LHLO")},
    b"STARTTLS": Commands._cmd_starttls,
    b"MAIL": Commands._cmd_mail,
    b"RCPT": Commands._cmd_rcpt,
    b"DATA": Commands._cmd_data,
    b"BDAT": Commands._cmd_bdat,
    b"RSET": Commands._cmd_rset,
    b"NOOP": Commands._cmd_noop,
    b"VRFY": Commands._cmd_vrfy,
    b"HELP": Commands._cmd_help,
    b"QUIT": Commands._cmd_quit,
    b"XCLIENT": Commands._cmd_xclient,
    # What would let a client say that it is somebody else, or is not for those who deliver mail.
    **dict.fromkeys((b"AUTH", b"XFORWARD", b"EXPN", b"ETRN", b"TURN"), Commands._cmd_refused),
}
