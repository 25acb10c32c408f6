"""Looking at a backend that takes mail: what it says before a message, and how it takes XCLIENT."""

from __future__ import annotations

from attrs import evolve
from zope.interface import implementer

from mailroute.dialogs.smtp.dialect import Dialect
from mailroute.dialogs.smtp.extensions import Extensions
from mailroute.dialogs.smtp.login import SmtpLogin, State
from mailroute.dialogs.smtp.replies import text_of
from mailroute.dialogs.smtp.xclient import xclient_commands
from mailroute.envelope import Reply
from mailroute.events import Greeted, Introduced, LoggedIn, LoginEvent, LoginTerms, Offered, Send, Sight
from mailroute.interfaces import IProbe

_TRUST = (
    "name this host's address in its smtpd_authorized_xclient_hosts (Postfix) or "
    "login_trusted_networks (Dovecot)"
)


@implementer(IProbe)
class SmtpProbe(SmtpLogin):
    """Looks at one backend, over one connection."""

    def __init__(self, dialect: Dialect, terms: LoginTerms) -> None:
        super().__init__(dialect, evolve(terms, starttls=False, tell_client=False))
        self._terms = terms
        self._may_begin_tls = terms.starttls
        self._sights: list[Sight] = []

    def seen(self) -> list[Sight]:
        """Return, and forget, what it has seen since the last call."""
        sights, self._sights = self._sights, []
        return sights

    def secured(self) -> list[LoginEvent]:
        """TLS is on: what is offered may be something else now."""
        self._may_begin_tls = False
        return super().secured()

    def _reply(self, reply: Reply) -> None:
        if self._state is State.GREETING:
            self._sights.append(Greeted(text_of(reply)))
        if self._state is State.XCLIENT and not (reply.positive and self._to_tell):
            self._note_answer(reply)
        elif self._state is State.HELLO and not reply.positive:
            self._sights.append(Offered(()))
            self._leave()
        else:
            super()._reply(reply)

    def _said_hello(self, extensions: Extensions) -> None:
        offered = Offered(
            tuple(_decoded(keyword, *words) for keyword, words in extensions.items()),
            tuple(_decoded(word) for word in extensions.get(b"AUTH", ())),
            starttls=b"STARTTLS" in extensions,
        )
        self._sights.append(offered)
        if offered.starttls and self._may_begin_tls:
            self._state = State.STARTTLS
            self._out.append(Send(b"STARTTLS\r\n"))
        elif self._terms.tell_client and self._order is not None:
            self._introduce(extensions)
        else:
            self._leave()

    def _introduce(self, extensions: Extensions) -> None:
        order, listed = self._order, extensions.get(b"XCLIENT", ())
        commands = [] if order is None else xclient_commands(listed, order.client, self._seam, self._dialect)
        if not commands:
            self._sights.append(Introduced(False, "XCLIENT is not among its extensions", _TRUST))
            self._leave()
            return
        first, *self._to_tell = commands
        self._listed = tuple(map(_decoded, listed))
        self._state = State.XCLIENT
        self._out.append(Send(first))

    def _note_answer(self, reply: Reply) -> None:
        how = f"it takes XCLIENT: {text_of(reply)}"
        remedy = ""
        if not reply.positive:
            how, remedy = f"it refuses the XCLIENT that it offers: {text_of(reply)}", _TRUST
        self._sights.append(Introduced(reply.positive, how, remedy, self._listed))
        self._leave()

    def _leave(self) -> None:
        self._state = State.OVER
        self._out += [Send(b"QUIT\r\n"), LoggedIn()]


def _decoded(*words: bytes) -> str:
    return b" ".join(words).decode("utf-8", "backslashreplace")
