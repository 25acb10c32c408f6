"""The backend's side where nothing is to be said."""

from __future__ import annotations

from zope.interface import implementer

from mailroute.events import LoggedIn, LoginEvent, LoginOrder
from mailroute.interfaces import ILogin


@implementer(ILogin)
class NoLogin:
    """Takes a connection for logged in as soon as it is there."""

    __slots__ = ()

    def open(self, order: LoginOrder) -> list[LoginEvent]:
        """Nothing: nobody is logged in."""
        del order
        return []

    def start(self) -> list[LoginEvent]:
        """Be done: what the backend says is the client's."""
        return [LoggedIn()]

    def receive(self, data: bytes) -> list[LoginEvent]:
        """Nothing: it is done before anything can come."""
        del data
        return []

    def secured(self) -> list[LoginEvent]:
        """Nothing: it never asks for TLS."""
        return []

    def doing(self) -> str:
        """Say what it waits for, for the log."""
        return "being joined"
