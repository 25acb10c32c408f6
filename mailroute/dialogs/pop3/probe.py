"""Looking at a POP3 backend: what it says before a login, and how it takes XCLIENT."""

from __future__ import annotations

from zope.interface import implementer

from mailroute.dialogs.common.probe import INTRODUCING, CommandProbe, looking
from mailroute.dialogs.common.text import said
from mailroute.dialogs.common.xclient import xclient
from mailroute.dialogs.pop3.login import Pop3Login
from mailroute.events import LoginOrder, LoginTerms, Method
from mailroute.interfaces import IProbe
from mailroute.sights import Introduced, Offered
from mailroute.wire.lines import Parts

_TRUST = "name this host's address in its login_trusted_networks (Dovecot)"


@implementer(IProbe)
class Pop3Probe(Pop3Login, CommandProbe):
    """Looks at one backend, over one connection."""

    def __init__(self, terms: LoginTerms) -> None:
        super().__init__(looking(terms))
        self._look(terms)
        self._lines: list[str] = []

    def _response(self, parts: Parts) -> None:
        self._note_greeting(parts)
        super()._response(parts)

    def _begin(self) -> None:
        self._lines.clear()
        self._listed = 0
        self._takes_user, self._mechanisms = False, frozenset()
        self._ask_capabilities()

    def _capability(self, line: bytes) -> None:
        if line != b".":
            self._lines.append(said(line))
        super()._capability(line)

    def _offer(self) -> Offered:
        mechanisms = sorted(said(word) for word in self._mechanisms)
        starttls = any(line.upper().split()[:1] == ["STLS"] for line in self._lines)
        return Offered(tuple(self._lines), tuple(mechanisms), starttls=starttls, passwords=self._takes_user)

    def _present(self, order: LoginOrder) -> None:
        if not self._takes_xclient:
            self._sights.append(Introduced(False, "its greeting does not offer [XCLIENT]", _TRUST))
            self._take_leave()
            return
        self._said += xclient(Method.REPLAY, order) + b"\r\n"
        self._xclient_sent = True
        self._state = INTRODUCING

    def _xclient_answered(self, agreed: bool, text: bytes) -> None:
        self._xclient_sent = False
        how, remedy = ("takes XCLIENT", "") if agreed else ("refuses the XCLIENT that it offers", _TRUST)
        self._sights.append(Introduced(agreed, f"it {how}: {said(text)}", remedy))
        self._take_leave()

    def _take_leave(self) -> None:
        self._leave(b"QUIT\r\n")
