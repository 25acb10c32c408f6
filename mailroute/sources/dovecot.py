"""Asking Dovecot's auth service, over its UNIX sockets: whether a password is right, and what a passdb knows.

The same words stand in the lines of a passwd-file, behind the account's.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from mailroute.events import LoginRefused, Lookup, Reason, Refusal
from mailroute.proofs import Proof
from mailroute.sources.context import BadAnswer, Unanswered
from mailroute.wire import dovecot_auth, sasl
from mailroute.wire.dovecot_auth import Fields

VERSION = (b"VERSION", b"1", b"1")
"""The protocol that is spoken; a server with another major version is not asked."""

MAX_IGNORED = 20
"""Questions in a row without any answer in time after which the connection is given up: a new one is made
rather than have more and more written to one that nobody reads."""

HANDSHAKE = 5.0
"""Seconds for the server to say which protocol it speaks."""


class DovecotSpeaksOtherwise(Unanswered):
    """The server at the socket does not speak the protocol."""

    usual = "what listens there does not speak as Dovecot's auth service; name its auth-client or auth-master"


class DovecotCannotTell(Unanswered):
    """The server has failed inside."""

    usual = "Dovecot has failed inside; look at its log"


ACKNOWLEDGED = base64.b64encode(b"\x01")
"""What a client says to an OAuth server's error document (RFC 7628 section 3.2.3)."""

_ANSWERS = (b"OK", b"FAIL", b"PASS", b"NOTFOUND")


@frozen
class Said:
    """What the server has said of a user: ``OK``, ``FAIL``, ``PASS`` or ``NOTFOUND``, and fields."""

    word: str
    fields: Fields


class _Connection(LineOnlyReceiver):
    """A connection to the auth service: asks as many questions at a time as there are."""

    delimiter = b"\n"
    MAX_LENGTH = dovecot_auth.MAX_ANSWER

    def __init__(self, handshake: bytes, greets: bool) -> None:
        self._handshake = handshake
        self._greets = greets
        self._last = self._ignored = 0
        self._waiting: dict[bytes, Deferred[Said]] = {}
        self.transport: Any
        self.ready: Deferred[_Connection] | None = Deferred()

    def connectionMade(self) -> None:
        """Say which protocol is spoken."""
        self.transport.write(self._handshake)
        if not self._greets:
            self._is_ready()

    def _is_ready(self) -> None:
        ready, self.ready = self.ready, None
        if ready is not None:
            ready.callback(self)

    @property
    def usable(self) -> bool:
        """Whether it is still connected."""
        return bool(self.connected)

    def ask(self, command: bytes, words: Iterable[bytes]) -> Deferred[Said]:
        """Ask a question; cancelling the Deferred forgets the answer.

        :raises ValueError: it is too long for the protocol.
        """
        self._last = self._last % 0x7FFFFFFF + 1
        number = b"%d" % self._last
        question = dovecot_auth.line([command, number, *words])

        def forget(_: Deferred[Said]) -> None:
            self._waiting.pop(number, None)
            self._ignored += 1
            if self._ignored >= MAX_IGNORED:
                self.close()

        answer: Deferred[Said] = Deferred(forget)
        self._waiting[number] = answer
        self.transport.write(question)
        return answer

    def lineReceived(self, line: bytes) -> None:
        """Take a line from the server."""
        try:
            word, *rest = dovecot_auth.split(line)
            if word == b"VERSION" and rest[:1] != [b"1"]:
                raise ValueError
            if word == b"DONE":
                self._is_ready()
            if word == b"CONT" and rest and rest[0] in self._waiting:
                # It says why a token is wrong, and wants that acknowledged (RFC 7628 section 3.2.3).
                self.transport.write(dovecot_auth.line([word, rest[0], ACKNOWLEDGED]))
            # The words of the handshake have numbers too, which are none of a question.
            answer = self._waiting.pop(rest[0], None) if rest and word in _ANSWERS else None
            if answer is None:
                return  # of the handshake, or nobody waits for it any more
            said = Said(word.decode("ascii"), dovecot_auth.fields(rest[1:]))
        except ValueError:
            self.close()
            return
        self._ignored = 0
        answer.callback(said)

    def close(self) -> None:
        """Close at once, whether the server takes anything or not."""
        self.connected = 0
        self.transport.abortConnection()

    def lineLengthExceeded(self, line: bytes) -> None:
        """Close: nobody says so much."""
        del line
        self.close()

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        """Nobody gets an answer any more."""
        self.connected = 0
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.errback(reason)
        ready, self.ready = self.ready, None
        if ready is not None:
            ready.errback(DovecotSpeaksOtherwise())


