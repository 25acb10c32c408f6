"""The client's side of ManageSieve before the login (RFC 5804)."""

from __future__ import annotations

from mailroute.dialogs.common.dialog import CommandDialog
from mailroute.dialogs.managesieve.replies import FAREWELLS, REPLIES, capabilities, reply
from mailroute.events import DialogEvent, DialogTerms, Farewell, LoggedIn, Refusal, Send
from mailroute.wire.lines import Malformed, Parts, Stop
from mailroute.wire.literal_reader import LiteralReader
from mailroute.wire.sasl import MAX_RESPONSE
from mailroute.wire.sieve_syntax import MAX_QUOTED, Arguments, give_back, say, write

MAX_UNIT = MAX_RESPONSE + 1024
"""Bytes in one command with its literals: AUTHENTICATE with the longest initial response there may be."""

_NO_STRING = b"!"  # stands for a response that is no string, as it is no base64


class ManageSieveDialog(CommandDialog):
    """One client's dialog from the greeting to the login."""

    __slots__ = ()

    def __init__(self, terms: DialogTerms) -> None:
        # A client's literals never wait; one without its "+" is read as if it were there.
        super().__init__(terms, LiteralReader(synchronising=False, literal=MAX_RESPONSE, unit=MAX_UNIT))

    # --- IDialog ---

    def greet(self) -> list[DialogEvent]:
        """Greet with the capabilities (RFC 5804 section 1.7)."""
        return [Send(self._capabilities() + reply(b"OK", b"mailroute ready.") + b"\r\n")]

    def secured(self) -> list[DialogEvent]:
        """TLS is on: forget what was said in the clear, and list the capabilities again (section 2.2)."""
        return [*super().secured(), Send(self._capabilities() + reply(b"OK", b"TLS is on.") + b"\r\n")]

    def accept(self, outcome: LoggedIn) -> bytes:
        """Answer AUTHENTICATE with the backend's words.

        No capabilities follow: they would only behind a SASL security layer (section 2.1).
        """
        text = outcome.welcome
        return b"OK %s\r\n" % say(text if isinstance(text, bytes) and text else b"Logged in.")

    # --- answers ---

    def _bad(self, text: bytes) -> bytes:
        return reply(b"NO", text)

    def _no(self, refusal: Refusal) -> bytes:
        return reply(b"NO", refusal.reply or REPLIES[refusal.reason])

    def _unsupported(self) -> bytes:
        return reply(b"NO", b"Unsupported authentication mechanism.")

    def _challenge(self, text: bytes) -> bytes:
        return write(text)

    def _goodbye(self, why: Farewell) -> bytes:
        # The answer to LOGOUT is OK (section 2.3).
        return reply(b"OK" if why is Farewell.LOGGED_OUT else b"BYE", FAREWELLS[why])

    def _capabilities(self) -> bytes:
        return capabilities(self._terms, self._tls)

    # --- reading ---

    def _response(self) -> bytes | Stop:
        unit = self._reader.unit()
        if isinstance(unit, Stop):
            return unit
        try:
            return Arguments(unit).only_string()
        except Malformed:
            return _NO_STRING

    # --- commands ---

    def _command(self, parts: Parts) -> None:
        arguments = Arguments(parts)
        command = _COMMANDS.get(arguments.command())
        if command is None:
            raise Malformed("Unknown command, or not before login")
        command(self, arguments)

    def _do_capability(self, arguments: Arguments) -> None:
        arguments.end()
        self._said += self._capabilities()
        self._send(reply(b"OK", b"Done."))

    def _do_noop(self, arguments: Arguments) -> None:
        tag = arguments.optional_string()
        arguments.end()
        if tag is None:
            self._send(reply(b"OK", b"Done."))
        elif (written := give_back(tag)) is None:
            raise Malformed(f"The tag must be UTF-8, at most {MAX_QUOTED} bytes long")
        else:
            self._send(b"OK (TAG %s) %s" % (written, say(b"Done.")))

    def _do_logout(self, arguments: Arguments) -> None:
        arguments.end()
        self._send(self._goodbye(Farewell.LOGGED_OUT))
        self._log_out()

    def _do_starttls(self, arguments: Arguments) -> None:
        arguments.end()
        self._start_tls(reply(b"OK", b"Begin TLS now."))

    def _do_authenticate(self, arguments: Arguments) -> None:
        if self._may_log_in():
            name = arguments.string().upper().decode("ascii", "replace")
            initial = arguments.optional_string()
            arguments.end()
            self._authenticate(name, initial)


_COMMANDS = {
    b"CAPABILITY": ManageSieveDialog._do_capability,
    b"NOOP": ManageSieveDialog._do_noop,
    b"LOGOUT": ManageSieveDialog._do_logout,
    b"STARTTLS": ManageSieveDialog._do_starttls,
    b"AUTHENTICATE": ManageSieveDialog._do_authenticate,
}
