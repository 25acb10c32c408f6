"""The client's side of a protocol that nobody here speaks."""

from __future__ import annotations

from zope.interface import implementer

from mailroute.dialogs.common.dialog import MAX_AHEAD
from mailroute.events import (
    NOBODY,
    Attempt,
    DialogEvent,
    Farewell,
    HangUp,
    LoggedIn,
    Refusal,
)
from mailroute.interfaces import IDialog
from mailroute.wire.scram import StoredKeys


@implementer(IDialog)
class TcpDialog:
    """Sends a client on its way at once; it is never told anything, for nobody knows its language."""

    __slots__ = ("_ahead", "_over")

    def __init__(self) -> None:
        self._ahead = b""
        self._over = False

    def greet(self) -> list[DialogEvent]:
        """Ask for the backend: there is nothing to wait for."""
        return [Attempt(NOBODY)]

    def receive(self, data: bytes) -> list[DialogEvent]:
        """Keep the client's first bytes for the backend."""
        if self._over:
            return []
        if len(self._ahead) + len(data) > MAX_AHEAD:
            self._end()
            return [HangUp(Farewell.TOO_LONG)]
        self._ahead += data
        return []

    def secured(self) -> list[DialogEvent]:
        """Nothing: it never asks for TLS."""
        return []

    def certified(self) -> None:
        """Nothing: nobody logs in."""

    def bound(self, binding: bytes) -> None:
        """Nothing: nobody logs in."""

    def keys(self, keys: StoredKeys) -> list[DialogEvent]:
        """Nothing: none are wanted."""
        del keys
        return []

    def accept(self, outcome: LoggedIn) -> bytes:
        """Return nothing: the backend's own bytes are the first that the client gets."""
        del outcome
        return b""

    def reject(self, refusal: Refusal) -> list[DialogEvent]:
        """Hang up: there are no words for it."""
        self._end()
        return [HangUp(refusal.reason)]

    def farewell(self, why: Farewell) -> bytes:
        """Return nothing, and take nothing any more."""
        del why
        self._end()
        return b""

    def rest(self) -> bytes:
        """Return, and forget, the first bytes for the backend."""
        rest, self._ahead = self._ahead, b""
        return rest

    def _end(self) -> None:
        self._over = True
        self._ahead = b""
