"""The backend's side of IMAP until the login has succeeded (RFC 3501, 9051, 2971)."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from zope.interface import implementer

from mailroute.dialogs.imap.identity import LoopDetected, id_command
from mailroute.dialogs.imap.plan import NoWay, Plan, make_plan
from mailroute.dialogs.imap.refusals import read_refusal, said, showable
from mailroute.dialogs.imap.seam import Hello, Welcome
from mailroute.events import (
    LoggedIn,
    LoginEvent,
    LoginOrder,
    LoginTerms,
    Method,
    Ready,
    Reason,
    Refusal,
    Refused,
    Send,
    StartTLS,
)
from mailroute.interfaces import ILogin
from mailroute.wire import sasl
from mailroute.wire.imap_reader import ImapReader, Stop
from mailroute.wire.imap_syntax import Status, read_response, read_status

MAX_UNTAGGED = 64
"""Untagged responses before the tagged OK of a login; a backend that sends more misbehaves."""

MAX_UNTAGGED_BYTES = 16384
"""Bytes in all of them together."""

# atom (RFC 9051 section 9), of which capabilities are made; the "]" would end a response code.
_ATOM = re.compile(rb"[!#$&'+,\-./0-9:;<=>?@A-Z\[^_`a-z|}~]+\Z")


class _State(enum.Enum):
    """What we wait for; the words are those of the log."""

    GREETING = "waiting for the greeting"
    STARTTLS = "waiting for the answer to STARTTLS"
    HANDSHAKE = "waiting for TLS"
    CAPABILITY = "waiting for the capabilities"
    READY = "ready for a login"
    LOGIN = "waiting for the answer to the login"
    NEW_CAPABILITY = "waiting for the capabilities after login"
    OVER = "done"

    # Members are one of a kind; enum's own hash of the name is a call in Python.
    __hash__ = object.__hash__


# What every login meets; by these names because Python 3.11 is slow to find a member in its class.
_OVER, _GREETING, _READY, _LOGIN = _State.OVER, _State.GREETING, _State.READY, _State.LOGIN
_MORE = Stop.MORE

_NO_RESPONSE = (b"", b"")


@implementer(ILogin)
class ImapLogin:
    """One connection to a backend, until an account is open on it."""

    __slots__ = (
        "_bye",
        "_capabilities",
        "_challenge",
        "_count",
        "_id_tag",
        "_order",
        "_out",
        "_pending",
        "_plan",
        "_preauth",
        "_reader",
        "_said",
        "_secure",
        "_state",
        "_tag",
        "_terms",
        "_text",
        "_untagged",
    )

    def __init__(self, terms: LoginTerms) -> None:
        self._terms = terms
        self._order: LoginOrder | None = None
        self._reader = ImapReader(synchronising=False)
        self._state = _GREETING
        self._secure = not terms.starttls
        self._preauth = False
        self._bye = ""
        self._capabilities = b""
        self._challenge: bytes | None = None
        self._count = 0
        self._tag = b""
        self._id_tag = b""  # of an ID that has not been answered yet
        self._plan: Plan | None = None
        self._pending: list[bytes] = []
        self._text = b""
        self._untagged: list[bytes] = []
        self._said = b""
        self._out: list[LoginEvent] = []  # what happens behind that

    # --- ILogin ---

    def open(self, order: LoginOrder) -> list[LoginEvent]:
        """Log in at this account, now or as soon as the backend is ready."""
        self._order = order
        if self._state is not _READY:
            return []
        self._log_in(order)
        return self._flush()

    def start(self) -> list[LoginEvent]:
        """Wait for the greeting."""
        return []

    def receive(self, data: bytes) -> list[LoginEvent]:
        """Take bytes from the backend."""
        if self._state is _OVER:
            return []
        next_unit = self._reader.unit
        self._reader.feed(data)
        while self._state is not _OVER:
            unit = next_unit()
            if unit is _MORE:
                break
            tag, text = read_response(unit) if isinstance(unit, tuple) else _NO_RESPONSE
            if tag == b"*":
                self._untagged_response(text)
            elif tag:
                self._response(tag, text)
            else:
                self._protocol_error("a response that is too long or malformed")
        return self._flush()

    def secured(self) -> list[LoginEvent]:
        """TLS is on: what the backend said in the clear is forgotten (RFC 9051 section 6.2.1)."""
        self._secure = True
        self._reader.forget()
        self._capabilities = b""
        self._identify()
        return self._flush()

    def doing(self) -> str:
        """Say what it waits for, and what the backend has said of its own end, for the log."""
        doing = "waiting for the answer to ID" if self._id_tag else self._state.value
        return doing + (f" (it said BYE {self._bye})" if self._bye else "")

    # --- running ---

    def _flush(self) -> list[LoginEvent]:
        events, self._out = self._out, []
        if self._said:
            # One segment, whatever is in it.
            events.insert(0, Send(self._said))
            self._said = b""
        return events

    def _command(self, command: bytes) -> bytes:
        """Send a command; return its tag."""
        self._count += 1
        tag = b"M%d" % self._count
        self._said += tag + b" " + command
        return tag

    def _ask(self, state: _State, command: bytes) -> None:
        """Send a command, and wait for its answer."""
        self._tag = self._command(command)
        self._state = state

    def _response(self, tag: bytes, text: bytes) -> None:
        if tag == b"+":
            self._continuation(text)
        elif self._id_tag:
            self._id_answered(tag, text)
        elif tag == self._tag and self._state is not _GREETING:
            self._tagged(text)
        else:
            self._protocol_error("a response with a strange tag")

    def _untagged_response(self, text: bytes) -> None:
        if self._state is _GREETING:
            self._greeting(text)
            return
        if self._state is _READY:
            self._collect(text)
            if self._state is _OVER:
                return
        name, _, rest = text.partition(b" ")
        match name.upper():
            case b"CAPABILITY":
                if not self._id_tag:
                    # Before that it lists what there is before the login.
                    self._capabilities = _words(rest)
                return
            case b"BYE":
                # The tagged answer may still come behind it; if not, the connection ends.
                self._bye = said(rest, self._secrets())
                if self._state is _READY:
                    self._refuse(Reason.UNAVAILABLE, f"the backend said BYE before a login: {self._bye}")
                return
            case b"PREAUTH":
                self._protocol_error("PREAUTH in the middle of the dialog")
                return
        if self._state in (_LOGIN, _State.NEW_CAPABILITY) and not self._id_tag:
            self._collect(text)

    def _collect(self, text: bytes) -> None:
        self._untagged.append(b"* " + text)
        if len(self._untagged) > MAX_UNTAGGED or sum(map(len, self._untagged)) > MAX_UNTAGGED_BYTES:
            self._protocol_error("too many untagged responses")

    def _greeting(self, text: bytes) -> None:
        status = read_status(text)
        condition = status.condition if status is not None else b""
        if condition == b"BYE":
            self._refuse(Reason.UNAVAILABLE, f"the backend greeted with: {said(text)}")
        elif condition == b"PREAUTH" and (not self._secure or self._terms.method is not Method.NONE):
            # Somebody would get in unchecked, or without the TLS that was asked for.
            self._refuse(Reason.MISCONFIGURED, "the backend greeted with PREAUTH where a login was expected")
        elif status is None or condition not in (b"OK", b"PREAUTH"):
            self._protocol_error("no IMAP greeting")
        elif not self._secure:
            # Without asking for its capabilities first: a list in the clear proves nothing.
            self._ask(_State.STARTTLS, b"STARTTLS\r\n")
        else:
            self._preauth = condition == b"PREAUTH"
            if status.code == b"CAPABILITY":
                self._capabilities = _words(status.argument)
            self._identify()

    # --- tagged responses ---

    def _tagged(self, text: bytes) -> None:
        status = read_status(text)
        if status is None or status.condition not in (b"OK", b"NO", b"BAD"):
            self._protocol_error("a tagged response that is none of OK, NO and BAD")
            return
        answered = _ANSWERED.get(self._state)
        if answered is None:
            self._protocol_error("a tagged response where none was expected")
        else:
            answered(self, text, status)

    def _starttls_answered(self, text: bytes, status: Status) -> None:
        if status.condition != b"OK":
            self._refuse(Reason.MISCONFIGURED, f"the backend refused STARTTLS: {said(text)}")
        elif len(self._reader):
            self._refuse(
                Reason.MISCONFIGURED, "the backend sent bytes in the clear behind its STARTTLS answer"
            )
        else:
            self._state = _State.HANDSHAKE
            self._out.append(StartTLS())

    def _capability_answered(self, text: bytes, status: Status) -> None:
        del text
        if status.condition != b"OK" or not self._capabilities:
            self._protocol_error("no capabilities")
        else:
            self._identify()

    def _identify(self) -> None:
        """Log in once the capabilities are known and the account is."""
        if not self._capabilities:
            self._ask(_State.CAPABILITY, b"CAPABILITY\r\n")
        elif self._order is None:
            self._state = _READY
            self._out.append(Ready())
        else:
            self._log_in(self._order)

    def _log_in(self, order: LoginOrder) -> None:
        """Hand the client's identity over and log in.

        Both go out together: the ID's answer does not matter, and to wait for
        it would cost the user a round trip.
        """
        capabilities = _upper_case(self._capabilities)
        if self._terms.tell_client and b"ID" in capabilities:
            hello = order.seam
            pairs = hello.id_pairs if isinstance(hello, Hello) else ()
            try:
                self._id_tag = self._command(id_command(self._terms.method, order, pairs))
            except LoopDetected as error:
                self._refuse(Reason.MISCONFIGURED, str(error))
                return
        self._authenticate(order, capabilities)

    def _id_answered(self, tag: bytes, text: bytes) -> None:
        # A backend that refuses the client's identity still has the account.
        del text
        if tag == self._id_tag:
            self._id_tag = b""
        else:
            self._protocol_error("a response with a strange tag")

    def _authenticate(self, order: LoginOrder, capabilities: frozenset[bytes]) -> None:
        self._untagged.clear()
        if self._terms.method is Method.NONE:
            if not self._preauth or self._id_tag:
                self._capabilities = b""  # they may be others now that it knows who is calling
            self._logged_in(b"Logged in.")
            return
        try:
            self._plan = make_plan(self._terms, order, capabilities)
        except NoWay as error:
            self._refuse(Reason.MISCONFIGURED, str(error))
            return
        self._capabilities = b""  # what it lists before the login does not hold after it
        first, *self._pending = self._plan.chunks
        self._tag = self._command(first)
        self._state = _LOGIN

    def _continuation(self, text: bytes) -> None:
        if self._state is not _State.LOGIN or self._plan is None or self._id_tag:
            self._protocol_error("a continuation request where none was expected")
        elif self._pending:
            self._said += self._pending.pop(0)
        elif self._plan.error_reply is not None and self._challenge is None:
            self._take_challenge(text, self._plan.error_reply)
        else:
            self._protocol_error("one continuation request too many")

    def _take_challenge(self, text: bytes, reply: bytes) -> None:
        try:
            self._challenge = sasl.decode(text)
        except sasl.SaslError:
            self._challenge = b""
        self._said += reply

    def _login_answered(self, text: bytes, status: Status) -> None:
        if status.condition != b"OK":
            self._reader.forget()
            self._end(Refused(read_refusal(text, self._terms.method, self._secrets(), self._challenge)))
        elif self._pending or self._challenge is not None:
            self._protocol_error("an OK before it had the credentials")
        else:
            if status.code == b"CAPABILITY":
                self._capabilities = _words(status.argument)
            dull = status.code in (b"CAPABILITY", b"REFERRAL")
            self._logged_in(showable(status.plain if dull else status.text))

    def _logged_in(self, text: bytes) -> None:
        self._text = text
        if self._capabilities:
            self._welcome()
        else:
            self._ask(_State.NEW_CAPABILITY, b"CAPABILITY\r\n")

    def _new_capability_answered(self, text: bytes, status: Status) -> None:
        del text
        if status.condition != b"OK" or not self._capabilities:
            self._protocol_error("no capabilities after login")
        else:
            self._welcome()

    # --- ends ---

    def _welcome(self) -> None:
        welcome = Welcome(tuple(self._untagged), self._text, self._capabilities)
        self._end(LoggedIn(welcome, self._reader.rest()))

    def _protocol_error(self, what: str) -> None:
        self._refuse(Reason.UNAVAILABLE, f"the backend broke the protocol {self.doing()}: {what}")

    def _refuse(self, reason: Reason, detail: str) -> None:
        self._reader.forget()
        self._end(Refused(Refusal(reason, detail)))

    def _end(self, event: LoggedIn | Refused) -> None:
        self._state = _OVER
        self._pending.clear()
        self._plan = None
        self._out.append(event)

    def _secrets(self) -> tuple[bytes, ...]:
        return self._plan.secrets() if self._plan is not None else ()


_ANSWERED: Mapping[_State, Callable[[ImapLogin, bytes, Status], None]] = {
    _State.STARTTLS: ImapLogin._starttls_answered,
    _State.CAPABILITY: ImapLogin._capability_answered,
    _State.LOGIN: ImapLogin._login_answered,
    _State.NEW_CAPABILITY: ImapLogin._new_capability_answered,
}


# A backend lists the same capabilities to everybody: each list is read once.


@lru_cache(16)
def _words(listed: bytes) -> bytes:
    return b" ".join(word for word in listed.split() if _ATOM.match(word))


@lru_cache(16)
def _upper_case(capabilities: bytes) -> frozenset[bytes]:
    return frozenset(capabilities.upper().split())
