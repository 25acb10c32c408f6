"""The client's side of a protocol of commands and answers, as far as these agree.

A protocol's dialog is a `CommandDialog` with a reader of its own, a table of
commands, and its words for what all of them have to say.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod

from attrs import evolve
from zope.interface import implementer

from mailroute.dialogs.common.foreign import foreign
from mailroute.dialogs.common.speaker import Speaker
from mailroute.dialogs.common.states import State
from mailroute.events import (
    Attempt,
    Credentials,
    DialogEvent,
    DialogTerms,
    Farewell,
    HangUp,
    KeysWanted,
    LoggedIn,
    Reason,
    Refusal,
    StartTLS,
)
from mailroute.interfaces import IDialog
from mailroute.proofs import proof_of
from mailroute.wire.lines import LineReader, Malformed, Parts, Stop
from mailroute.wire.sasl import MAX_RESPONSE, SCRAM, Exchange, SaslError
from mailroute.wire.scram import ScramExchange, StoredKeys, Wanted, nonce

MAX_AHEAD = 160 * 1024
"""Bytes that a client may send while its backend is not there yet.  It is not read meanwhile,
so that this is one read of the socket and what TLS had already decoded."""

MAX_COMMANDS = 128
"""Commands before login: more than any client needs, and few enough that the replies to a
client that does not read them stay small."""

MAX_BAD_WITHOUT_BOUND = 10_000
"""Stands for "any number" where the configuration switches the bound on bad commands off."""


# By these names because Python 3.11 is slow to find a member in its class.
_COMMAND = State.COMMAND
_BUSY = State.BUSY
_MORE = Stop.MORE


@implementer(IDialog)
class CommandDialog(Speaker, ABC):
    """One client's dialog from the greeting to the login.

    A protocol defines ``greet`` and ``accept``, runs its commands (`_command`)
    and says how its answers look (`_bad`, `_no`, `_unsupported`, `_challenge`,
    `_goodbye`).  Where it differs more, it overrides `_stopped`, `_response`,
    `_seam` and ``secured``.  Its commands answer with `_send`, and use
    `_start_tls`, `_may_log_in`, `_attempt`, `_authenticate` and `_log_out`.
    Lines are without their ends in all of these.
    """

    __slots__ = (
        "_bad_commands",
        "_binding",
        "_commands",
        "_exchange",
        "_reader",
        "_refusal",
        "_state",
        "_terms",
        "_tls",
    )

    def __init__(self, terms: DialogTerms, reader: LineReader) -> None:
        super().__init__()
        self._terms = terms
        self._reader = reader
        self._state = _COMMAND
        self._tls = False  # TLS that the client has asked for is on
        self._bad_commands = self._commands = 0
        self._exchange: Exchange | ScramExchange | None = None
        self._binding: bytes | None = None
        self._refusal: Refusal | None = None

    # --- what a protocol has of its own ---

    @abstractmethod
    def greet(self) -> list[DialogEvent]:
        """Say the first words."""

    @abstractmethod
    def accept(self, outcome: LoggedIn) -> bytes:
        """Return the answer to the login that has succeeded."""

    @abstractmethod
    def _command(self, parts: Parts) -> None:
        """Run a command.

        :raises Malformed: it is none, or not one for now; this is answered, and counted.
        """

    @abstractmethod
    def _bad(self, text: bytes) -> bytes:
        """Return the answer to a command that makes no sense; the text is a sentence."""

    @abstractmethod
    def _no(self, refusal: Refusal) -> bytes:
        """Return the answer to a login that has failed."""

    @abstractmethod
    def _unsupported(self) -> bytes:
        """Return the answer to a SASL mechanism that is not offered."""

    @abstractmethod
    def _challenge(self, text: bytes) -> bytes:
        """Return a SASL challenge; the text is base64."""

    @abstractmethod
    def _goodbye(self, why: Farewell) -> bytes:
        """Return the last words for a client that is sent away."""

    def _stopped(self, stop: Stop) -> None:
        """Deal with whatever else the protocol's reader has to say; one of lines has nothing else."""
        del stop

    def _response(self) -> bytes | Stop:
        """Read the client's next SASL response, and return its base64.

        What should be one and is not is returned as it came: it is no base64 then.
        """
        return self._reader.line(MAX_RESPONSE)

    def _seam(self) -> object:
        """Return what the login at the backend has to know of this dialog."""
        return None

    # --- IDialog ---

    def receive(self, data: bytes) -> list[DialogEvent]:
        """Take bytes from the client."""
        if self._state is State.OVER:
            return []
        self._reader.feed(data)
        return self._go_on()

    def secured(self) -> list[DialogEvent]:
        """TLS is on: what was said in the clear is forgotten."""
        self._tls = True
        self._reader.forget()
        self._state = _COMMAND
        return []

    def certified(self) -> None:
        """Offer what only a client with a certificate can succeed with."""
        terms = self._terms
        self._terms = evolve(terms, mechanisms=(*terms.certified, *terms.mechanisms), certified=())

    def bound(self, binding: bytes) -> None:
        """Offer what needs channel binding."""
        terms = self._terms
        self._terms = evolve(terms, mechanisms=(*terms.bound, *terms.mechanisms), bound=())
        self._binding = binding

    def keys(self, keys: StoredKeys) -> list[DialogEvent]:
        """Go on with the keys that were wanted."""
        assert isinstance(self._exchange, ScramExchange)  # noqa: S101 (it has asked for them)
        self._exchange.take(keys)
        self._ask_on(self._exchange)
        return self._go_on()

    def reject(self, refusal: Refusal) -> list[DialogEvent]:
        """Answer the login command, and go on with what the client sent behind it."""
        if refusal.challenge is not None and self._exchange is not None:
            # RFC 7628 section 3.2.2: the error goes out as a challenge, which the client
            # acknowledges before the exchange fails.
            self._refusal = refusal
            self._state = State.CHALLENGED
            self._send(self._challenge(base64.b64encode(refusal.challenge)))
        else:
            self._say_no(refusal)
        return self._go_on()

    def farewell(self, why: Farewell) -> bytes:
        """Say goodbye; whatever comes after that is ignored."""
        words = self._goodbye(why)
        self._state = State.OVER
        return words + b"\r\n"

    def rest(self) -> bytes:
        """Return, and forget, the bytes received behind an accepted login."""
        return self._reader.rest()

    # --- running ---

    def _go_on(self) -> list[DialogEvent]:
        going = True
        while going:
            state = self._state
            if state is _COMMAND:
                going = self._next_command()
            elif state is _BUSY:
                going = False
                if len(self._reader) > MAX_AHEAD:
                    self._hang_up(Farewell.TOO_LONG)
            elif state is State.SASL or state is State.CHALLENGED:
                going = self._next_response()
            elif state is State.HANDSHAKE:
                # Nobody should hand us these: the transport's bytes are TLS by now.
                going = False
                if len(self._reader):
                    self._hang_up(Farewell.INJECTION)
            else:
                going = False
                self._reader.forget()
        self._speak()
        return self._taken()

    def _next_command(self) -> bool:
        unit = self._reader.unit()
        if unit is _MORE:
            return False
        if not isinstance(unit, tuple):
            if unit is Stop.TOO_LONG:
                self._hang_up(Farewell.TOO_LONG)
            else:
                self._stopped(unit)
            return True
        self._commands += 1
        if self._commands > MAX_COMMANDS:
            self._hang_up(Farewell.TOO_MANY_COMMANDS)
            return True
        try:
            self._command(unit)
        except Malformed as error:
            if len(unit) == 1 and (why := foreign(unit[0])) is not None:
                self._hang_up(why)
            else:
                self._bad_command(self._bad(str(error).encode("ascii") + b"."))
        return True

    def _next_response(self) -> bool:
        response = self._response()
        if response is Stop.MORE:
            return False
        if isinstance(response, Stop):
            self._hang_up(Farewell.TOO_LONG)
        elif self._state is State.CHALLENGED:
            refusal, self._refusal = self._refusal, None
            assert refusal is not None  # noqa: S101 (the state says so)
            self._say_no(refusal)
        else:
            self._respond(response)
        return True

    # --- what commands do ---

    def _start_tls(self, answer: bytes, name: str = "STARTTLS") -> None:
        """Begin TLS behind that answer.

        :param name: the command's, where it is another one.
        :raises Malformed: TLS is on already, or not to be had.
        """
        if self._tls:
            raise Malformed("TLS is already on")
        if not self._terms.tls_offered:
            raise Malformed(f"{name} is not offered here")
        if len(self._reader):
            # Bytes in the clear that would later count as protected: CVE-2011-0411 and its kin.
            self._send(self._bad(b"Nothing may follow %s." % name.encode("ascii")))
            self._hang_up(Farewell.INJECTION)
            return
        self._send(answer)
        self._state = State.HANDSHAKE
        self._then(StartTLS())

    def _log_out(self) -> None:
        """End the connection, as the client has asked for, behind what has been sent."""
        self._state = State.OVER
        self._then(HangUp(Farewell.LOGGED_OUT))

    def _login_allowed(self) -> bool:
        return self._tls or self._terms.login_allowed

    def _may_log_in(self) -> bool:
        """Say whether the client may log in as things stand; if not, it has been told."""
        if self._login_allowed():
            return True
        self._say_no(Refusal(Reason.PRIVACY_REQUIRED, "no TLS"))
        return False

    def _may_show_password(self) -> bool:
        """Say whether a command with a name and a password may succeed; if not, the client is told."""
        if self._may_log_in() and not self._terms.passwords:
            self._send(self._unsupported())
            return False
        return self._login_allowed()

    def _attempt(self, credentials: Credentials) -> None:
        """Have somebody log in with these."""
        self._state = _BUSY
        self._then(Attempt(credentials, self._seam()))

    def _authenticate(self, name: str, initial: bytes | None) -> None:
        """Begin a SASL exchange.

        :param name: the mechanism's, in upper case.
        :param initial: the initial response in base64, if there is one.
        """
        if name not in self._terms.mechanisms:
            self._send(self._unsupported())
            return
        scram = name in SCRAM
        self._exchange = exchange = ScramExchange(name, nonce(), self._binding) if scram else Exchange(name)
        if initial is None:
            self._ask_on(exchange)
        else:
            self._respond(initial)

    def _respond(self, response: bytes) -> None:
        exchange = self._exchange
        assert exchange is not None  # noqa: S101 (the state says so)
        self._state = _COMMAND
        if response == b"*":
            self._bad_command(self._bad(b"Authentication aborted."))
            return
        try:
            answer = exchange.respond(response)
        except SaslError as error:
            self._bad_command(self._bad(str(error).encode("ascii") + b"."))
            return
        if answer is None:
            self._ask_on(exchange)
            return
        proof = proof_of(exchange.name)
        credentials = Credentials(exchange.name, answer.user, answer.secret, answer.authorize_as, proof)
        if isinstance(answer, Wanted):
            self._state = _BUSY
            self._then(KeysWanted(credentials))
        else:
            self._attempt(credentials)

    def _ask_on(self, exchange: Exchange | ScramExchange) -> None:
        """Ask the client for its next SASL message."""
        self._state = State.SASL
        self._send(self._challenge(exchange.prompt()))

    # --- answers ---

    def _say_no(self, refusal: Refusal) -> None:
        self._exchange = None
        self._state = _COMMAND
        self._send(self._no(refusal))

    def _bad_command(self, answer: bytes) -> None:
        """Give this answer to a command that makes no sense, and count it."""
        self._exchange = None
        self._send(answer)
        self._bad_commands += 1
        if self._bad_commands >= (self._terms.bad_commands or MAX_BAD_WITHOUT_BOUND):
            self._hang_up(Farewell.TOO_MANY_BAD_COMMANDS)

    def _hang_up(self, why: Farewell) -> None:
        self._said += self.farewell(why)
        self._then(HangUp(why))
