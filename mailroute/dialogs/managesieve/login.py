"""The backend's side of ManageSieve until the login has succeeded (RFC 5804)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mailroute.dialogs.common.login import CAPABILITIES, GREETING, LOGIN, READY, STARTTLS, State
from mailroute.dialogs.common.plan import Choice, NoWay, Plan, choose
from mailroute.dialogs.common.text import said, showable
from mailroute.dialogs.common.xclient_login import XclientLogin
from mailroute.dialogs.managesieve.refusals import read_refusal
from mailroute.events import LoginOrder, LoginTerms, Method, Reason
from mailroute.wire import sasl
from mailroute.wire.lines import Malformed, Parts
from mailroute.wire.literal_reader import LiteralReader
from mailroute.wire.sieve_syntax import Reply, read_reply, read_strings, write

MAX_CAPABILITIES = 64
"""Lines in a list of capabilities; a backend that sends more misbehaves."""


class ManageSieveLogin(XclientLogin):
    """One connection to a backend, until an account is open on it."""

    __slots__ = ("_listed", "_mechanisms")

    def __init__(self, terms: LoginTerms) -> None:
        super().__init__(terms, LiteralReader(synchronising=False))
        self._listed = 0
        self._mechanisms: frozenset[bytes] = frozenset()

    # --- responses ---

    def _response(self, parts: Parts) -> None:
        whole = b"".join(parts)
        if self._state is READY:
            self._refuse(Reason.UNAVAILABLE, f"the backend spoke before a login: {said(whole)}")
            return
        try:
            reply = read_reply(parts)
            if reply is None:
                self._listed_or_asked(read_strings(parts))
            else:
                self._replied(reply, whole)
        except Malformed:
            self._protocol_error("a response that is malformed")

    def _listed_or_asked(self, strings: tuple[bytes, ...]) -> None:
        if self._state in (GREETING, CAPABILITIES):
            self._capability(*strings)
        elif self._state is LOGIN and not self._xclient_sent and len(strings) == 1:
            self._next_chunk(strings[0])
        else:
            self._protocol_error("a string where none was expected")

    def _capability(self, name: bytes, value: bytes = b"", *more: bytes) -> None:
        self._listed += 1
        if more or self._listed > MAX_CAPABILITIES:
            self._protocol_error("too many capabilities")
        elif name.upper() == b"SASL":
            self._mechanisms = frozenset(value.upper().split())
        elif name.upper() == b"XCLIENT":
            self._takes_xclient = True

    def _replied(self, reply: Reply, whole: bytes) -> None:
        agreed = reply.condition == b"OK"
        answered = _ANSWERED.get(self._state)
        if answered is None:
            self._protocol_error("a response where none was expected")
        elif reply.condition == b"BYE" and (self._state is not LOGIN or self._xclient_sent):
            detail = f"the backend said goodbye {self.doing()}: {said(whole, self._secrets())}"
            self._refuse(Reason.UNAVAILABLE, detail)
        elif self._xclient_sent:
            self._xclient_answered(agreed, whole)
        else:
            answered(self, agreed, reply, whole)

    def _greeted(self, agreed: bool, reply: Reply, whole: bytes) -> None:
        del reply
        if not agreed:
            self._refuse(Reason.UNAVAILABLE, f"the backend greeted with: {said(whole)}")
        elif self._secure:
            self._prepared()
        else:
            # Whatever has been listed: in the clear that proves nothing.
            self._said += b"STARTTLS\r\n"
            self._state = STARTTLS

    def _starttls_answered(self, agreed: bool, reply: Reply, whole: bytes) -> None:
        del reply
        self._answered_starttls(agreed, whole)

    def _begin(self) -> None:
        """Wait for the capabilities, which come again by themselves inside TLS (section 2.2)."""
        self._listed = 0
        self._mechanisms = frozenset()
        self._takes_xclient = False
        self._state = CAPABILITIES

    # --- logging in ---

    def _log_in(self, order: LoginOrder) -> None:
        first = b""
        if self._terms.method is not Method.NONE:
            choice = choose(self._terms, order, self._mechanisms)
            if choice is None:
                raise NoWay("the backend offers no mechanism for a password")
            first = self._carry_out(_authenticate(choice))
        self._introduce(order, LOGIN, first)

    def _login_answered(self, agreed: bool, reply: Reply, whole: bytes) -> None:
        if not agreed:
            reason, shown = read_refusal(reply)
            self._login_refused(reason, whole, shown, goodbye=reply.condition == b"BYE")
        elif not self._unfinished():
            self._logged_in(showable(reply.text, self._secrets()))


_ANSWERED: Mapping[State, Callable[[ManageSieveLogin, bool, Reply, bytes], None]] = {
    GREETING: ManageSieveLogin._greeted,
    STARTTLS: ManageSieveLogin._starttls_answered,
    CAPABILITIES: ManageSieveLogin._greeted,
    LOGIN: ManageSieveLogin._login_answered,
}


def _authenticate(choice: Choice) -> Plan:
    """AUTHENTICATE, with the message in the command where it is the only one (section 2.1)."""
    command = b'AUTHENTICATE "%s"' % choice.mechanism
    messages = [_message(message) for message in choice.messages]
    if len(messages) == 1:
        command += b" " + messages.pop()
    failure_reply = None if choice.failure_reply is None else _message(choice.failure_reply) + b"\r\n"
    chunks = [chunk + b"\r\n" for chunk in (command, *messages)]
    return Plan(tuple(chunks), choice.secrets, failure_reply)


def _message(message: bytes) -> bytes:
    # An empty one is an empty string here, and not "=".
    return write(sasl.encode(message) if message else b"", b"+")
