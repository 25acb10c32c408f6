"""The client's side of POP3 before the login (RFC 1939, 2449, 2595, 5034, 3206).

APOP is not offered: what it sends cannot be replayed at a backend.
"""

from __future__ import annotations

from mailroute.dialogs.common.dialog import CommandDialog
from mailroute.dialogs.pop3.replies import FAREWELLS, REPLIES, capabilities
from mailroute.events import Credentials, DialogEvent, DialogTerms, Farewell, LoggedIn, Refusal, Send
from mailroute.wire.lines import LineReader, Malformed, Parts

MAX_LINE = 8192
"""Bytes in one command line.  RFC 2449 section 4 has 255, but clients put a bearer token of some
thousand bytes on the line of AUTH all the same; Dovecot takes as many as this."""


class Pop3Dialog(CommandDialog):
    """One client's dialog from the greeting to the login."""

    __slots__ = ("_user",)

    def __init__(self, terms: DialogTerms) -> None:
        super().__init__(terms, LineReader(MAX_LINE))
        self._user: bytes | None = None  # that USER has named

    # --- IDialog ---

    def greet(self) -> list[DialogEvent]:
        """Greet, without the timestamp that would offer APOP (RFC 1939 section 7)."""
        return [Send(b"+OK mailroute ready.\r\n")]

    def secured(self) -> list[DialogEvent]:
        """TLS is on: what was said in the clear is forgotten (RFC 2595 section 4)."""
        self._user = None
        return super().secured()

    def accept(self, outcome: LoggedIn) -> bytes:
        """Answer PASS or AUTH with the backend's words."""
        text = outcome.welcome
        return b"+OK %s\r\n" % (text if isinstance(text, bytes) else b"Logged in.")

    # --- answers ---

    def _bad(self, text: bytes) -> bytes:
        return b"-ERR " + text

    def _no(self, refusal: Refusal) -> bytes:
        return b"-ERR " + (refusal.reply or REPLIES[refusal.reason])

    def _unsupported(self) -> bytes:
        return b"-ERR Unsupported authentication mechanism."

    def _challenge(self, text: bytes) -> bytes:
        return b"+ " + text

    def _goodbye(self, why: Farewell) -> bytes:
        return FAREWELLS[why]

    # --- commands ---

    def _command(self, parts: Parts) -> None:
        (line,) = parts
        word, _, argument = line.partition(b" ")
        command = _COMMANDS.get(word.upper())
        if command is None:
            # NOOP too: it belongs to the TRANSACTION state (RFC 1939 section 5).
            raise Malformed("Unknown command, or not before login")
        command(self, argument)

    def _do_capa(self, argument: bytes) -> None:
        _nothing(argument)
        self._send(capabilities(self._terms, self._tls))

    def _do_quit(self, argument: bytes) -> None:
        _nothing(argument)
        self._send(self._goodbye(Farewell.LOGGED_OUT))
        self._log_out()

    def _do_stls(self, argument: bytes) -> None:
        _nothing(argument)
        self._start_tls(b"+OK Begin TLS now.", "STLS")

    def _do_user(self, argument: bytes) -> None:
        # Refused here already, before the password crosses the wire in the clear.
        if self._may_show_password():
            self._user = None
            if not argument:
                raise Malformed("USER needs a name")
            self._user = _value(argument)
            self._send(b"+OK Send the password.")

    def _do_pass(self, argument: bytes) -> None:
        if self._may_show_password():
            # For one try: the next one names its user again.
            user, self._user = self._user, None
            if user is None:
                raise Malformed("USER comes before PASS")
            self._attempt(Credentials("USER", user, _value(argument)))

    def _do_auth(self, argument: bytes) -> None:
        self._user = None
        words = argument.split()
        if not words:
            self._list_mechanisms()
        elif len(words) > 2:
            raise Malformed("Too many arguments")
        elif self._may_log_in():
            name = words[0].upper().decode("ascii", "replace")
            self._authenticate(name, words[1] if len(words) > 1 else None)

    def _list_mechanisms(self) -> None:
        """Answer as before CAPA there was; old versions of Outlook still ask so."""
        listed = self._terms.mechanisms if self._login_allowed() else ()
        for line in ("+OK", *listed, "."):
            self._send(line.encode("ascii"))


def _nothing(argument: bytes) -> None:
    if argument.strip(b" "):
        raise Malformed("Too many arguments")


def _value(argument: bytes) -> bytes:
    """Return the whole rest of a line: a user name or a password may have spaces anywhere."""
    if b"\r" in argument or b"\0" in argument:
        raise Malformed("Neither CR nor NUL may stand in a line")
    return argument


_COMMANDS = {
    b"CAPA": Pop3Dialog._do_capa,
    b"QUIT": Pop3Dialog._do_quit,
    b"STLS": Pop3Dialog._do_stls,
    b"USER": Pop3Dialog._do_user,
    b"PASS": Pop3Dialog._do_pass,
    b"AUTH": Pop3Dialog._do_auth,
}
