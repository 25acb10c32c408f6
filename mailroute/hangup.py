"""SIGHUP: the end of the terminal, or somebody who would have the configuration read again.

Left alone, it ends the process on the spot, and nobody hears a goodbye.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

_log = Logger(namespace="mailroute")


class Hangup(Service):
    """Has the program end in good order when its terminal is gone; without a terminal, SIGHUP does nothing.

    Other servers read their configuration again, and keep their sessions.  Who expects that
    here is told in the log what to do, and loses no session by it.

    :param reactor: the one that the signal ends.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._terminal = self._ending = False

    def startService(self) -> None:
        """Handle the signal, unless whoever has started the program wants it ignored (``nohup``)."""
        super().startService()
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            # A daemon has left its terminal by now.
            self._terminal = _has_terminal()
            signal.signal(signal.SIGHUP, self._heard)

    def _heard(self, number: int, frame: object) -> None:
        del number, frame
        # Not here, where anything may be in the middle of what it does.
        self._reactor.callFromThread(self._act)

    def _act(self) -> None:
        if not self._terminal:
            _log.warn(
                "SIGHUP does nothing: the configuration is read at the start alone; "
                "restart mailroute to have it read again"
            )
        elif self.running and not self._ending:
            _log.info("SIGHUP: the terminal is gone, and mailroute ends")
            self._ending = True
            # A shell passes on what its jobs have had from the kernel already, late perhaps.
            # As the interpreter ends it gives up its handlers, but what is ignored stays so.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            self._reactor.stop()


def _has_terminal() -> bool:
    """Tell whether the process would hear if somebody closed its terminal."""
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return True
    return False
