"""The client's side of IMAP before the login (RFC 3501, 9051, 4959, 7888, 2971, 5530)."""

from __future__ import annotations

import base64
import contextlib
import enum

from zope.interface import implementer

from mailroute.dialogs.imap.bounds import MAX_AHEAD, MAX_BAD_WITHOUT_BOUND, MAX_COMMANDS
from mailroute.dialogs.imap.replies import FAREWELLS, REPLIES, capabilities
from mailroute.dialogs.imap.seam import OUR_ID, Hello, Welcome
from mailroute.events import (
    Attempt,
    Credentials,
    DialogEvent,
    DialogTerms,
    Farewell,
    HangUp,
    LoggedIn,
    Proof,
    Reason,
    Refusal,
    Send,
    StartTLS,
)
from mailroute.interfaces import IDialog
from mailroute.wire.imap_reader import ImapReader, Parts, Stop
from mailroute.wire.imap_syntax import Arguments, Malformed, is_http
from mailroute.wire.sasl import MAX_RESPONSE, Exchange, SaslError


class _State(enum.Enum):
    """What the next bytes from the client are."""

    COMMAND = "a command"
    SASL = "a line of an AUTHENTICATE exchange"
    CHALLENGED = "the client's answer to an OAuth error"
    BUSY = "whatever it pipelines behind a login that is under way"
    HANDSHAKE = "TLS; nothing in the clear"
    OVER = "of no interest"


# By these names because Python 3.11 is slow to find a member in its class.
_COMMAND = _State.COMMAND
_BUSY = _State.BUSY


