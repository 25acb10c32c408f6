"""The one log line, and structured event, that a session leaves when it ends."""

from __future__ import annotations

from time import time
from typing import Any

from attrs import define
from twisted.logger import Logger, LogLevel

from mailroute.events import Client, Refusal

_log = Logger(namespace="mailroute.session")

_ENDED = (
    'session %s ended: user=%s client=%s listener="%s" backend=%s '
    "tls=%s lookup=%.3fs connect=%.3fs login=%.3fs in=%s out=%s duration=%.3fs reason=%s"
)

_REFUSED = 'session %s login refused: user=%s client=%s listener="%s" backend=%s why=%s detail=%s'


def printable(text: str, also: str = "") -> str:
    """Return a stranger's text so that it cannot begin a line or hide one.

    :param also: further characters that it may have.
    """
    if text.isprintable() and (" " in also or " " not in text):
        return text
    return "".join(c if c in also or (c.isprintable() and c != " ") else f"\\u{ord(c):04x}" for c in text)


@define
class SessionRecord:
    """What is known of one session, for its log line; times are seconds.

    ``bytes_in`` came from the client and ``bytes_out`` went to it, both
    counted from the login on.
    """

    client: Client
    listener: str
    started: float
    user: str = "-"
    backend: str = "-"
    lookup: float = 0.0
    connect: float = 0.0
    login: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0

    def settle(self) -> None:
        """Forget what no line tells, before the session is held for long."""
        client = self.client
        self.client = Client(
            client.session_id, client.source, None, client.tls, client.server_name, client.of_proxy
        )

    def count(self, passed: Any) -> None:
        """Note how many bytes have passed in two joined connections, or in all until their end."""
        self.bytes_in, self.bytes_out = passed.bytes_a_to_b, passed.bytes_b_to_a

    def ended(self, reason: str, now: float) -> None:
        """Log the session's end; a proxy's look at whether anybody is there leaves no line."""
        if self.client.of_proxy and self.user == "-" and (self.backend == "-" or not self.bytes_in):
            return
        duration = now - self.started
        session_id, user, client, tls = self._known()
        _emit(
            LogLevel.info,
            {
                "line": _ENDED
                % (
                    session_id,
                    user,
                    client,
                    self.listener,
                    self.backend,
                    tls,
                    self.lookup,
                    self.connect,
                    self.login,
                    self.bytes_in,
                    self.bytes_out,
                    duration,
                    reason,
                ),
                "session_id": session_id,
                "user": user,
                "client": client,
                "listener": self.listener,
                "backend": self.backend,
                "tls": tls,
                "lookup": self.lookup,
                "connect": self.connect,
                "login": self.login,
                "bytes_in": self.bytes_in,
                "bytes_out": self.bytes_out,
                "duration": duration,
                "reason": reason,
            },
        )

    def refused(self, refusal: Refusal) -> None:
        """Log a login that failed, for whoever watches over guessing."""
        why, detail = refusal.reason.value, printable(refusal.detail, " ")
        session_id, user, client, tls = self._known()
        _emit(
            LogLevel.warn,
            {
                "line": _REFUSED % (session_id, user, client, self.listener, self.backend, why, detail),
                "session_id": session_id,
                "user": user,
                "client": client,
                "listener": self.listener,
                "backend": self.backend,
                "tls": tls,
                "why": why,
                "detail": detail,
            },
        )

    def _known(self) -> tuple[str, str, str, str]:
        client = self.client
        return (
            client.session_id,
            printable(self.user),
            "local" if client.source is None else str(client.source),
            client.tls or "none",
        )


def _emit(level: Any, event: dict[str, object]) -> None:
    """Publish an event with its ``line`` as the text.

    Every session pays for it, so it does not go through `Logger.emit` and the
    text is not a format: to have twistd fill in fifteen fields, which looks
    each of them up as a possible call, costs more than the login does.
    """
    event["log_logger"] = _log
    event["log_level"] = level
    event["log_namespace"] = _log.namespace
    event["log_source"] = None
    event["log_format"] = "{line}"
    event["log_time"] = time()
    _log.observer(event)
