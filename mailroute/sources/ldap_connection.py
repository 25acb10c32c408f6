"""A connection to a directory (LDAP, RFC 4511): one question at a time, and answers within bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sansldap
from sansldap import ExtendedOperations, LDAPMessage, LDAPResultCode
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.sources.context import Unanswered
from mailroute.tls import ClientTLS

MAX_MESSAGE = 65536
"""Bytes of a message from the server: an entry with all the attributes that are asked for."""

MAX_MESSAGES = 100
"""Messages of an answer: one entry is wanted; the rest refer to other servers, which nobody asks."""


class DirectoryRefuses(Unanswered):
    """The server does not do what is asked of it; the number is its result code (RFC 4511 appendix A)."""

    def __init__(self, code: int | str) -> None:
        # What is said instead of a text that repeats a password comes as a text.
        super().__init__(code if isinstance(code, str) else self._of_code(code))

    @staticmethod
    def _of_code(code: int) -> str:
        known = next((each.name for each in LDAPResultCode if each == code), "")
        name = f" ({known.lower().replace('_', ' ')})" if known else ""
        remedy = _REMEDIES.get(code, "look at the directory's log")
        return f"the directory refuses, code {code:d}{name}; {remedy}"


_TLS_WANTED = "it wants TLS: set starttls = true, or write ldaps:// in urls"
_REMEDIES: Mapping[object, str] = {
    LDAPResultCode.PROTOCOL_ERROR: "it may have no STARTTLS: set starttls = false, or write ldaps:// in urls",
    LDAPResultCode.STRONG_AUTH_REQUIRED: _TLS_WANTED,
    LDAPResultCode.CONFIDENTIALITY_REQUIRED: _TLS_WANTED,
    LDAPResultCode.NO_SUCH_OBJECT: "correct base, or let bind_dn see it",
    LDAPResultCode.INVALID_DN_SYNTAX: "correct base and bind_dn, of which one is no distinguished name",
    LDAPResultCode.INAPPROPRIATE_AUTHENTICATION: "it wants a name: give bind_dn and bind_password_file",
    LDAPResultCode.INVALID_CREDENTIALS: "look at bind_dn and bind_password_file",
    LDAPResultCode.INSUFFICIENT_ACCESS_RIGHTS: "let bind_dn search below base",
}
"""What to do about result codes that tell of the block."""


class DirectorySpeaksOtherwise(Unanswered):
    """What the server sends is not LDAP as it should be."""

    usual = "what it sends is not LDAP; look at what listens at urls, and whether it wants TLS"


@implementer(IHandshakeListener)
class Connection(Protocol):
    """A connection to a directory, on which one question is asked at a time."""

    transport: Any

    def __init__(self) -> None:
        self._session = sansldap.LDAPClient()
        self._answer: list[LDAPMessage] = []
        self._waiting: Deferred[list[LDAPMessage]] | None = None
        self._secured: Deferred[None] | None = None
        self._pending = 0
        self.lost: Failure | None = None

    def ask(self, request: Callable[[sansldap.LDAPClient], int]) -> Deferred[list[LDAPMessage]]:
        """Ask, and return all messages up to the one that ends the answer."""
        if self.lost is not None:
            self.lost.raiseException()
        waiting: Deferred[list[LDAPMessage]] = Deferred()
        self._answer, self._waiting = [], waiting
        request(self._session)
        self.transport.write(self._session.data_to_send())
        return waiting

    def dataReceived(self, data: bytes) -> None:
        """Take bytes; whatever is not an answer to the question ends the connection."""
        self._pending += len(data)
        try:
            messages = self._session.receive(data)
        except Exception:  # the library's own, and an IndexError now and then
            self._end()
            return
        if messages:
            self._pending = 0
        for message in messages:
            self._take(message)
        if self._pending > MAX_MESSAGE:
            self._end()

    def _take(self, message: LDAPMessage) -> None:
        waiting = self._waiting
        if waiting is None:
            self._end()
            return
        self._answer.append(message)
        if hasattr(message, "result"):
            self._waiting = None
            waiting.callback(self._answer)
        elif len(self._answer) > MAX_MESSAGES:
            self._end()

    def _end(self) -> None:
        self._fail(Failure(DirectorySpeaksOtherwise()))
        self.transport.abortConnection()

    async def starttls(self, tls: ClientTLS) -> None:
        """Begin TLS (RFC 4511 section 4.14).

        :raises DirectoryRefuses: the server does not want to.
        """
        name = ExtendedOperations.LDAP_START_TLS.value
        succeeded(await self.ask(lambda session: session.extended_request(name)))
        # A new reader: nothing that was sent in the clear is taken for more than that.
        self._session = sansldap.LDAPClient()
        self._pending = 0
        self._secured = Deferred()
        self.transport.startTLS(tls)
        await self._secured

    def handshakeCompleted(self) -> None:
        """TLS is on."""
        secured, self._secured = self._secured, None
        if secured is not None:
            secured.callback(None)

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """Nobody gets an answer any more."""
        self._fail(reason)

    def _fail(self, reason: Failure) -> None:
        self.lost = self.lost or reason
        waiting, self._waiting = self._waiting, None
        secured, self._secured = self._secured, None
        for each in (waiting, secured):
            if each is not None and not each.called:
                each.errback(reason)

    def close(self) -> None:
        """Say good-bye."""
        if self.lost is None:
            self._session.unbind()
            self.transport.write(self._session.data_to_send())
            self.transport.loseConnection()

    def abort(self) -> None:
        """Close at once."""
        self.transport.abortConnection()


def succeeded(messages: Sequence[LDAPMessage]) -> None:
    """Make sure that the server has done what was asked of it.

    :raises DirectoryRefuses: it has not.
    """
    code = result(messages)
    if code != LDAPResultCode.SUCCESS:
        raise DirectoryRefuses(code)


def result(messages: Sequence[LDAPMessage]) -> int:
    """Return the code in the message that ends an answer."""
    last: Any = messages[-1]
    # The value: a code that sansldap 0.1 does not know is an integer that equals 0, which is success.
    code: int = last.result.result_code.value
    return code