@implementer(IDialog)
class ImapDialog:
    """One client's dialog from the greeting to the login."""

    __slots__ = (
        "_asked_capabilities",
        "_bad",
        "_commands",
        "_exchange",
        "_id_pairs",
        "_out",
        "_reader",
        "_refusal",
        "_said",
        "_state",
        "_tag",
        "_terms",
        "_tls",
    )

    def __init__(self, terms: DialogTerms) -> None:
        self._terms = terms
        self._reader = ImapReader(synchronising=True)
        self._state = _State.COMMAND
        self._tag = b"*"
        self._tls = False
        self._bad = self._commands = 0
        self._asked_capabilities = False
        self._id_pairs: tuple[tuple[bytes, bytes], ...] = ()
        self._exchange: Exchange | None = None
        self._refusal: Refusal | None = None
        self._said = b""
        self._out: list[DialogEvent] = []  # what happens before that

    # --- IDialog ---

    def greet(self) -> list[DialogEvent]:
        """Greet with the capabilities (RFC 9051 section 7.1)."""
        return [Send(b"* OK [CAPABILITY %s] mailroute ready.\r\n" % capabilities(self._terms, self._tls))]

    def receive(self, data: bytes) -> list[DialogEvent]:
        """Take bytes from the client."""
        if self._state is _State.OVER:
            return []
        self._reader.feed(data)
        return self._go_on()

    def secured(self) -> list[DialogEvent]:
        """TLS is on: what was said in the clear is forgotten (RFC 9051 section 6.2.1)."""
        self._tls = True
        self._asked_capabilities = False
        self._id_pairs = ()
        self._reader.forget()
        self._state = _State.COMMAND
        return []

    def accept(self, outcome: LoggedIn) -> bytes:
        """Answer the login command with the backend's words and the client's tag."""
        self._state = _State.BUSY
        welcome = outcome.welcome
        if not isinstance(welcome, Welcome):
            return b"%s OK Logged in.\r\n" % self._tag
        before = b"".join([line + b"\r\n" for line in welcome.untagged]) if welcome.untagged else b""
        if self._asked_capabilities:
            # A client that has asked may not look for a code: it is told untagged, as Dovecot does.
            before = b"* CAPABILITY %s\r\n%s" % (welcome.capabilities, before)
            return b"%s%s OK %s\r\n" % (before, self._tag, welcome.text)
        return b"%s%s OK [CAPABILITY %s] %s\r\n" % (before, self._tag, welcome.capabilities, welcome.text)

    def reject(self, refusal: Refusal) -> list[DialogEvent]:
        """Answer the login command, and go on with what the client sent behind it."""
        if refusal.challenge is not None and self._exchange is not None:
            # RFC 7628 section 3.2.2: the error goes out as a challenge, which the client
            # acknowledges before the exchange fails.
            self._refusal = refusal
            self._state = _State.CHALLENGED
            self._send(b"+ " + base64.b64encode(refusal.challenge))
        else:
            self._say_no(refusal)
        return self._go_on()

    def farewell(self, why: Farewell) -> bytes:
        """Say BYE (RFC 9051 section 7.1.5)."""
        self._state = _State.OVER
        return b"* BYE %s\r\n" % FAREWELLS[why]

    def rest(self) -> bytes:
        """Return, and forget, the bytes received behind an accepted login."""
        return self._reader.rest()

    # --- running ---

    def _go_on(self) -> list[DialogEvent]:
        going = True
        while going:
            state = self._state
            if state is _COMMAND:
                going = self._next_command()
            elif state is _BUSY:
                going = False
                if len(self._reader) > MAX_AHEAD:
                    self._hang_up(Farewell.TOO_LONG)
            elif state is _State.SASL or state is _State.CHALLENGED:
                going = self._next_line()
            elif state is _State.HANDSHAKE:
                # Nobody should hand us these: the transport's bytes are TLS by now.
                going = False
                if len(self._reader):
                    self._hang_up(Farewell.INJECTION)
            else:
                going = False
                self._reader.forget()
        self._speak()
        events, self._out = self._out, []
        return events

    def _next_command(self) -> bool:
        unit = self._reader.unit()
        if isinstance(unit, tuple):
            self._command(unit)
        elif unit is Stop.MORE:
            return False
        elif unit is Stop.TOO_LONG:
            self._hang_up(Farewell.TOO_LONG)
        elif unit is Stop.LITERAL:
            if self._want_literal(self._reader.peek()):
                self._send(b"+ OK")
        else:
            self._tag = self._tag_of(self._reader.peek())
            self._reader.abandon()
            self._bad_command(b"[TOOBIG] Literal too long.")
        return True

    def _next_line(self) -> bool:
        line = self._reader.line(MAX_RESPONSE)
        if line is Stop.MORE:
            return False
        if isinstance(line, Stop):
            self._hang_up(Farewell.TOO_LONG)
        elif self._state is _State.CHALLENGED:
            refusal, self._refusal = self._refusal, None
            assert refusal is not None  # noqa: S101 (the state says so)
            self._say_no(refusal)
        else:
            self._sasl_line(line)
        return True

    def _want_literal(self, parts: Parts) -> bool:
        """Whether a synchronising literal shall be sent; if not, the command is answered."""
        if not self._login_allowed() and b" LOGIN" in parts[0].upper():
            # Refused before the secret has crossed the wire in the clear.
            self._tag = self._tag_of(parts)
            self._reader.abandon()
            self._say_no(Refusal(Reason.PRIVACY_REQUIRED, "no TLS"))
            return False
        return True

    def _tag_of(self, parts: Parts) -> bytes:
        with contextlib.suppress(Malformed):
            return Arguments(parts).tag()
        return b"*"

    # --- commands ---

    def _command(self, parts: Parts) -> None:
        self._tag = b"*"
        self._commands += 1
        if self._commands > MAX_COMMANDS:
            self._hang_up(Farewell.TOO_MANY_COMMANDS)
            return
        arguments = Arguments(parts)
        try:
            self._tag = arguments.tag()
            name = arguments.word()
            command = _COMMANDS.get(name)
            if command is None:
                raise Malformed("Unknown command, or not before login")
            command(self, arguments)
        except Malformed as error:
            if len(parts) == 1 and is_http(parts[0]):
                self._hang_up(Farewell.NOT_THIS_PROTOCOL)
            else:
                self._bad_command(str(error).encode("ascii") + b".")

    def _do_capability(self, arguments: Arguments) -> None:
        arguments.end()
        self._asked_capabilities = True
        self._send(b"* CAPABILITY " + capabilities(self._terms, self._tls))
        self._answer(b"OK Done.")

    def _do_noop(self, arguments: Arguments) -> None:
        arguments.end()
        self._answer(b"OK Done.")

    def _do_logout(self, arguments: Arguments) -> None:
        arguments.end()
        self._send(b"* BYE " + FAREWELLS[Farewell.LOGGED_OUT])
        self._answer(b"OK Done.")
        self._state = _State.OVER
        self._then(HangUp(Farewell.LOGGED_OUT))

    def _do_id(self, arguments: Arguments) -> None:
        pairs = arguments.id_pairs()
        arguments.end()
        self._id_pairs = pairs
        self._send(b"* ID " + OUR_ID)
        self._answer(b"OK Done.")

    def _do_starttls(self, arguments: Arguments) -> None:
        arguments.end()
        if self._tls:
            raise Malformed("TLS is already on")
        if not self._terms.tls_offered:
            raise Malformed("STARTTLS is not offered here")
        if len(self._reader):
            # Bytes in the clear that would later count as protected: CVE-2011-0411 and its kin.
            self._answer(b"BAD Nothing may follow STARTTLS.")
            self._hang_up(Farewell.INJECTION)
            return
        self._answer(b"OK Begin TLS now.")
        self._state = _State.HANDSHAKE
        self._then(StartTLS())

    def _do_login(self, arguments: Arguments) -> None:
        if not self._login_allowed():
            self._say_no(Refusal(Reason.PRIVACY_REQUIRED, "no TLS"))
            return
        user = arguments.astring()
        password = arguments.astring()
        arguments.end()
        self._exchange = None
        self._attempt(Credentials("LOGIN", user, password))

    def _do_authenticate(self, arguments: Arguments) -> None:
        if not self._login_allowed():
            self._say_no(Refusal(Reason.PRIVACY_REQUIRED, "no TLS"))
            return
        name = arguments.word().decode("ascii")
        initial = arguments.optional_bytes()
        arguments.end()
        if name not in self._terms.mechanisms:
            self._answer(b"NO [CANNOT] Unsupported authentication mechanism.")
            return
        self._exchange = Exchange(name)
        self._state = _State.SASL
        if initial is None:
            self._prompt()
        else:
            self._sasl_line(initial)

    # --- SASL ---

    def _prompt(self) -> None:
        assert self._exchange is not None  # noqa: S101 (the state says so)
        self._send(b"+ " + self._exchange.prompt())

    def _sasl_line(self, line: bytes) -> None:
        exchange = self._exchange
        assert exchange is not None  # noqa: S101 (the state says so)
        self._state = _State.COMMAND
        if line == b"*":
            self._bad_command(b"Authentication aborted.")
            return
        try:
            answer = exchange.respond(line)
        except SaslError as error:
            self._bad_command(str(error).encode("ascii") + b".")
            return
        if answer is None:
            self._state = _State.SASL
            self._prompt()
        else:
            proof = Proof.TOKEN if exchange.is_token else Proof.PASSWORD
            self._attempt(Credentials(exchange.name, answer.user, answer.secret, answer.authorize_as, proof))

    def _attempt(self, credentials: Credentials) -> None:
        self._state = _State.BUSY
        self._then(Attempt(credentials, Hello(self._id_pairs)))

    # --- answers ---

    def _send(self, line: bytes) -> None:
        self._said += line + b"\r\n"

    def _speak(self) -> None:
        """Send what has been said, as one segment if it is about several commands."""
        if self._said:
            self._out.append(Send(self._said))
            self._said = b""

    def _then(self, event: DialogEvent) -> None:
        """Have something happen behind what has been said."""
        self._speak()
        self._out.append(event)

    def _answer(self, text: bytes) -> None:
        self._send(self._tag + b" " + text)

    def _say_no(self, refusal: Refusal) -> None:
        self._exchange = None
        self._state = _State.COMMAND
        self._answer(b"NO " + (refusal.reply or REPLIES[refusal.reason]))

    def _bad_command(self, text: bytes) -> None:
        self._exchange = None
        self._answer(b"BAD " + text)
        self._bad += 1
        if self._bad >= (self._terms.bad_commands or MAX_BAD_WITHOUT_BOUND):
            self._hang_up(Farewell.TOO_MANY_BAD_COMMANDS)

    def _hang_up(self, why: Farewell) -> None:
        self._said += self.farewell(why)
        self._then(HangUp(why))

    def _login_allowed(self) -> bool:
        return self._tls or self._terms.login_allowed


_COMMANDS = {
    b"CAPABILITY": ImapDialog._do_capability,
    b"NOOP": ImapDialog._do_noop,
    b"LOGOUT": ImapDialog._do_logout,
    b"ID": ImapDialog._do_id,
    b"STARTTLS": ImapDialog._do_starttls,
    b"LOGIN": ImapDialog._do_login,
    b"AUTHENTICATE": ImapDialog._do_authenticate,
}
