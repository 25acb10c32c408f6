"""A port that is bound, or the program does not start."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailroute.descriptors import remedy

_log = Logger(namespace="mailroute")

_LOCKED = "Cannot acquire lock"
"""What Twisted says of a UNIX socket that another process has."""


_USUAL = {
    errno.EADDRINUSE: "stop what uses it",
    errno.EACCES: "ports below 1024 are root's: begin as root and name --uid and --gid, let systemd open it",
}


class StartError(SystemExit, Exception):
    """mailroute cannot start; the text says why.

    As an `Exception` it makes twistd remove its pid file and tell the process
    that started a daemon; as a `SystemExit` it makes the interpreter print the
    text instead of a traceback, and exit with status 1.
    """


class CannotListen(StartError):
    """A port cannot be had.

    :param name: what the log calls the listener.
    :param why: what is wrong, and what to do about it without changing where to listen.
    :param key: where that has been said; empty if it is not to be changed.
    """

    def __init__(self, name: str, why: str, key: str) -> None:
        # As SystemExit, it is printed by its only argument.
        super().__init__(f"mailroute: cannot listen on {name}: {why}{key and f'change {key}'}")
        self.listener = name
        self._why = why
        self._key = key

    def because_of(self, key: str) -> CannotListen:
        """Return it for somebody who has said elsewhere where to listen, such as on the command line."""
        return CannotListen(self.listener, self._why, self._key and key)


class Listening(Service):
    """A listener's port: it is bound, or the program does not start.

    :param name: what the log calls the listener.
    :param endpoint: returns what to listen on, or raises `ValueError`.
    :param announced: the log has it already that there is this listener.
    :param key: what says in the configuration where it listens, for the operator who has to change it.
    """

    def __init__(
        self,
        factory: IProtocolFactory,
        name: str,
        endpoint: Callable[[], IStreamServerEndpoint],
        *,
        announced: bool = False,
        key: str = "the listener's endpoint",
    ) -> None:
        self.listener = name
        self._key = key
        self._announced = announced
        self._accepting = factory
        self._endpoint = endpoint
        self._listening: Deferred[IListeningPort] | None = None
        self._port: IListeningPort | None = None

    def privilegedStartService(self) -> None:
        """Bind, while the program may still bind low ports.

        :raises CannotListen: it cannot.
        """
        super().privilegedStartService()
        failed: list[Failure] = []
        try:
            self._listening = self._endpoint().listen(self._accepting)
        except ValueError as error:
            raise CannotListen(self.listener, str(error), "") from None
        self._listening.addCallbacks(self._listens, failed.append)
        if failed:
            raise self._cannot(failed[0].value)

    def startService(self) -> None:
        """Begin, and bind if that has not been done (a service that is added late)."""
        super().startService()
        if self._listening is None:
            self.privilegedStartService()

    def stopService(self) -> Deferred[Any]:
        """Stop listening."""
        super().stopService()
        port, self._port, self._listening = self._port, None, None
        return succeed(None) if port is None else maybeDeferred(port.stopListening)

    def _listens(self, port: IListeningPort) -> None:
        self._port = port
        if not self._announced:
            _log.info("listening: {listener}", listener=self.listener)

    def _cannot(self, error: BaseException | None) -> CannotListen:
        reason = getattr(error, "socketError", None) or error
        if advice := remedy(reason).removeprefix("; "):
            return CannotListen(self.listener, f"{reason}: {advice}", "")
        why = _of_a_path(error, reason)
        if not why:
            usual = _USUAL.get(getattr(reason, "errno", None) or 0)
            why = f"{reason}: {usual}, or " if usual else f"{reason}: "
        return CannotListen(self.listener, why, self._key)


def _of_a_path(error: object, reason: object) -> str:
    """Say why a UNIX socket cannot be made; nothing if it is none, or there is nothing else to say."""
    # Twisted makes a lock beside it first, and may fail with that.
    lock = getattr(reason, "filename2", None)
    path = lock if lock is not None else getattr(error, "port", None)
    if not isinstance(path, bytes | str):
        return ""
    path = Path(os.fsdecode(path))
    path = path.with_name(path.name.removesuffix(".lock")) if lock is not None else path
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}: make it, for the user that runs mailroute, or "
    if path.exists() and not path.is_socket():
        return f"{path} is there already, and is no socket: remove it, or "
    if reason == _LOCKED:
        return "another program listens there: stop it, or "
    if isinstance(reason, PermissionError):
        return f"this user may make nothing in {path.parent}: give it the right to, or "
    return ""
