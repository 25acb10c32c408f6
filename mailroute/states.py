"""Where a session can be, and what moves it on."""

from __future__ import annotations

import enum
from collections.abc import Mapping


class State(enum.Enum):
    """Where a session is; the values complete "while …"."""

    TALKING = "no login was under way"
    FETCHING = "looking up the keys of the password"
    CHECKING = "checking the password"
    ROUTING = "looking up the account"
    OPENING = "logging in at the backend"
    REFUSING = "waiting before a refusal"
    JOINED = "joined"
    OVER = "over"

    # Members are one of a kind; enum's own hash of the name is a call in Python.
    __hash__ = object.__hash__


class Happening(enum.Enum):
    """What moves a session on."""

    KEYS = "the client wants to show that it knows its password"
    ATTEMPT = "the client wants to log in"
    DONE = "the state's work is done"
    REFUSED = "the login came to nothing"
    ENDED = "the connection is at its end"

    __hash__ = object.__hash__


NEXT: Mapping[tuple[State, Happening], State] = {
    (State.TALKING, Happening.ATTEMPT): State.CHECKING,
    (State.TALKING, Happening.KEYS): State.FETCHING,
    (State.FETCHING, Happening.DONE): State.TALKING,
    (State.FETCHING, Happening.REFUSED): State.REFUSING,
    (State.CHECKING, Happening.DONE): State.ROUTING,
    (State.CHECKING, Happening.REFUSED): State.REFUSING,
    (State.ROUTING, Happening.DONE): State.OPENING,
    (State.ROUTING, Happening.REFUSED): State.REFUSING,
    (State.OPENING, Happening.DONE): State.JOINED,
    (State.OPENING, Happening.REFUSED): State.REFUSING,
    (State.REFUSING, Happening.DONE): State.TALKING,
    **{(state, Happening.ENDED): State.OVER for state in State if state is not State.OVER},
}
"""What is not here is not possible, or comes too late for a session that has ended."""
