"""Looking at a POP3 backend: what it says before a login, and how it takes XCLIENT."""

from __future__ import annotations

from zope.interface import implementer

from mailroute.dialogs.common.probe import XclientProbe, looking
from mailroute.dialogs.common.text import said
from mailroute.dialogs.pop3.login import Pop3Login
from mailroute.events import LoginTerms
from mailroute.interfaces import IProbe
from mailroute.sights import Offered
from mailroute.wire.lines import Parts


@implementer(IProbe)
class Pop3Probe(Pop3Login, XclientProbe):
    """Looks at one backend, over one connection."""

    _not_offered = "its greeting does not offer [XCLIENT]"

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

    def _take_leave(self) -> None:
        self._leave(b"QUIT\r\n")
