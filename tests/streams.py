"""Playing streams of bytes to dialogs and logins, for the properties that hold for all protocols."""

from __future__ import annotations

from attrs import evolve
from hypothesis import strategies as st

from mailroute.events import Attempt, HangUp, LoggedIn, Reason, Refusal, Send, StartTLS
from mailroute.interfaces import IDialog, ILogin

CUTS = st.lists(st.integers(1, 30), min_size=1, max_size=20)
"""How to `cut` a stream."""


def pieces(lines: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
    """Some of these lines, and other bytes in between."""
    return st.lists(st.one_of(lines, lines, lines, st.binary(max_size=300)), max_size=20)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """The stream in segments: ``cuts`` are their lengths, the last one repeated."""
    segments, at, number = [], 0, 0
    while at < len(data):
        size = cuts[min(number, len(cuts) - 1)]
        segments.append(data[at : at + size])
        at, number = at + size, number + 1
    return segments


def play_dialog(dialog: IDialog, segments: list[bytes]) -> tuple[bytes, list[object], bytes]:
    """Play a client's stream; every login is refused but the third, which is accepted.

    :return: what was said, what happened, and what is left for the splice.
    """
    said, events, attempts = bytearray(), [], 0
    queue = list(dialog.greet())
    for number, segment in enumerate([b"", *segments]):
        queue += dialog.receive(segment)
        while queue:
            event = queue.pop(0)
            if isinstance(event, Send):
                said += event.data
                continue
            events.append(event)
            if isinstance(event, HangUp):
                return bytes(said), events, b""
            if isinstance(event, Attempt):
                attempts += 1
                if attempts == 3:
                    said += dialog.accept(LoggedIn())
                    return bytes(said), events, dialog.rest() + b"".join(segments[number:])
                queue += dialog.reject(Refusal(Reason.AUTHENTICATION_FAILED, "a test"))
    return bytes(said), events, b""


def play_login(login: ILogin, segments: list[bytes]) -> tuple[bytes, list[object]]:
    """Play a backend's stream up to the login's end or TLS.

    :return: what was said, and what came of it.
    """
    said = bytearray()
    for number, segment in enumerate(segments):
        for event in login.receive(segment):
            if isinstance(event, Send):
                said += event.data
            elif isinstance(event, LoggedIn):
                return bytes(said), [evolve(event, rest=event.rest + b"".join(segments[number + 1 :]))]
            else:
                return bytes(said), [event]
    return bytes(said), []


def obey(half: IDialog | ILogin, events: list[object]) -> list[object]:
    """Return these events and those of TLS, if they begin it."""
    seen = list(events)
    if any(isinstance(event, StartTLS) for event in events):
        seen += obey(half, half.secured())
    return seen
