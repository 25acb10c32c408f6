"""The backend's side of SMTP and LMTP until it takes mail (RFC 5321, 2033, 3207)."""

from __future__ import annotations

import enum

from zope.interface import implementer

from mailroute.dialogs.smtp.dialect import TOKEN, Dialect, Seam
from mailroute.dialogs.smtp.extensions import Extensions, read_extensions
from mailroute.dialogs.smtp.replies import harmless, said
from mailroute.dialogs.smtp.xclient import xclient_commands
from mailroute.envelope import Reply
from mailroute.events import (
    LoggedIn,
    LoginEvent,
    LoginOrder,
    LoginTerms,
    Reason,
    Refusal,
    Refused,
    Send,
    StartTLS,
)
from mailroute.interfaces import ILogin
from mailroute.wire.smtp_reader import BadReply, ReplyReader


class State(enum.Enum):
    """What we wait for; the words are those of the log."""

    GREETING = "waiting for the greeting"
    HELLO = "waiting for the answer to EHLO or LHLO"
    STARTTLS = "waiting for the answer to STARTTLS"
    HANDSHAKE = "waiting for TLS"
    XCLIENT = "waiting for the answer to XCLIENT"
    OVER = "done"


@implementer(ILogin)
class SmtpLogin:
    """Makes one connection ready to take mail; the ``welcome`` is the backend's extensions."""

    def __init__(self, dialect: Dialect, terms: LoginTerms) -> None:
        self._dialect = dialect
        self._order: LoginOrder | None = None
        self._seam = Seam("localhost")
        self._reader = ReplyReader()
        self._state = State.GREETING
        self._secure = not terms.starttls
        self._introduced = not terms.tell_client
        self._to_tell: list[bytes] = []
        self._out: list[LoginEvent] = []

    # --- ILogin ---

    def open(self, order: LoginOrder) -> list[LoginEvent]:
        """Take mail for this client; always called before `start`, since nobody keeps these ready."""
        self._order = order
        if isinstance(order.seam, Seam):
            self._seam = order.seam
        return []

    def start(self) -> list[LoginEvent]:
        """Wait for the greeting."""
        return []

    def receive(self, data: bytes) -> list[LoginEvent]:
        """Take bytes from the backend."""
        self._reader.feed(data)
        try:
            while self._state not in (State.OVER, State.HANDSHAKE):
                whole = self._reader.reply()
                if whole is None:
                    break
                code, lines = whole
                self._reply(harmless(code, lines))
        except BadReply as bad:
            self._refuse(Reason.UNAVAILABLE, f"the backend sent {bad}")
        return self._flush()

    def secured(self) -> list[LoginEvent]:
        """TLS is on: what the backend said in the clear is forgotten (RFC 3207 section 4.2)."""
        self._secure = True
        self._reader.forget()
        self._say_hello()
        return self._flush()

    def doing(self) -> str:
        """Say what it waits for, for the log."""
        return self._state.value

    # --- running ---

    def _flush(self) -> list[LoginEvent]:
        events, self._out = self._out, []
        return events

    def _refuse(self, reason: Reason, detail: str) -> None:
        self._state = State.OVER
        self._out.append(Refused(Refusal(reason, detail)))

    def _say_hello(self) -> None:
        self._state = State.HELLO
        name = self._seam.host_name.encode("ascii", "replace")
        self._out.append(Send(b"%s %s\r\n" % (self._dialect.hello, name)))

    def _reply(self, reply: Reply) -> None:
        if not reply.positive:
            reason = Reason.UNAVAILABLE
            if reply.code >= 500 and self._state is not State.GREETING:
                reason = Reason.MISCONFIGURED
            self._refuse(reason, f"{self._state.value}: {said(reply)}")
        elif self._state is State.GREETING:
            if TOKEN in reply.lines[0].split():
                self._refuse(
                    Reason.MISCONFIGURED, "the backend is this mailroute itself: the routes form a loop"
                )
            else:
                self._say_hello()
        elif self._state is State.HELLO:
            self._said_hello(read_extensions(reply.lines))
        elif self._state is State.STARTTLS:
            self._state = State.HANDSHAKE
            self._reader.forget()
            self._out.append(StartTLS())
        elif self._to_tell:
            self._out.append(Send(self._to_tell.pop(0)))
        else:
            # It has begun anew, and may offer other things to whom it takes us for now.
            self._say_hello()

    def _said_hello(self, extensions: Extensions) -> None:
        if not self._secure:
            if b"STARTTLS" not in extensions:
                self._refuse(Reason.MISCONFIGURED, "the backend offers no STARTTLS")
                return
            self._state = State.STARTTLS
            self._out.append(Send(b"STARTTLS\r\n"))
            return
        if not self._introduced and self._order is not None:
            self._introduced = True
            offered = extensions.get(b"XCLIENT", ())
            self._to_tell = xclient_commands(offered, self._order.client, self._seam, self._dialect)
            if self._to_tell:
                self._state = State.XCLIENT
                self._out.append(Send(self._to_tell.pop(0)))
                return
        self._state = State.OVER
        self._out.append(LoggedIn(extensions))
