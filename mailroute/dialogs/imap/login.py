"""The backend's side of IMAP until the login has succeeded (RFC 3501, 9051, 2971)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from mailroute.dialogs.common.login import (
    CAPABILITIES,
    GREETING,
    LOGIN,
    READY,
    STARTTLS,
    CommandLogin,
    State,
)
from mailroute.dialogs.common.text import said, showable
from mailroute.dialogs.imap.identity import id_command
from mailroute.dialogs.imap.plan import make_plan
from mailroute.dialogs.imap.refusals import reason_of, reply_of
from mailroute.dialogs.imap.seam import Hello, Welcome
from mailroute.events import LoggedIn, LoginEvent, LoginOrder, LoginTerms, Method, Reason
from mailroute.wire.imap_syntax import Status, read_response, read_status
from mailroute.wire.lines import Parts
from mailroute.wire.literal_reader import LiteralReader

MAX_UNTAGGED = 64
"""Untagged responses before the tagged OK of a login; a backend that sends more misbehaves."""

MAX_UNTAGGED_BYTES = 16384
"""Bytes in all of them together."""

# atom (RFC 9051 section 9), of which capabilities are made; the "]" would end a response code.
_ATOM = re.compile(rb"[!#$&'+,\-./0-9:;<=>?@A-Z\[^_`a-z|}~]+\Z")

_NEW_CAPABILITIES = State("waiting for the capabilities after login")


class ImapLogin(CommandLogin):
    """One connection to a backend, until an account is open on it."""

    __slots__ = ("_bye", "_capabilities", "_count", "_id_tag", "_preauth", "_tag", "_text", "_untagged")

    def __init__(self, terms: LoginTerms) -> None:
        super().__init__(terms, LiteralReader(synchronising=False))
        self._preauth = False
        self._bye = ""
        self._capabilities = b""
        self._count = 0
        self._tag = b""
        self._id_tag = b""  # of an ID that has not been answered yet
        self._text = b""
        self._untagged: list[bytes] = []

    def secured(self) -> list[LoginEvent]:
        """TLS is on: what the backend said in the clear is forgotten (RFC 9051 section 6.2.1)."""
        self._capabilities = b""
        return super().secured()

    def doing(self) -> str:
        """Say what it waits for, and what the backend has said of its own end, for the log."""
        doing = "waiting for the answer to ID" if self._id_tag else self._state.words
        return doing + (f" (it said BYE {self._bye})" if self._bye else "")

    # --- commands and responses ---

    def _command(self, command: bytes) -> bytes:
        """Send a command; return its tag."""
        self._count += 1
        tag = b"M%d" % self._count
        self._said += tag + b" " + command
        return tag

    def _ask(self, state: State, command: bytes) -> None:
        """Send a command, and wait for its answer."""
        self._tag = self._command(command)
        self._state = state

    def _response(self, parts: Parts) -> None:
        tag, text = read_response(parts)
        if tag == b"*":
            self._untagged_response(text)
        elif tag == b"+":
            self._continuation(text)
        elif not tag:
            self._protocol_error("a response that is too long or malformed")
        elif self._id_tag:
            self._id_answered(tag)
        elif tag == self._tag and self._state is not GREETING:
            self._tagged(text)
        else:
            self._protocol_error("a response with a strange tag")

    def _untagged_response(self, text: bytes) -> None:
        if self._state is GREETING:
            self._greeting(text)
            return
        if self._state is READY and not self._collect(text):
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
                if self._state is READY:
                    self._refuse(Reason.UNAVAILABLE, f"the backend said BYE before a login: {self._bye}")
                return
            case b"PREAUTH":
                self._protocol_error("PREAUTH in the middle of the dialog")
                return
        if self._state in (LOGIN, _NEW_CAPABILITIES) and not self._id_tag:
            self._collect(text)

    def _collect(self, text: bytes) -> bool:
        """Keep an untagged response; if it is one too many, this ends the login, and False is returned."""
        self._untagged.append(b"* " + text)
        if len(self._untagged) <= MAX_UNTAGGED and sum(map(len, self._untagged)) <= MAX_UNTAGGED_BYTES:
            return True
        self._protocol_error("too many untagged responses")
        return False

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
            self._ask(STARTTLS, b"STARTTLS\r\n")
        else:
            self._preauth = condition == b"PREAUTH"
            if status.code == b"CAPABILITY":
                self._capabilities = _words(status.argument)
            self._begin()

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
        self._answered_starttls(status.condition == b"OK", text)

    def _capability_answered(self, text: bytes, status: Status) -> None:
        del text
        if status.condition != b"OK" or not self._capabilities:
            self._protocol_error("no capabilities")
        else:
            self._prepared()

    def _begin(self) -> None:
        if self._capabilities:
            self._prepared()
        else:
            self._ask(CAPABILITIES, b"CAPABILITY\r\n")

    def _log_in(self, order: LoginOrder) -> None:
        """Hand the client's identity over and log in.

        Both go out together: the ID's answer does not matter, and to wait for
        it would cost the user a round trip.
        """
        capabilities = upper_case(self._capabilities)
        if self._terms.tell_client and b"ID" in capabilities:
            hello = order.seam
            pairs = hello.id_pairs if isinstance(hello, Hello) else ()
            self._id_tag = self._command(id_command(self._terms.method, order, pairs))
        self._untagged.clear()
        if self._terms.method is Method.NONE:
            if not self._preauth or self._id_tag:
                self._capabilities = b""  # they may be others now that it knows who is calling
            self._logged_in(b"Logged in.")
            return
        plan = make_plan(self._terms, order, capabilities)
        self._capabilities = b""  # what it lists before the login does not hold after it
        self._tag = self._command(self._carry_out(plan))

    def _id_answered(self, tag: bytes) -> None:
        # A backend that refuses the client's identity still has the account.
        if tag == self._id_tag:
            self._id_tag = b""
        else:
            self._protocol_error("a response with a strange tag")

    def _continuation(self, text: bytes) -> None:
        if self._state is not LOGIN or self._id_tag:
            self._protocol_error("a continuation request where none was expected")
        else:
            self._next_chunk(text)

    def _login_answered(self, text: bytes, status: Status) -> None:
        if status.condition == b"NO":
            self._login_refused(reason_of(status), text, reply_of(status))
        elif status.condition == b"BAD":
            # Its text is shown to nobody: servers repeat there the command that they did not understand.
            self._refuse(Reason.UNAVAILABLE, "the backend did not understand the login (BAD)")
        elif not self._unfinished():
            if status.code == b"CAPABILITY":
                self._capabilities = _words(status.argument)
            dull = status.code in (b"CAPABILITY", b"REFERRAL")
            self._logged_in(showable(status.plain if dull else status.text))

    def _logged_in(self, text: bytes) -> None:
        self._text = text
        if self._capabilities:
            self._welcome()
        else:
            self._ask(_NEW_CAPABILITIES, b"CAPABILITY\r\n")

    def _new_capability_answered(self, text: bytes, status: Status) -> None:
        del text
        if status.condition != b"OK" or not self._capabilities:
            self._protocol_error("no capabilities after login")
        else:
            self._welcome()

    def _welcome(self) -> None:
        welcome = Welcome(tuple(self._untagged), self._text, self._capabilities)
        self._end(LoggedIn(welcome, self._reader.rest()))


_ANSWERED: Mapping[State, Callable[[ImapLogin, bytes, Status], None]] = {
    STARTTLS: ImapLogin._starttls_answered,
    CAPABILITIES: ImapLogin._capability_answered,
    LOGIN: ImapLogin._login_answered,
    _NEW_CAPABILITIES: ImapLogin._new_capability_answered,
}


# A backend lists the same capabilities to everybody: each list is read once.


@lru_cache(16)
def _words(listed: bytes) -> bytes:
    return b" ".join(word for word in listed.split() if _ATOM.match(word))


@lru_cache(16)
def upper_case(capabilities: bytes) -> frozenset[bytes]:
    """Return the capabilities of a list, in upper case."""
    return frozenset(capabilities.upper().split())
