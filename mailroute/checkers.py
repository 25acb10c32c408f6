"""Passwords checked here, by the checkers of twisted.cred."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

from twisted.cred.checkers import FilePasswordDB, ICredentialsChecker
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from mailroute.events import LoginRefused, Reason, Refusal
from mailroute.house import Check

InThread = Callable[[Callable[[], Any]], Deferred[Any]]


def check_with(checker: ICredentialsChecker, in_thread: InThread) -> Check:
    """Make the check that a listener's sessions ask from a checker for `IUsernamePassword`.

    :param in_thread: calls a function outside the reactor's thread.

    The avatar id that the checker gives is the name that is routed.
    """

    def check(user: str, password: bytes) -> Deferred[str]:
        credentials = UsernamePassword(user.encode("utf-8"), password)
        if isinstance(checker, FilePasswordDB):
            # It reads its whole file for each login, which must not hold everybody up.
            # In a box, because what a thread returns must not be a Deferred.
            boxed = in_thread(lambda: [checker.requestAvatarId(credentials)])
            asked: Deferred[Any] = boxed.addCallback(itemgetter(0))
        else:
            asked = maybeDeferred(checker.requestAvatarId, credentials)
        return asked.addCallbacks(_name, _refused)

    return check


def _name(avatar: object) -> str:
    if isinstance(avatar, bytes):
        avatar = avatar.decode("utf-8")
    if not isinstance(avatar, str) or not avatar:
        raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "the checker gave no name"))
    return avatar


def _refused(failure: Failure) -> Failure:
    if failure.check(UnauthorizedLogin):
        return Failure(LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "the checker refused")))
    return failure
