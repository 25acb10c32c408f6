"""What a process writes to its standard output and error."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

_log = Logger(namespace="mailroute.workers")

MAX_WORDS = 1000
"""Bytes of one line: longer ones are logged in pieces."""


@implementer(IReadDescriptor)
class Words:
    """Logs the lines, of which there are none while all is well.

    Python says there why it cannot start, and libraries why they have ended the process.

    :param who: what the log calls the process.
    :param descriptor: of the reading end of a pipe; it is closed here.
    """

    def __init__(self, who: str, descriptor: int, reactor: Any) -> None:
        self._who = who
        self._descriptor = descriptor
        self._reactor = reactor
        self._rest = b""
        self.last = ""
        os.set_blocking(descriptor, False)
        reactor.addReader(self)

    def fileno(self) -> int:
        """Return the descriptor to watch; -1 once it is closed."""
        return self._descriptor

    def doRead(self) -> None:
        """Read some of it."""
        self._read()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives it up, because it ends."""
        del reason
        self.close()

    def logPrefix(self) -> str:
        """Return a name for the log."""
        return "workers"

    def drain(self) -> None:
        """Read all that there is."""
        while self._descriptor >= 0 and self._read():
            pass

    def close(self) -> None:
        """Read no more."""
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1
            self._say(self._rest)
            self._rest = b""

    def _read(self) -> bool:
        try:
            data = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return False
        if not data:
            self.close()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._say(line)
        if len(self._rest) > MAX_WORDS:
            self._say(self._rest)
            self._rest = b""
        return True

    def _say(self, line: bytes) -> None:
        for first in range(0, len(line), MAX_WORDS):
            text = line[first : first + MAX_WORDS].decode("utf-8", "backslashreplace").rstrip()
            if text:
                self.last = text.strip()
                _log.error("{who} says: {text}", who=self._who, text=text)
