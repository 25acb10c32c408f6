"""Looking at a backend that speaks in commands and responses: what the probes of such protocols share."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from attrs import evolve

from mailroute.dialogs.common.login import GREETING, LOGIN, CommandLogin
from mailroute.dialogs.common.text import said
from mailroute.dialogs.common.xclient import xclient
from mailroute.dialogs.common.xclient_login import XclientLogin
from mailroute.events import LoggedIn, LoginEvent, LoginOrder, LoginTerms, Method
from mailroute.sights import Greeted, Introduced, Offered, Sight
from mailroute.wire.lines import Parts


def looking(terms: LoginTerms) -> LoginTerms:
    """Return the terms of a login that first asks in the clear what there is."""
    return evolve(terms, starttls=False)


class CommandProbe(CommandLogin):
    """Goes as far as a login that has no credentials yet, and asks on its way for all there is to see.

    It stands behind a protocol's login among the bases.  The protocol says what
    is offered (`_offer`), how TLS is asked for and the client introduced, and calls
    `_look` to begin with and `_note_greeting` for each response.
    """

    _may_begin_tls: bool
    _sights: list[Sight]

    @abstractmethod
    def _offer(self) -> Offered:
        """Return what the backend offers as things stand."""

    @abstractmethod
    def _ask_for_tls(self) -> None:
        """Send the command that begins TLS."""

    @abstractmethod
    def _present(self, order: LoginOrder) -> None:
        """Tell the backend who the client is, and `_take_leave` when it has answered."""

    @abstractmethod
    def _take_leave(self) -> None:
        """Say goodbye, with `_leave`."""

    def seen(self) -> list[Sight]:
        """Return, and forget, what it has seen since the last call."""
        sights, self._sights = self._sights, []
        return sights

    def secured(self) -> list[LoginEvent]:
        """TLS is on: what is offered may be something else now."""
        self._may_begin_tls = False
        return super().secured()

    def _look(self, terms: LoginTerms) -> None:
        self._may_begin_tls = terms.starttls
        self._sights = []

    def _note_greeting(self, parts: Parts) -> None:
        if self._state is GREETING:
            self._sights.append(Greeted(said(parts[0])))

    def _prepared(self) -> None:
        offer = self._offer()
        self._sights.append(offer)
        if offer.starttls and self._may_begin_tls:
            self._ask_for_tls()
        elif self._terms.tell_client and self._order is not None:
            self._present(self._order)
        else:
            self._take_leave()

    def _leave(self, farewell: bytes) -> None:
        """Say these last words, and be done."""
        self._said += farewell
        self._end(LoggedIn())


_TRUST = "name this host's address in its login_trusted_networks (Dovecot)"


class XclientProbe(CommandProbe, XclientLogin):
    """A probe of a backend that may take XCLIENT in one line."""

    _not_offered: ClassVar[str]
    """What tells that it does not."""

    def _present(self, order: LoginOrder) -> None:
        if not self._takes_xclient:
            self._sights.append(Introduced(False, self._not_offered, _TRUST))
            self._take_leave()
            return
        self._said += xclient(Method.REPLAY, order) + b"\r\n"
        self._xclient_sent = True
        self._state = LOGIN

    def _xclient_answered(self, agreed: bool, text: bytes) -> None:
        self._xclient_sent = False
        how, remedy = ("takes XCLIENT", "") if agreed else ("refuses the XCLIENT that it offers", _TRUST)
        self._sights.append(Introduced(agreed, f"it {how}: {said(text)}", remedy))
        self._take_leave()