class DovecotAuth:
    """A client of the auth service at one socket, which connects when there is a question.

    :param path: the socket's.
    :param masters: it is one of those sockets whose clients are told of any user without a password.
    """

    def __init__(self, path: str, reactor: Any, *, masters: bool = False) -> None:
        self._endpoint = UNIXClientEndpoint(reactor, path)
        self._masters = masters
        self._reactor = reactor
        self._connection: _Connection | None = None
        self._opening: Deferred[Any] | None = None
        self._waiting: list[Deferred[_Connection]] = []

    async def check(self, lookup: Lookup) -> Said:
        """Have the lookup's credentials checked (AUTH).

        :raises ValueError: they are too long for the protocol.
        """
        shown = lookup.credentials
        assert shown is not None  # noqa: S101 - who asks shows them
        mechanism, message = shown.mechanism, shown.secret
        if shown.proof is Proof.PASSWORD:
            # Who is checked has to be who is let in, and that is the normalised name.
            user = shown.user if shown.authorize_as else lookup.user.encode("utf-8")
            mechanism, message = "PLAIN", sasl.plain(user, shown.secret, shown.authorize_as)
        words = [mechanism.encode("ascii"), *_about(lookup)]
        return await self._ask(b"AUTH", [*words, b"resp=" + base64.b64encode(message)])

    async def find(self, lookup: Lookup) -> Said:
        """Ask what the passdbs know of the user (PASS); only on a socket for masters."""
        return await self._ask(b"PASS", [lookup.user.encode("utf-8"), *_about(lookup)])

    async def _ask(self, command: bytes, words: Iterable[bytes]) -> Said:
        connection = await self._connected()
        return await connection.ask(command, words)

    def _connected(self) -> Deferred[_Connection]:
        """Return the connection, which all who ask for it at a time wait for together."""
        if self._connection is not None and self._connection.usable:
            return succeed(self._connection)
        # Whoever leaves does not take it from the others.  Not a lock: each of them would go on
        # inside the call that lets the one before it go on, and hundreds of them are too deep.
        waiting: Deferred[_Connection] = Deferred(self._leave)
        self._waiting.append(waiting)
        if self._opening is None:
            self._opening = Deferred.fromCoroutine(self._connect())
            self._opening.addBoth(self._connected_or_not)
        return waiting

    def _leave(self, waiting: Deferred[_Connection]) -> None:
        # While the others are told, it is not among those who wait any more.
        with contextlib.suppress(ValueError):
            self._waiting.remove(waiting)

    async def _connect(self) -> _Connection:
        made = _Connection(self._handshake(), not self._masters)
        ready = made.ready
        await connectProtocol(self._endpoint, made)
        if ready is not None:
            try:
                await ready.addTimeout(HANDSHAKE, self._reactor)
            except BaseException:
                made.close()
                raise
        return made

    def _connected_or_not(self, outcome: _Connection | Failure) -> None:
        self._opening = None
        self._connection = None if isinstance(outcome, Failure) else outcome
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(outcome)

    def _handshake(self) -> bytes:
        lines = [VERSION] if self._masters else [VERSION, (b"CPID", b"%d" % os.getpid())]
        return b"".join(map(dovecot_auth.line, lines))

    def close(self) -> None:
        """Close the connection, if there is one; one that is being made, too."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if self._opening is not None:
            self._opening.cancel()


_SERVICES = {"managesieve": "sieve"}
"""What Dovecot calls protocols that it has another name for."""


def _about(lookup: Lookup) -> list[bytes]:
    """Return what Dovecot is told of a session."""
    client = lookup.client
    service = _SERVICES.get(lookup.protocol, lookup.protocol)
    told = [f"service={service}", f"session={client.session_id}"]
    for side, address in (("r", client.source), ("l", client.destination)):
        if address is not None:
            told += [f"{side}ip={address.host}", f"{side}port={address.port}"]
    if client.tls is not None:
        told.append("secured=tls")
    if client.server_name is not None:
        told.append(f"local_name={client.server_name}")
    return [word.encode("utf-8") for word in told]


# --- what the fields mean ----------------------------------------------------------

_SAME = {"port": "port", "destuser": "name", "pass": "password", "master": "master"}
_TLS = {"ssl": "tls", "starttls": "starttls"}


def refuse(fields: Fields) -> None:
    """Raise what the fields say against a login, if they do.

    :raises LoginRefused: the account is disabled, its password expired, …, or the server cannot tell now.
    """
    code = fields.get("code", b"").decode("ascii", "replace")
    said = fields.get("reason", b"").decode("utf-8", "replace")
    for key, reason in _AGAINST.items():
        if key in fields or code == key:
            raise LoginRefused(Refusal(reason, f"Dovecot says {key}{said and f': {said}'}"))


_AGAINST = {
    "temp": Reason.UNAVAILABLE,
    "temp_fail": Reason.UNAVAILABLE,
    "user_disabled": Reason.CONTACT_ADMIN,
    "pass_expired": Reason.EXPIRED,
    "authz": Reason.AUTHORIZATION_FAILED,
    "authz_fail": Reason.AUTHORIZATION_FAILED,
}


def route_fields(fields: Fields, backends: Iterable[str]) -> Mapping[str, object]:
    """Return the fields of a route that Dovecot's extra fields stand for.

    What is not about where an account lives (``userdb_…``, ``proxy_timeout``, …) is left out.

    :param backends: a ``host`` of that name is one of these.
    :raises LoginRefused: they say that the user may not log in.
    :raises BadAnswer: a value makes no sense.
    """
    refuse(fields)
    answer: dict[str, object] = {}
    host = fields.get("host", b"").decode("utf-8", "replace")
    answer["backend" if host in backends else "host"] = host
    for key, name in _SAME.items():
        if key in fields:
            answer[name] = fields[key]
    for key, security in _TLS.items():
        value = fields.get(key, b"no").lower()
        if value in (b"yes", b"any-cert", b""):
            # Certificates are always verified here: "any-cert" is no leave not to.
            answer["security"] = security
        elif value != b"no":
            raise BadAnswer(f"{key} must be yes, any-cert or no")
    if "nologin" in fields and not host:
        answer["refuse"] = fields.get("reason") or b"disabled"
    answer |= {key: value for key, value in fields.items() if key.startswith("forward_")}
    return answer
