"""The backend's side of POP3 until the login has succeeded (RFC 1939, 2449, 2595, 5034)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

from mailroute.dialogs.common.login import (
    CAPABILITIES,
    GREETING,
    LOGIN,
    READY,
    STARTTLS,
    State,
)
from mailroute.dialogs.common.plan import Choice, NoWay, Plan, choose, forms, lines
from mailroute.dialogs.common.text import said, showable
from mailroute.dialogs.common.xclient_login import XclientLogin
from mailroute.dialogs.pop3.refusals import read_refusal
from mailroute.events import LoginOrder, LoginTerms, Method, Reason
from mailroute.wire.lines import LineReader, Parts

MAX_RESPONSE = 8192
"""Bytes in one line of a backend.  RFC 2449 section 4 has 512, but a SASL challenge may have more
(RFC 5034 section 4)."""

MAX_CAPABILITIES = 64
"""Lines in the answer to CAPA; a backend that sends more misbehaves."""

MAX_COMMAND = 255
"""Bytes in a command line, its end included (RFC 2449 section 4): an initial response that does not
fit waits for the ``+`` (RFC 5034 section 4)."""

_XCLIENT = re.compile(rb"\[XCLIENT\](?: |\Z)", re.IGNORECASE)
_UNSAYABLE = re.compile(rb"[\r\n\0]")

_LISTING = State("waiting for the end of the capabilities")
_USER = State("waiting for the answer to USER")


class Pop3Login(XclientLogin):
    """One connection to a backend, until an account is open on it."""

    __slots__ = ("_listed", "_mechanisms", "_takes_user", "_tells_wrong_passwords")

    def __init__(self, terms: LoginTerms) -> None:
        super().__init__(terms, LineReader(MAX_RESPONSE))
        self._listed = 0
        self._mechanisms: frozenset[bytes] = frozenset()
        self._takes_user = self._tells_wrong_passwords = False

    # --- responses ---

    def _response(self, parts: Parts) -> None:
        (line,) = parts
        if self._state is _LISTING:
            self._capability(line)
            return
        condition, _, text = line.partition(b" ")
        condition = condition.upper()
        if self._state is READY:
            self._refuse(Reason.UNAVAILABLE, f"the backend spoke before a login: {said(line)}")
        elif condition == b"+":
            self._continuation(text)
        elif condition not in (b"+OK", b"-ERR"):
            self._protocol_error("a response that is neither +OK nor -ERR")
        elif self._xclient_sent:
            self._xclient_answered(condition == b"+OK", text)
        elif (answered := _ANSWERED.get(self._state)) is None:
            self._protocol_error("a response where none was expected")
        else:
            answered(self, condition == b"+OK", text)

    def _greeting(self, agreed: bool, text: bytes) -> None:
        if not agreed:
            self._refuse(Reason.UNAVAILABLE, f"the backend greeted with: {said(text)}")
            return
        # Inside TLS that is asked for there is no second greeting: this offer is all there is.
        # Whoever forges or hides it in the clear gains nothing but a wrong address in a log.
        self._takes_xclient = _XCLIENT.match(text) is not None
        if not self._secure:
            # Without asking for its capabilities first: a list in the clear proves nothing.
            self._ask_for_tls()
        else:
            self._begin()

    def _begin(self) -> None:
        if self._terms.method is Method.NONE:
            self._prepared()
        else:
            self._ask_capabilities()

    def _ask_for_tls(self) -> None:
        self._said += b"STLS\r\n"
        self._state = STARTTLS

    def _ask_capabilities(self) -> None:
        self._said += b"CAPA\r\n"
        self._state = CAPABILITIES

    def _capa_answered(self, agreed: bool, text: bytes) -> None:
        del text
        if agreed:
            self._state = _LISTING
        else:
            # A server of RFC 1939 alone, which knows no other way.
            self._takes_user = True
            self._prepared()

    def _capability(self, line: bytes) -> None:
        if line == b".":
            self._prepared()
            return
        self._listed += 1
        if self._listed > MAX_CAPABILITIES:
            self._protocol_error("too many capabilities")
            return
        name, *arguments = line.upper().split() or [b""]
        if name == b"USER":
            self._takes_user = True
        elif name == b"AUTH-RESP-CODE":
            self._tells_wrong_passwords = True
        elif name == b"SASL":
            self._mechanisms = frozenset(arguments)

    # --- logging in ---

    def _log_in(self, order: LoginOrder) -> None:
        state, first = LOGIN, b""
        if self._terms.method is not Method.NONE:
            choice = choose(self._terms, order, self._mechanisms)
            if choice is not None:
                first = self._carry_out(_auth(choice))
            elif not self._takes_user:
                raise NoWay("the backend offers no mechanism for a password, and not USER either")
            elif _unsayable(order):
                detail = (
                    "a CR, LF or NUL in the credentials, and the backend takes them by USER and PASS only"
                )
                self._refuse(Reason.AUTHENTICATION_FAILED, detail)
                return
            else:
                state, first = _USER, self._carry_out(_user_and_pass(order))
        self._introduce(order, state, first)

    def _continuation(self, text: bytes) -> None:
        if self._state is not LOGIN or self._xclient_sent:
            self._protocol_error("a continuation request where none was expected")
        else:
            self._next_chunk(text)

    def _user_answered(self, agreed: bool, text: bytes) -> None:
        if agreed:
            self._state = LOGIN
            self._next_chunk(b"")
        else:
            self._login_answered(agreed, text)

    def _login_answered(self, agreed: bool, text: bytes) -> None:
        if not agreed:
            reason, reply = read_refusal(text, tells_wrong_passwords=self._tells_wrong_passwords)
            self._login_refused(reason, text, reply)
        elif not self._unfinished():
            self._logged_in(showable(text, self._secrets()))


_ANSWERED: Mapping[State, Callable[[Pop3Login, bool, bytes], None]] = {
    GREETING: Pop3Login._greeting,
    STARTTLS: Pop3Login._answered_starttls,
    CAPABILITIES: Pop3Login._capa_answered,
    _USER: Pop3Login._user_answered,
    LOGIN: Pop3Login._login_answered,
}


def _auth(choice: Choice) -> Plan:
    """AUTH, with the message on its own line where it fits."""
    room = MAX_COMMAND - len(b"AUTH %s \r\n" % choice.mechanism)
    return lines(choice, b"AUTH", room)


def _user_and_pass(order: LoginOrder) -> Plan:
    """USER, and PASS once that is agreed to: the whole rest of each line counts."""
    secret = order.credentials.secret
    return Plan((b"USER %s\r\n" % order.user.encode(), b"PASS %s\r\n" % secret), partial(forms, secret))


def _unsayable(order: LoginOrder) -> bool:
    """Whether USER and PASS would make more of these credentials than two arguments."""
    return any(map(_UNSAYABLE.search, (order.user.encode(), order.credentials.secret)))
