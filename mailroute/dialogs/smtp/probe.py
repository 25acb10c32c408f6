"""Looking at a backend that takes mail: what it says before any, and how it takes XCLIENT."""

from __future__ import annotations

from attrs import evolve
from zope.interface import implementer

from mailroute.dialogs.common.login import GREETING, STARTTLS
from mailroute.dialogs.common.probe import CommandProbe, looking
from mailroute.dialogs.common.text import said
from mailroute.dialogs.smtp.dialect import Dialect
from mailroute.dialogs.smtp.extensions import Extensions
from mailroute.dialogs.smtp.login import HELLO, XCLIENT, SmtpLogin
from mailroute.events import LoginOrder, LoginTerms
from mailroute.interfaces import IProbe
from mailroute.sights import Greeted, Introduced, Offered
from mailroute.wire.lines import Parts

_TRUST = (
    "name this host's address in its smtpd_authorized_xclient_hosts (Postfix) or "
    "login_trusted_networks (Dovecot)"
)


@implementer(IProbe)
class SmtpProbe(SmtpLogin, CommandProbe):
    """Looks at one backend, over one connection."""

    def __init__(self, dialect: Dialect, terms: LoginTerms) -> None:
        super().__init__(dialect, evolve(looking(terms), tell_client=False))
        self._terms = looking(terms)
        self._look(terms)
        self._extensions: Extensions | None = None

    def _response(self, parts: Parts) -> None:
        positive = parts[0][:1] == b"2"
        if self._state is GREETING:
            self._sights.append(Greeted(said(b" ".join(parts))))
        if self._state is XCLIENT and not (positive and self._to_tell):
            self._note_answer(positive, said(b" ".join(parts)))
        elif self._state is HELLO and not positive:
            self._sights.append(Offered(()))
            self._take_leave()
        else:
            super()._response(parts)

    def _prepared(self) -> None:
        if self._extensions is None:
            self._say_hello()
        else:
            super()._prepared()

    def _ready(self, extensions: Extensions) -> None:
        self._extensions = extensions
        self._prepared()

    def _offer(self) -> Offered:
        extensions = self._extensions or {}
        return Offered(
            tuple(said(b" ".join((keyword, *words))) for keyword, words in extensions.items()),
            tuple(map(said, extensions.get(b"AUTH", ()))),
            starttls=b"STARTTLS" in extensions,
        )

    def _ask_for_tls(self) -> None:
        self._extensions = None  # those inside TLS count
        self._state = STARTTLS
        self._said += b"STARTTLS\r\n"

    def _present(self, order: LoginOrder) -> None:
        listed = (self._extensions or {}).get(b"XCLIENT", ())
        commands = self._introduction(order, listed)
        if not commands:
            self._sights.append(Introduced(False, "XCLIENT is not among its extensions", _TRUST))
            self._take_leave()
            return
        first, *self._to_tell = commands
        self._listed = tuple(map(said, listed))
        self._state = XCLIENT
        self._said += first

    def _note_answer(self, positive: bool, text: str) -> None:
        how, remedy = f"it takes XCLIENT: {text}", ""
        if not positive:
            how, remedy = f"it refuses the XCLIENT that it offers: {text}", _TRUST
        self._sights.append(Introduced(positive, how, remedy, self._listed))
        self._take_leave()

    def _take_leave(self) -> None:
        self._leave(b"QUIT\r\n")
