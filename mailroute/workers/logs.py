"""Log events on their way from a worker to the parent, which has the log."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    eventAsText,
    globalLogPublisher,
)
from zope.interface import implementer

MAX_EVENT = 60000
"""Bytes of an event as a message; of a longer one, only the beginning of its text is sent."""

_SIMPLE = (str, int, float, bool, type(None))
_LEFT_BEHIND = ("log_logger", "log_source")
_OF_ANY = ("log_time", "log_namespace", "log_system")


def packed(event: LogEvent) -> bytes:
    """Return an event as bytes.

    One that has only simple values, as each session's line has, keeps them
    all.  Of any other the text is sent, with its traceback if it has one:
    Twisted's own JSON would lose what an exception says.
    """
    simple: dict[str, Any] = {}
    for key, value in event.items():
        if isinstance(value, _SIMPLE):
            simple[key] = value
        elif key == "log_level":
            simple[key] = value.name
        elif key not in _LEFT_BEHIND or "{log_source" in str(event.get("log_format")):
            return _as_text(event)
    message = json.dumps(simple).encode()
    return message if len(message) <= MAX_EVENT else _as_text(event)


def unpacked(message: bytes) -> LogEvent:
    """Return the event.

    :raises ValueError: the bytes are none.
    """
    event: LogEvent = json.loads(message)
    event["log_level"] = LogLevel.lookupByName(event.get("log_level", "info"))
    return event


def _as_text(event: LogEvent) -> bytes:
    text = eventAsText(event, includeTimestamp=False, includeSystem=False)
    level = event.get("log_level") or LogLevel.info
    kept = {key: event[key] for key in _OF_ANY if key in event and isinstance(event[key], _SIMPLE)}
    # One character may take twelve bytes.
    return json.dumps(
        {**kept, "log_level": level.name, "log_format": "{text}", "text": text[: MAX_EVENT // 13]}
    ).encode()


@implementer(ILogObserver)
class Sender:
    """The observer of a worker's log: sends every event on.

    :param send: sends an event, and says whether there was room for it.
    """

    def __init__(self, send: Callable[[bytes], bool]) -> None:
        self._send = send
        self._dropped = 0

    def __call__(self, event: LogEvent) -> None:
        """Send an event, and before it how many could not be sent."""
        if self._dropped:
            lost: LogEvent = {
                "log_format": "{dropped} lines of the log are lost: they came faster than they were written",
                "dropped": self._dropped,
                "log_level": LogLevel.error,
                "log_namespace": "mailroute.workers",
                "log_time": event.get("log_time"),
            }
            if self._send(packed(lost)):
                self._dropped = 0
        if self._dropped or not self._send(packed(event)):
            self._dropped += 1


def publish(message: bytes, worker: int) -> None:
    """Log a worker's event in this process, with the worker's number as ``worker``.

    :raises ValueError: the bytes are no event.
    """
    event = unpacked(message)
    event["worker"] = worker
    globalLogPublisher(event)
