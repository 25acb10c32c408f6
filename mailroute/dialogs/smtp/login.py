"""The backend's side of SMTP and LMTP until it takes mail (RFC 5321, 2033, 3207)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mailroute.dialogs.common.login import GREETING, READY, STARTTLS, CommandLogin, State
from mailroute.dialogs.common.plan import NoWay
from mailroute.dialogs.common.text import said
from mailroute.dialogs.common.xclient import xclient_lines
from mailroute.dialogs.smtp.dialect import TOKEN, Dialect, Seam
from mailroute.dialogs.smtp.extensions import Extensions, read_extensions
from mailroute.events import LoggedIn, LoginEvent, LoginOrder, LoginTerms, Reason
from mailroute.wire.lines import Parts
from mailroute.wire.smtp_reader import ReplyReader

HELLO = State("waiting for the answer to EHLO or LHLO")
XCLIENT = State("waiting for the answer to XCLIENT")


class SmtpLogin(CommandLogin):
    """Makes one connection ready to take mail; the ``welcome`` is the backend's extensions."""

    __slots__ = ("_dialect", "_introduced", "_seam", "_to_tell")

    def __init__(self, dialect: Dialect, terms: LoginTerms) -> None:
        super().__init__(terms, ReplyReader())
        self._dialect = dialect
        self._seam = Seam("localhost")
        self._introduced = not terms.tell_client
        self._to_tell: list[bytes] = []

    def open(self, order: LoginOrder) -> list[LoginEvent]:
        """Take mail for this client."""
        if isinstance(order.seam, Seam):
            self._seam = order.seam
        return super().open(order)

    # --- replies ---

    def _response(self, parts: Parts) -> None:
        code = int(parts[0])
        if self._state is READY:
            self._refuse(Reason.UNAVAILABLE, f"the backend spoke before a login: {said(b' '.join(parts))}")
        elif (answered := _ANSWERED.get(self._state)) is None:
            self._protocol_error("a reply where none was expected")
        elif 200 <= code < 300:
            answered(self, parts[1:])
        else:
            reason = Reason.UNAVAILABLE
            if code >= 500 and self._state is not GREETING:
                reason = Reason.MISCONFIGURED
            self._refuse(reason, f"{self.doing()}: the backend said: {said(b' '.join(parts))}")

    def _greeting(self, texts: Parts) -> None:
        if TOKEN in texts[0].split():
            self._refuse(Reason.MISCONFIGURED, "the backend is this mailroute itself: the routes form a loop")
        elif self._secure:
            self._prepared()
        else:
            self._say_hello()

    def _begin(self) -> None:
        self._prepared()

    def _log_in(self, order: LoginOrder) -> None:
        del order
        self._say_hello()

    def _hello_name(self) -> bytes:
        return self._seam.host_name.encode("ascii", "replace")

    def _say_hello(self) -> None:
        self._state = HELLO
        self._said += b"%s %s\r\n" % (self._dialect.hello, self._hello_name())

    def _hello_answered(self, texts: Parts) -> None:
        extensions = read_extensions(texts)
        if not self._secure:
            if b"STARTTLS" not in extensions:
                self._refuse(Reason.MISCONFIGURED, "the backend offers no STARTTLS")
                return
            self._state = STARTTLS
            self._said += b"STARTTLS\r\n"
            return
        if not self._introduced and self._order is not None:
            self._introduced = True
            try:
                self._to_tell = self._introduction(self._order, extensions.get(b"XCLIENT", ()))
            except NoWay as error:
                self._refuse(Reason.MISCONFIGURED, str(error))
                return
            if self._to_tell:
                self._state = XCLIENT
                self._said += self._to_tell.pop(0)
                return
        self._ready(extensions)

    def _introduction(self, order: LoginOrder, listed: Parts) -> list[bytes]:
        """Return the XCLIENT commands; never with LOGIN, which would name somebody who has logged in."""
        return xclient_lines(listed, order.client, self._told(), self._seam.ttl)

    def _told(self) -> list[tuple[bytes, bytes]]:
        return [(b"PROTO", self._dialect.proto), (b"HELO", self._seam.hello)]

    def _xclient_answered(self, texts: Parts) -> None:
        del texts
        if self._to_tell:
            self._said += self._to_tell.pop(0)
        else:
            # It has begun anew, and may offer other things to whom it takes us for now.
            self._say_hello()

    def _starttls_answered(self, texts: Parts) -> None:
        self._answered_starttls(True, b" ".join(texts))

    def _ready(self, extensions: Extensions) -> None:
        """The backend takes mail, or the login if there is one."""
        self._end(LoggedIn(extensions))


_ANSWERED: Mapping[State, Callable[[SmtpLogin, Parts], None]] = {
    GREETING: SmtpLogin._greeting,
    HELLO: SmtpLogin._hello_answered,
    STARTTLS: SmtpLogin._starttls_answered,
    XCLIENT: SmtpLogin._xclient_answered,
}
