"""What a dialog says, put together for as few segments as may be."""

from __future__ import annotations

from mailroute.events import DialogEvent, Send


class Speaker:
    """Collects lines and events, in their order."""

    __slots__ = ("_out", "_said")

    def __init__(self) -> None:
        self._said = b""
        self._out: list[DialogEvent] = []  # what happens before that

    def _taken(self) -> list[DialogEvent]:
        """Return, and forget, what has been collected."""
        events, self._out = self._out, []
        return events

    def _send(self, line: bytes) -> None:
        self._said += line + b"\r\n"

    def _speak(self) -> None:
        """Send what has been said, as one segment if it is about several commands."""
        if self._said:
            self._out.append(Send(self._said))
            self._said = b""

    def _then(self, event: DialogEvent) -> None:
        """Have something happen behind what has been said."""
        self._speak()
        self._out.append(event)
