"""Logging in at a backend that is told by XCLIENT who the client is, in one line and with one answer."""

from __future__ import annotations

from mailroute.dialogs.common.login import CommandLogin, State
from mailroute.dialogs.common.text import said
from mailroute.dialogs.common.xclient import xclient
from mailroute.events import LoggedIn, LoginOrder, LoginTerms, Method, Reason
from mailroute.wire.lines import LineReader


class XclientLogin(CommandLogin):
    """A login at a backend that may take XCLIENT.

    A protocol sets `_takes_xclient` where the backend offers it, logs in with
    `_introduce`, gives an answer to `_xclient_answered` while `_xclient_sent`,
    and ends with `_logged_in`.
    """

    __slots__ = ("_takes_xclient", "_xclient_sent")

    def __init__(self, terms: LoginTerms, reader: LineReader) -> None:
        super().__init__(terms, reader)
        self._takes_xclient = False
        self._xclient_sent = False  # and not answered yet

    def doing(self) -> str:
        """Say what it waits for, for the log."""
        return "waiting for the answer to XCLIENT" if self._xclient_sent else super().doing()

    def _introduce(self, order: LoginOrder, state: State, login: bytes) -> None:
        """Hand the client's identity over and log in; without a login, that may be all.

        Both go out together, as Dovecot's own proxy does it: to wait for the
        answer to the first would cost the user a round trip.

        :param state: what it waits for from now on.
        :param login: the first of the login's commands, with its end.
        """
        self._state = state
        if self._terms.tell_client and self._takes_xclient:
            self._said += xclient(self._terms.method, order) + b"\r\n"
            self._xclient_sent = True
        self._said += login
        if self._terms.method is Method.NONE and not self._xclient_sent:
            self._logged_in(b"Logged in.")

    def _xclient_answered(self, agreed: bool, text: bytes) -> None:
        if not agreed:
            detail = f"the backend offers XCLIENT and refused it: {said(text, self._secrets())}"
            self._refuse(Reason.MISCONFIGURED, detail)
            return
        self._xclient_sent = False
        if self._terms.method is Method.NONE:
            self._logged_in(b"Logged in.")

    def _logged_in(self, text: bytes) -> None:
        self._end(LoggedIn(text, self._reader.rest()))
