"""Streams of bytes for dialogs and logins, and what comes of them, for the tests of all protocols."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from hypothesis import strategies as st
from logins import Case

from mailroute.dialogs.common.dialog import MAX_AHEAD
from mailroute.events import (
    Attempt,
    Credentials,
    DialogTerms,
    HangUp,
    LoggedIn,
    Method,
    Ready,
    Reason,
    Refusal,
    Refused,
    Send,
    StartTLS,
)
from mailroute.interfaces import IDialog, ILogin, IMailProtocol
from mailroute.proofs import Proof

TERMS = DialogTerms(mechanisms=("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"), bad_commands=0)


def ways(order: Case) -> list[Case]:
    """Return the order, and what it would be behind STARTTLS, without a login, and with a token."""
    return [
        order,
        evolve(order, starttls=True),
        evolve(order, method=Method.NONE),
        evolve(order, credentials=Credentials("XOAUTH2", b"bob", b"t", proof=Proof.TOKEN)),
    ]


def pieces(lines: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
    """Return lists of these lines, and now and then of anything else."""
    return st.lists(st.one_of(lines, lines, lines, st.binary(max_size=300)), max_size=20)


def cut(data: bytes, size: int) -> list[bytes]:
    """Return the data in segments of that size."""
    return [data[start : start + size] for start in range(0, len(data), size)]


def play_client(dialog: IDialog, segments: list[bytes]) -> tuple[bytes, list[object], bytes]:
    """Play a client's stream, and return what is said, what happens and what is left behind the login.

    Every login is refused but the third.
    """
    said, events, attempts = bytearray(), [], 0
    queue = []
    for number, segment in enumerate(segments):
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
                    return bytes(said), events, dialog.rest() + b"".join(segments[number + 1 :])
                queue += dialog.reject(Refusal(Reason.AUTHENTICATION_FAILED, "a test"))
    return bytes(said), events, b""


def play_backend(login: ILogin, segments: list[bytes]) -> tuple[bytes, list[object]]:
    """Play a backend's stream, up to the login's end if there is one, and return what is said and happens."""
    said, events = bytearray(), []
    for number, segment in enumerate(segments):
        for event in login.receive(segment):
            if isinstance(event, Send):
                said += event.data
            elif isinstance(event, LoggedIn):
                return bytes(said), [evolve(event, rest=event.rest + b"".join(segments[number + 1 :]))]
            else:
                return bytes(said), [event]
    return bytes(said), events


def check_client(dialog: IDialog, segments: list[bytes], command: bytes) -> None:
    """Insist that no bytes of a client raise, that what is kept is bounded, and that an end is one.

    :param command: one that would be answered, were it not over.
    """
    for segment in segments:
        events = dialog.receive(segment)
        assert len(dialog._reader) <= MAX_AHEAD
        if any(isinstance(event, HangUp) for event in events):
            assert dialog.receive(command) == []
            assert len(dialog._reader) == 0
        if any(isinstance(event, StartTLS) for event in events):
            dialog.secured()


def check_backend(
    protocol: IMailProtocol,
    order: Case,
    segments: list[bytes],
    opened: int,
    bounded: Callable[[ILogin], bool],
) -> None:
    """Insist that no bytes of a backend raise, that it is ready once at most, and that it ends so.

    :param opened: before which segment the order comes.
    :param bounded: tells whether the login keeps no more than it may.
    """
    login = order.unopened(protocol)
    seen = []

    def obey(events: list[object]) -> None:
        seen.extend(events)
        if any(isinstance(event, StartTLS) for event in events):
            obey(login.secured())

    for number, segment in enumerate(segments):
        if number == opened:
            seen.append(order)
            obey(login.open(order.order))
        obey(login.receive(segment))
        assert bounded(login)
    assert sum(isinstance(event, LoggedIn | Refused) for event in seen) <= 1
    assert seen.count(Ready()) <= 1
    assert Ready() not in (seen[seen.index(order) :] if order in seen else [])
