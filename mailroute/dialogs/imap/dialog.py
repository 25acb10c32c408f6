"""The client's side of IMAP before the login (RFC 3501, 9051, 4959, 7888, 2971, 5530)."""

from __future__ import annotations

import contextlib

from mailroute.dialogs.common.dialog import CommandDialog
from mailroute.dialogs.imap.replies import FAREWELLS, REPLIES, capabilities
from mailroute.dialogs.imap.seam import OUR_ID, Hello, Welcome
from mailroute.events import (
    Credentials,
    DialogEvent,
    DialogTerms,
    Farewell,
    LoggedIn,
    Refusal,
    Send,
)
from mailroute.wire.imap_syntax import Arguments
from mailroute.wire.lines import Malformed, Parts, Stop
from mailroute.wire.literal_reader import LiteralReader


class ImapDialog(CommandDialog):
    """One client's dialog from the greeting to the login."""

    __slots__ = ("_asked_capabilities", "_id_pairs", "_tag")

    _reader: LiteralReader

    def __init__(self, terms: DialogTerms) -> None:
        super().__init__(terms, LiteralReader(synchronising=True))
        self._tag = b"*"
        self._asked_capabilities = False
        self._id_pairs: tuple[tuple[bytes, bytes], ...] = ()

    # --- IDialog ---

    def greet(self) -> list[DialogEvent]:
        """Greet with the capabilities (RFC 9051 section 7.1)."""
        return [Send(b"* OK [CAPABILITY %s] mailroute ready.\r\n" % capabilities(self._terms, self._tls))]

    def secured(self) -> list[DialogEvent]:
        """TLS is on: what was said in the clear is forgotten (RFC 9051 section 6.2.1)."""
        self._asked_capabilities = False
        self._id_pairs = ()
        return super().secured()

    def accept(self, outcome: LoggedIn) -> bytes:
        """Answer the login command with the backend's words and the client's tag."""
        welcome = outcome.welcome
        if not isinstance(welcome, Welcome):
            return b"%s OK Logged in.\r\n" % self._tag
        before = b"".join([line + b"\r\n" for line in welcome.untagged]) if welcome.untagged else b""
        if self._asked_capabilities:
            # A client that has asked may not look for a code: it is told untagged, as Dovecot does.
            before = b"* CAPABILITY %s\r\n%s" % (welcome.capabilities, before)
            return b"%s%s OK %s\r\n" % (before, self._tag, welcome.text)
        return b"%s%s OK [CAPABILITY %s] %s\r\n" % (before, self._tag, welcome.capabilities, welcome.text)

    # --- answers ---

    def _bad(self, text: bytes) -> bytes:
        return self._tag + b" BAD " + text

    def _no(self, refusal: Refusal) -> bytes:
        return self._tag + b" NO " + (refusal.reply or REPLIES[refusal.reason])

    def _unsupported(self) -> bytes:
        return self._tag + b" NO [CANNOT] Unsupported authentication mechanism."

    def _challenge(self, text: bytes) -> bytes:
        return b"+ " + text

    def _goodbye(self, why: Farewell) -> bytes:
        """BYE (RFC 9051 section 7.1.5)."""
        return b"* BYE " + FAREWELLS[why]

    def _done(self) -> None:
        self._send(self._tag + b" OK Done.")

    def _seam(self) -> Hello:
        return Hello(self._id_pairs)

    # --- literals ---

    def _stopped(self, stop: Stop) -> None:
        parts = self._reader.peek()
        if stop is Stop.TOO_LONG_LITERAL:
            self._abandon(parts)
            self._bad_command(self._bad(b"[TOOBIG] Literal too long."))
        elif b" LOGIN" in parts[0].upper() and not (self._login_allowed() and self._terms.passwords):
            # Refused before the secret has crossed the wire, in the clear or for nothing.
            self._abandon(parts)
            self._may_show_password()
        else:
            self._send(b"+ OK")

    def _abandon(self, parts: Parts) -> None:
        """Have no more of a command of which that much has come; the answer to it has its tag."""
        self._tag = b"*"
        with contextlib.suppress(Malformed):
            self._tag = Arguments(parts).tag()
        self._reader.abandon()

    # --- commands ---

    def _command(self, parts: Parts) -> None:
        self._tag = b"*"
        arguments = Arguments(parts)
        self._tag = arguments.tag()
        command = _COMMANDS.get(arguments.word())
        if command is None:
            raise Malformed("Unknown command, or not before login")
        command(self, arguments)

    def _do_capability(self, arguments: Arguments) -> None:
        arguments.end()
        self._asked_capabilities = True
        self._send(b"* CAPABILITY " + capabilities(self._terms, self._tls))
        self._done()

    def _do_noop(self, arguments: Arguments) -> None:
        arguments.end()
        self._done()

    def _do_logout(self, arguments: Arguments) -> None:
        arguments.end()
        self._send(self._goodbye(Farewell.LOGGED_OUT))
        self._done()
        self._log_out()

    def _do_id(self, arguments: Arguments) -> None:
        pairs = arguments.id_pairs()
        arguments.end()
        self._id_pairs = pairs
        self._send(b"* ID " + OUR_ID)
        self._done()

    def _do_starttls(self, arguments: Arguments) -> None:
        arguments.end()
        self._start_tls(self._tag + b" OK Begin TLS now.")

    def _do_login(self, arguments: Arguments) -> None:
        if self._may_show_password():
            user = arguments.astring()
            password = arguments.astring()
            arguments.end()
            self._attempt(Credentials("LOGIN", user, password))

    def _do_authenticate(self, arguments: Arguments) -> None:
        if self._may_log_in():
            name = arguments.word().decode("ascii")
            initial = arguments.optional_bytes()
            arguments.end()
            self._authenticate(name, initial)


_COMMANDS = {
    b"CAPABILITY": ImapDialog._do_capability,
    b"NOOP": ImapDialog._do_noop,
    b"LOGOUT": ImapDialog._do_logout,
    b"ID": ImapDialog._do_id,
    b"STARTTLS": ImapDialog._do_starttls,
    b"LOGIN": ImapDialog._do_login,
    b"AUTHENTICATE": ImapDialog._do_authenticate,
}
