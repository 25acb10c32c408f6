"""The backend's side of a protocol of commands and responses, as far as these agree.

A protocol's login is a `CommandLogin` with a reader of its own, its commands,
and what it makes of the answers to them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from attrs import frozen
from zope.interface import implementer

from mailroute.dialogs.common.plan import NoWay, Plan, as_master
from mailroute.dialogs.common.text import said, showable
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
from mailroute.wire.lines import LineReader, Malformed, Parts, Stop


@frozen(eq=False)
class State:
    """What a login waits for; the words are those of the log."""

    words: str


GREETING = State("waiting for the greeting")
STARTTLS = State("waiting for the answer to STARTTLS")
HANDSHAKE = State("waiting for TLS")
CAPABILITIES = State("waiting for the capabilities")
READY = State("ready for a login")
LOGIN = State("waiting for the answer to the login")
OVER = State("done")

_MORE = Stop.MORE  # Python 3.11 is slow to find a member in its class


@implementer(ILogin)
class CommandLogin(ABC):
    """One connection to a backend, until an account is open on it.

    A protocol takes the responses (`_response`), says how it goes on inside TLS
    (`_begin`) and how it logs in (`_log_in`).  It moves on by setting `_state`
    to one of the states above or of its own, speaks by adding to `_said`, and
    uses `_answered_starttls`, `_prepared`, `_carry_out`, `_next_chunk` and
    `_unfinished` on its way, and `_login_refused`, `_refuse`, `_protocol_error` and
    `_end` with a `LoggedIn` to end.
    """

    __slots__ = (
        "_challenge",
        "_order",
        "_out",
        "_pending",
        "_plan",
        "_reader",
        "_said",
        "_secure",
        "_state",
        "_terms",
    )

    def __init__(self, terms: LoginTerms, reader: LineReader) -> None:
        self._terms = terms
        self._reader = reader
        self._order: LoginOrder | None = None
        self._state = GREETING
        self._secure = not terms.starttls  # there is nothing to wait for before the login
        self._plan: Plan | None = None
        self._pending: list[bytes] = []
        self._challenge: bytes | None = None
        self._said = b""
        self._out: list[LoginEvent] = []  # what happens behind that

    # --- what a protocol has of its own ---

    @abstractmethod
    def _response(self, parts: Parts) -> None:
        """Take a response from the backend."""

    @abstractmethod
    def _begin(self) -> None:
        """Go on inside TLS that was asked for: what the backend said before it counts for nothing."""

    @abstractmethod
    def _log_in(self, order: LoginOrder) -> None:
        """Log in at this account; the backend is ready for it.

        :raises NoWay: it cannot be done; this ends the login as a misconfiguration.
        """

    # --- ILogin ---

    def open(self, order: LoginOrder) -> list[LoginEvent]:
        """Log in at this account, now or as soon as the backend is ready."""
        self._order = as_master(self._terms, order)
        if self._state is not READY:
            return []
        self._prepared()
        return self._flush()

    def start(self) -> list[LoginEvent]:
        """Wait for the greeting."""
        return []

    def receive(self, data: bytes) -> list[LoginEvent]:
        """Take bytes from the backend."""
        if self._state is OVER:
            return []
        next_unit = self._reader.unit
        self._reader.feed(data)
        try:
            while self._state is not OVER:
                unit = next_unit()
                if unit is _MORE:
                    break
                if isinstance(unit, tuple):
                    self._response(unit)
                else:
                    self._protocol_error("a response that is too long or malformed")
        except Malformed as error:
            self._protocol_error(str(error))
        return self._flush()

    def secured(self) -> list[LoginEvent]:
        """TLS is on: what the backend said in the clear is forgotten."""
        self._secure = True
        self._reader.forget()
        self._begin()
        return self._flush()

    def doing(self) -> str:
        """Say what it waits for, for the log."""
        return self._state.words

    # --- on the way ---

    def _flush(self) -> list[LoginEvent]:
        events, self._out = self._out, []
        if self._said:
            # One segment, whatever is in it.
            events.insert(0, Send(self._said))
            self._said = b""
        return events

    def _answered_starttls(self, agreed: bool, text: bytes) -> None:
        """Begin TLS, or refuse to go on without it."""
        if not agreed:
            self._refuse(Reason.MISCONFIGURED, f"the backend refused STARTTLS: {said(text)}")
        elif len(self._reader):
            self._refuse(
                Reason.MISCONFIGURED, "the backend sent bytes in the clear behind its STARTTLS answer"
            )
        else:
            self._state = HANDSHAKE
            self._out.append(StartTLS())

    def _prepared(self) -> None:
        """All is done that needs no account: log in, or wait until there is an order."""
        if self._order is None:
            self._state = READY
            self._out.append(Ready())
            return
        try:
            self._log_in(self._order)
        except NoWay as error:
            self._refuse(Reason.MISCONFIGURED, str(error))

    def _carry_out(self, plan: Plan) -> bytes:
        """Wait for the login's answer from now on; return what to say first."""
        self._plan = plan
        first, *self._pending = plan.chunks
        self._state = LOGIN
        return first

    def _next_chunk(self, challenge: bytes) -> None:
        """The backend asks for the plan's next chunk.

        :param challenge: what it says with that, in base64 or in anything else.
        """
        if self._plan is None:
            self._protocol_error("a continuation request where none was expected")
        elif self._pending:
            self._said += self._pending.pop(0)
        elif self._plan.failure_reply is not None and self._challenge is None:
            try:
                self._challenge = sasl.decode(challenge)
            except sasl.SaslError:
                self._challenge = b""
            self._said += self._plan.failure_reply
        else:
            self._protocol_error("one continuation request too many")

    def _unfinished(self) -> bool:
        """Whether a success would come before the backend has the credentials; it has been refused then."""
        if self._pending or self._challenge is not None:
            self._protocol_error("an OK before it had the credentials")
            return True
        return False

    def _secrets(self) -> tuple[bytes, ...]:
        """Return the forms in which a secret has been sent, for `said` and `showable`."""
        return self._plan.secrets() if self._plan is not None else ()

    # --- ends ---

    def _login_refused(
        self, reason: Reason, text: bytes, reply: bytes | None, *, goodbye: bool = False
    ) -> None:
        """The backend has refused the login.

        :param text: all that it said, for the log.
        :param reply: what the client may see of that, where it says more than our own words.
        :param goodbye: it ends the connection with that, whoever would have logged in.
        """
        secrets = self._secrets()
        if self._terms.method is Method.MASTER:
            reply = None
            if reason is Reason.AUTHENTICATION_FAILED:
                # The client has been checked already: it must not be asked for its password again.
                reason = Reason.MISCONFIGURED
        if reply is not None:
            reply = showable(reply, secrets)
        detail = f"the backend said: {said(text, secrets)}"
        if self._terms.method is Method.MASTER and reason is Reason.MISCONFIGURED:
            detail += "; look at master_user and master_password_file, and at what that user may do there"
        self._reader.forget()
        self._end(Refused(Refusal(reason, detail, reply, self._challenge), answered=not goodbye))

    def _protocol_error(self, what: str) -> None:
        self._refuse(Reason.UNAVAILABLE, f"the backend broke the protocol {self.doing()}: {what}")

    def _refuse(self, reason: Reason, detail: str) -> None:
        self._reader.forget()
        self._end(Refused(Refusal(reason, detail)))

    def _end(self, event: LoggedIn | Refused) -> None:
        """Say how it ends: it is over."""
        self._state = OVER
        self._pending.clear()
        self._plan = None
        self._out.append(event)
