"""The client's side of mail submission before the login (RFC 6409, 5321, 4954, 3207)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mailroute.dialogs.common.dialog import CommandDialog
from mailroute.dialogs.common.foreign import foreign
from mailroute.dialogs.common.states import State
from mailroute.dialogs.smtp import arguments, replies
from mailroute.dialogs.smtp.dialect import SUBMISSION, Seam
from mailroute.dialogs.smtp.extensions import announced_before_login
from mailroute.envelope import Reply
from mailroute.events import DialogEvent, DialogTerms, Farewell, LoggedIn, Reason, Refusal, Send
from mailroute.wire.lines import LineReader, Parts
from mailroute.wire.sasl import MAX_RESPONSE

MAX_LINE = MAX_RESPONSE
"""Bytes in one command line: AUTH may have the whole of a SASL message behind it (RFC 4954 section 4)."""

# RFC 4954 section 6; 525 and the rest of 5.7 as RFC 5248 and its registry have them.  Whatever is wrong
# on our side is a reason to try again: a client that is told for good asks for another password.
REPLIES = {
    Reason.AUTHENTICATION_FAILED: b"535 5.7.8 Authentication failed",
    Reason.AUTHORIZATION_FAILED: b"535 5.7.8 Not allowed to send as this user",
    Reason.UNAVAILABLE: b"454 4.7.0 The mail server cannot be reached, try again later",
    Reason.MISCONFIGURED: b"454 4.3.5 The mail service is not set up correctly, tell its operator",
    Reason.LIMIT: b"454 4.7.0 Too many logins, try again later",
    Reason.EXPIRED: b"535 5.7.8 The password has expired",
    Reason.CONTACT_ADMIN: b"525 5.7.13 The account is disabled, ask its operator",
    Reason.PRIVACY_REQUIRED: b"538 5.7.11 Encryption is required, use STARTTLS first",
}

_NO_TLS_YET = b"530 5.7.0 Must issue a STARTTLS command first"
_NO_LOGIN_YET = b"530 5.7.0 Authentication required"


class SubmissionDialog(CommandDialog):
    """One client's dialog from the greeting to the login."""

    __slots__ = ("_hello", "_host")

    def __init__(self, terms: DialogTerms) -> None:
        super().__init__(terms, LineReader(MAX_LINE, strict=True))
        self._host = terms.host_name.encode("ascii", "replace")
        self._hello = b""

    # --- IDialog ---

    def greet(self) -> list[DialogEvent]:
        """Greet (RFC 5321 section 4.3.1)."""
        return [Send(replies.greeting(self._host, SUBMISSION.proto) + b"\r\n")]

    def secured(self) -> list[DialogEvent]:
        """TLS is on: what was said in the clear is forgotten, EHLO too (RFC 3207 section 4.2)."""
        self._hello = b""
        return super().secured()

    def accept(self, outcome: LoggedIn) -> bytes:
        """Answer AUTH with the backend's words."""
        text = outcome.welcome
        return b"235 %s\r\n" % (text if isinstance(text, bytes) and text else b"2.7.0 Logged in")

    # --- answers ---

    def _bad(self, text: bytes) -> bytes:
        return b"501 5.5.2 " + text

    def _no(self, refusal: Refusal) -> bytes:
        return refusal.reply or REPLIES[refusal.reason]

    def _unsupported(self) -> bytes:
        return b"504 5.5.4 Unrecognized authentication type"

    def _challenge(self, text: bytes) -> bytes:
        return b"334 " + text

    def _goodbye(self, why: Farewell) -> bytes:
        if why is Farewell.TOO_LONG and self._state is State.SASL:
            return b"500 5.5.6 Authentication exchange line is too long"
        return replies.FAREWELLS[why]

    def _seam(self) -> Seam:
        return Seam(self._terms.host_name, self._hello)

    # --- commands ---

    def _command(self, parts: Parts) -> None:
        (line,) = parts
        if (why := foreign(line)) is not None:
            self._hang_up(why)
            return
        verb, rest = arguments.read_command(line)
        command = _COMMANDS.get(verb)
        if command is None:
            self._bad_command(replies.NOT_UNDERSTOOD)
        else:
            command(self, rest)

    def _do_ehlo(self, rest: bytes) -> None:
        self._introduce(rest, announced_before_login(self._terms, self._tls))

    def _do_helo(self, rest: bytes) -> None:
        self._introduce(rest, ())

    def _introduce(self, name: bytes, extensions: tuple[bytes, ...]) -> None:
        if not name or len(name) > arguments.MAX_HELLO:
            self._bad_command(replies.NO_NAME)
            return
        self._hello = name
        self._said += replies.written(Reply(250, (self._host, *extensions)))

    def _do_starttls(self, rest: bytes) -> None:
        if rest:
            self._bad_command(replies.STARTTLS_TAKES_NOTHING)
        elif self._tls:
            self._bad_command(b"503 5.5.1 TLS is already on")
        elif not self._terms.tls_offered:
            self._bad_command(replies.NO_TLS)
        else:
            self._start_tls(replies.BEGIN_TLS)

    def _do_auth(self, rest: bytes) -> None:
        words = rest.split()
        if not self._hello:
            self._bad_command(b"503 5.5.1 Say EHLO first")
        elif not 1 <= len(words) <= 2:
            self._bad_command(b"501 5.5.4 AUTH takes a mechanism, and an initial response")
        elif self._may_log_in():
            name = words[0].upper().decode("ascii", "replace")
            self._authenticate(name, words[1] if len(words) > 1 else None)

    def _do_noop(self, rest: bytes) -> None:
        del rest
        self._send(replies.NOTHING_DONE)

    def _do_rset(self, rest: bytes) -> None:
        del rest
        self._send(replies.FORGOTTEN)

    def _do_help(self, rest: bytes) -> None:
        del rest
        self._send(b"214 2.0.0 RFC 6409")

    def _do_quit(self, rest: bytes) -> None:
        del rest
        self._send(self._goodbye(Farewell.LOGGED_OUT))
        self._log_out()

    def _do_not_offered(self, rest: bytes) -> None:
        del rest
        self._bad_command(replies.NOT_OFFERED)

    def _do_after_login(self, rest: bytes) -> None:
        del rest
        self._bad_command(_NO_LOGIN_YET if self._login_allowed() else _NO_TLS_YET)

    def _do_bdat(self, rest: bytes) -> None:
        """End the connection: the chunk that follows would be taken for commands."""
        self._do_after_login(rest)
        if self._state is not State.OVER:
            self._hang_up(Farewell.TOO_MANY_BAD_COMMANDS)


_COMMANDS: Mapping[bytes, Callable[[SubmissionDialog, bytes], None]] = {
    b"EHLO": SubmissionDialog._do_ehlo,
    b"HELO": SubmissionDialog._do_helo,
    b"STARTTLS": SubmissionDialog._do_starttls,
    b"AUTH": SubmissionDialog._do_auth,
    b"NOOP": SubmissionDialog._do_noop,
    b"RSET": SubmissionDialog._do_rset,
    b"HELP": SubmissionDialog._do_help,
    b"QUIT": SubmissionDialog._do_quit,
    b"BDAT": SubmissionDialog._do_bdat,
    # RFC 4954 section 6: any command but those above may have to wait for the login.
    **dict.fromkeys(
        (b"MAIL", b"RCPT", b"DATA", b"BURL", b"VRFY", b"EXPN", b"ETRN"), SubmissionDialog._do_after_login
    ),
    # What would let a client say that it is somebody else.
    **dict.fromkeys((b"XCLIENT", b"XFORWARD"), SubmissionDialog._do_not_offered),
}
