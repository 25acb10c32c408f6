"""Both halves of plain TCP, as transcripts, and what holds for any bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logins import Case

from mailroute.dialogs import protocol
from mailroute.dialogs.common.dialog import MAX_AHEAD
from mailroute.events import (
    NOBODY,
    Attempt,
    DialogTerms,
    Farewell,
    HangUp,
    LoggedIn,
    Reason,
    Refusal,
)
from mailroute.interfaces import IDialog
from mailroute.testing import Conversation

TCP = protocol("tcp")


def arrived() -> Conversation:
    """A client that has just connected."""
    talk = Conversation(TCP.dialog(DialogTerms()))
    talk.take(talk.half.greet())
    return talk


def waiting() -> Conversation:
    """A client whose backend is being dialled."""
    talk = arrived()
    assert talk.event() == Attempt(NOBODY)
    return talk


# --- the dialog -------------------------------------------------------------


def test_a_client_is_sent_on_at_once() -> None:
    """Nothing is said and nothing waited for: the attempt is the first thing that happens."""
    talk = arrived()
    attempt = talk.event()
    assert attempt.credentials is NOBODY
    assert attempt.seam is None
    assert talk.said() == b""


def test_what_a_client_sends_first_is_for_the_backend() -> None:
    """Bytes that come while the backend is dialled are kept as they are, and given out once."""
    talk = waiting()
    talk.hears(b"GET / HTTP/1.0\r\n")
    talk.hears(b"\r\n\x00\xff")
    assert not talk.events
    assert talk.half.accept(LoggedIn()) == b""
    assert talk.half.rest() == b"GET / HTTP/1.0\r\n\r\n\x00\xff"
    assert talk.half.rest() == b""


@pytest.mark.parametrize("reason", list(Reason))
def test_a_client_without_a_backend_is_hung_up_on(reason: Reason) -> None:
    """There are no words for a failure: the connection ends, for the reason that the log has."""
    talk = waiting()
    talk.hears(b"hello")
    talk.take(talk.half.reject(Refusal(reason, "refused", reply=b"-ERR no", challenge=b"{}")))
    assert talk.event() == HangUp(reason)
    assert talk.said() == b""
    talk.hears(b"anybody?" * MAX_AHEAD)
    assert not talk.events
    assert talk.half.rest() == b""


@pytest.mark.parametrize("why", list(Farewell))
def test_no_farewell_has_words(why: Farewell) -> None:
    """A client that cannot stay is told nothing, and nothing of it is kept."""
    talk = waiting()
    talk.hears(b"hello")
    assert talk.half.farewell(why) == b""
    talk.hears(b"x" * (MAX_AHEAD + 1))
    assert not talk.events
    assert talk.half.rest() == b""


def test_what_a_client_sends_ahead_is_bounded() -> None:
    """Up to the bound all is kept; with one byte more the client is sent away, and nothing is kept."""
    talk = waiting()
    talk.hears(b"x" * MAX_AHEAD)
    assert not talk.events
    talk.hears(b"x")
    assert talk.event() == HangUp(Farewell.TOO_LONG)
    talk.hears(b"x")
    assert not talk.events
    assert talk.half.rest() == b""


@given(st.lists(st.binary(max_size=64)))
def test_segments_make_no_difference(segments: list[bytes]) -> None:
    """Any bytes in any segments come out as they came in."""
    dialog: IDialog = waiting().half
    assert not any(map(dialog.receive, segments))
    assert dialog.rest() == b"".join(segments)


@given(st.lists(st.one_of(st.binary(max_size=64), st.integers(1, MAX_AHEAD).map(bytes)), max_size=8))
def test_no_bytes_break_the_bound(segments: list[bytes]) -> None:
    """Whatever comes, it is kept whole or the client is sent away once."""
    dialog: IDialog = waiting().half
    events = [event for segment in segments for event in dialog.receive(segment)]
    whole = b"".join(segments)
    fits = len(whole) <= MAX_AHEAD
    assert events == ([] if fits else [HangUp(Farewell.TOO_LONG)])
    assert dialog.rest() == (whole if fits else b"")


# --- the login --------------------------------------------------------------


def test_a_backend_is_taken_as_it_is() -> None:
    """A connection to a backend is logged in as soon as it is there, without a word."""
    talk = Conversation(Case(NOBODY, "", tell_client=True).login(TCP))
    assert talk.half.doing()
    talk.take(talk.half.start())
    assert talk.event() == LoggedIn()
    assert talk.said() == b""
