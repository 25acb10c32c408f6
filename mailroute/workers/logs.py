"""Log events on their way from a worker to the parent, which has the log."""

from __future__ import annotations

import marshal
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

_LEFT_BEHIND = ("log_logger", "log_source", "log_level")
_OF_ANY = ("log_time", "log_namespace", "log_system")


def packed(event: LogEvent) -> bytes:
    """Return an event as bytes.

    One that has only simple values, as each session's line has, keeps them
    all.  Of any other the text is sent, with its traceback if it has one.
    """
    level: Any = event.get("log_level")
    simple = {key: value for key, value in event.items() if key not in _LEFT_BEHIND}
    simple["log_level"] = getattr(level, "name", "info")
    try:
        if "{log_source" in (event.get("log_format") or ""):
            return _as_text(event)
        message = marshal.dumps(simple)
    except (ValueError, TypeError):  # there is an object in it
        return _as_text(event)
    return message if len(message) <= MAX_EVENT else _as_text(event)


def unpacked(message: bytes) -> LogEvent:
    """Return the event.

    :raises ValueError: the bytes are none.
    """
    # A worker is a copy of a process of ours: were it not to be trusted, we were not either.
    event: LogEvent = marshal.loads(message)  # noqa: S302
    event["log_level"] = LogLevel.lookupByName(event["log_level"])
    return event


def _as_text(event: LogEvent) -> bytes:
    text = eventAsText(event, includeTimestamp=False, includeSystem=False)
    kept = {key: event[key] for key in _OF_ANY if isinstance(event.get(key), str | float)}
    text = text.encode("utf-8", "surrogatepass")[: MAX_EVENT - 1000].decode("utf-8", "ignore")
    level = getattr(event.get("log_level"), "name", "info")
    return marshal.dumps({**kept, "log_level": level, "log_format": "{text}", "text": text})


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
