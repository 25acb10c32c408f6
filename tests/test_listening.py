"""A port that cannot be bound: what the operator is told."""

from __future__ import annotations

import errno
import os

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from mailroute.listening import Listening, StartError


class Refusing:
    """An endpoint that the system refuses."""

    def __init__(self, number: int, *file: object) -> None:
        self._error = OSError(number, os.strerror(number), *file)

    def listen(self, _factory: object) -> Deferred[object]:
        """Refuse, as a port does."""
        return fail(CannotListenError("127.0.0.1", 143, self._error))


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EADDRINUSE, "Address already in use: stop what uses it, or change the listener's endpoint"),
        (errno.EACCES, "Permission denied: ports below 1024 are root's: begin as root and name --uid"),
        (errno.EADDRNOTAVAIL, "Cannot assign requested address: change the listener's endpoint"),
    ],
)
def test_what_to_do_about_it_is_told(number: int, advice: str) -> None:
    """The message names the listener, the system's reason and what to do."""
    listening = Listening(Factory(), "imap tcp:143", lambda: Refusing(number))
    with pytest.raises(StartError) as caught:
        listening.privilegedStartService()
    said = str(caught.value)
    assert said.startswith(f"mailroute: cannot listen on imap tcp:143: [Errno {number}] {advice}")
    assert said.endswith("or change the listener's endpoint") or number == errno.EADDRNOTAVAIL


def test_a_folder_that_may_not_be_written_is_told() -> None:
    """A UNIX socket takes no low port, but a folder of the user's own."""
    # What a lock that cannot be made raises: a link from the process's number to the lock.
    refusing = Refusing(errno.EACCES, "4711", None, "/run/x.lock")
    listening = Listening(Factory(), "imap unix:/run/x", lambda: refusing)
    with pytest.raises(StartError, match="this user may make nothing in /run: give it the right to, or ch"):
        listening.privilegedStartService()
