"""Looking at an IMAP backend: what it says before a login, and how it takes an ID (RFC 2971)."""

from __future__ import annotations

from zope.interface import implementer

from mailroute.dialogs.common.login import STARTTLS, State
from mailroute.dialogs.common.probe import CommandProbe, looking
from mailroute.dialogs.common.text import said
from mailroute.dialogs.imap.identity import id_command
from mailroute.dialogs.imap.login import ImapLogin, upper_case
from mailroute.events import LoginOrder, LoginTerms, Method
from mailroute.interfaces import IProbe
from mailroute.sights import Introduced, Offered
from mailroute.wire.imap_syntax import read_status
from mailroute.wire.lines import Parts

_INTRODUCING = State("waiting for the answer to who the client is")


@implementer(IProbe)
class ImapProbe(ImapLogin, CommandProbe):
    """Looks at one backend, over one connection."""

    def __init__(self, terms: LoginTerms) -> None:
        super().__init__(looking(terms))
        self._look(terms)
        self._named = ""  # what the backend calls itself in answer to the ID

    def _response(self, parts: Parts) -> None:
        self._note_greeting(parts)
        super()._response(parts)

    def _offer(self) -> Offered:
        listed = upper_case(self._capabilities)
        words = [word.decode("ascii") for word in self._capabilities.split()]
        return Offered(
            tuple(words),
            tuple(word[5:].upper() for word in words if word.upper().startswith("AUTH=")),
            starttls=b"STARTTLS" in listed,
            passwords=b"LOGINDISABLED" not in listed,
        )

    def _ask_for_tls(self) -> None:
        self._ask(STARTTLS, b"STARTTLS\r\n")

    def _present(self, order: LoginOrder) -> None:
        if b"ID" not in upper_case(self._capabilities):
            self._sights.append(Introduced(False, "ID is not among its capabilities"))
            self._take_leave()
            return
        self._ask(_INTRODUCING, id_command(Method.REPLAY, order, ()))

    def _untagged_response(self, text: bytes) -> None:
        if self._state is _INTRODUCING and text[:3].upper() == b"ID ":
            self._named = f", and calls itself {said(text[3:])}"
        super()._untagged_response(text)

    def _tagged(self, text: bytes) -> None:
        if self._state is not _INTRODUCING:
            super()._tagged(text)
            return
        status = read_status(text)
        if status is None or status.condition != b"OK":
            self._sights.append(Introduced(False, f"it refuses ID: {said(text)}"))
        else:
            self._sights.append(self._introduced())
        self._take_leave()

    def _introduced(self) -> Introduced:
        """A server answers an ID alike whether it takes its word for the client's address or not."""
        client = self._order.client if self._order is not None else None
        if client is None or client.source is None:
            return Introduced(None, f"it answers ID{self._named}")
        source, session = client.source.host, client.session_id
        detail = f"it answers ID with x-originating-ip{self._named}; whether it believes that, it never says"
        remedy = (
            f"look into its log for the end of session {session}: rip={source} if it believes this host; "
            "if not, name this host's address in its login_trusted_networks (Dovecot)"
        )
        return Introduced(None, detail, remedy)

    def _take_leave(self) -> None:
        self._command(b"LOGOUT\r\n")
        self._leave(b"")
