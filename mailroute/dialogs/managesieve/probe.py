"""Looking at a ManageSieve backend: what it says before a login, and how it takes XCLIENT."""

from __future__ import annotations

from zope.interface import implementer

from mailroute.dialogs.common.login import STARTTLS
from mailroute.dialogs.common.probe import XclientProbe, looking
from mailroute.dialogs.common.text import said
from mailroute.dialogs.managesieve.login import ManageSieveLogin
from mailroute.events import LoginTerms
from mailroute.interfaces import IProbe
from mailroute.sights import Offered
from mailroute.wire.lines import Parts


@implementer(IProbe)
class ManageSieveProbe(ManageSieveLogin, XclientProbe):
    """Looks at one backend, over one connection."""

    _not_offered = "XCLIENT is not among its capabilities"

    def __init__(self, terms: LoginTerms) -> None:
        super().__init__(looking(terms))
        self._look(terms)
        self._lines: list[str] = []

    def _response(self, parts: Parts) -> None:
        if not self._listed:
            # The greeting is its capabilities (RFC 5804 section 1.7); the first one names the server.
            self._note_greeting(parts)
        super()._response(parts)

    def _begin(self) -> None:
        self._lines.clear()
        super()._begin()

    def _capability(self, name: bytes, value: bytes = b"", *more: bytes) -> None:
        self._lines.append(said(name + b" " + value if value else name))
        super()._capability(name, value, *more)

    def _offer(self) -> Offered:
        mechanisms = sorted(said(word) for word in self._mechanisms)
        starttls = any(line.upper() == "STARTTLS" for line in self._lines)
        return Offered(tuple(self._lines), tuple(mechanisms), starttls=starttls)

    def _ask_for_tls(self) -> None:
        self._said += b"STARTTLS\r\n"
        self._state = STARTTLS

    def _take_leave(self) -> None:
        self._leave(b"LOGOUT\r\n")
