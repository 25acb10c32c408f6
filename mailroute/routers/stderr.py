"""What a program writes to its standard error, as it gets into the log: bounded, and without passwords."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mailroute.events import Credentials
from mailroute.sources.echo import LEFT_OUT, echoes

MAX_SAID = 1024
"""Bytes of a line that get into the log."""

MAX_HEARD = 16384
"""Bytes of a line that are looked at for a password in them; the rest of a longer one is passed over."""

MAX_LINES = 20
"""Lines in a second that get into the log: one that writes on and on fills no disk."""

_log = Logger(namespace="mailroute.routers")


class StandardError:
    """Logs lines.

    :param label: whose they are.
    :param shown: returns what the program has been asked about.
    """

    def __init__(self, label: str, clock: IReactorTime, shown: Callable[[], Iterable[Credentials]]) -> None:
        self._label = label
        self._clock = clock
        self._shown = shown
        self._rest = bytearray()
        self._second = -1.0
        self._lines = self._left_out = 0

    def received(self, data: bytes) -> None:
        """Take what it writes."""
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest[:MAX_HEARD])
        for line in lines:
            if self._may():
                self._say(line[:MAX_HEARD].decode("utf-8", "backslashreplace"))

    def ended(self) -> None:
        """Log its last words: a line without an end, and how much was left out."""
        if self._rest:
            self.received(b"\n")
        self._tell_left_out()

    def _may(self) -> bool:
        """Whether one more line of this second may be logged."""
        now = self._clock.seconds()
        if not 0 <= now - self._second < 1:
            self._tell_left_out()
            self._second, self._lines = now, 0
        self._lines += 1
        if self._lines > MAX_LINES:
            self._left_out += 1
            return False
        return True

    def _tell_left_out(self) -> None:
        if self._left_out:
            _log.info(
                "{source}: the program says more than {most} lines a second: {number} are left out",
                source=self._label,
                most=MAX_LINES,
                number=self._left_out,
            )
        self._left_out = 0

    def _say(self, line: str) -> None:
        said = ascii(line)[1:-1][:MAX_SAID]
        if any(echoes(line, shown) for shown in self._shown()):
            said = LEFT_OUT
        _log.info("{source}: the program says: {said}", source=self._label, said=said)
