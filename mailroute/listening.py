"""A port that is bound, or the program does not start."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailroute.descriptors import remedy

_log = Logger(namespace="mailroute")


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

        :raises StartError: it cannot.
        """
        super().privilegedStartService()
        failed: list[Failure] = []
        try:
            self._listening = self._endpoint().listen(self._accepting)
        except ValueError as error:
            raise StartError(self._cannot(error)) from None
        self._listening.addCallbacks(self._listens, failed.append)
        if failed:
            raise StartError(self._cannot(failed[0].value))

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

    def _cannot(self, error: BaseException | None) -> str:
        reason = getattr(error, "socketError", None) or error
        usual = _USUAL.get(getattr(reason, "errno", None) or 0)
        if isinstance(reason, PermissionError) and reason.filename is not None:
            usual = "let mailroute's user write into that folder"
        advice = f"change {self._key}" if usual is None else f"{usual}, or change {self._key}"
        advice = remedy(reason).removeprefix("; ") or advice
        return f"mailroute: cannot listen on {self.listener}: {reason}: {advice}"
