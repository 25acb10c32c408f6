"""The life of one connection, as a table of states.

A session owns no socket and knows no protocol.  It is told what happens, obeys
what the dialog says, and moves through the states of `mailroute.states.NEXT`; each state's
entry does that state's work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.deadlines import Deadline
from mailroute.events import (
    Attempt,
    Credentials,
    DialogEvent,
    Farewell,
    HangUp,
    KeysWanted,
    LoginRefused,
    Lookup,
    Opened,
    Reason,
    Refusal,
    Route,
    Send,
)
from mailroute.failures import UNKNOWN
from mailroute.house import Door, House, Joined
from mailroute.legs import IClientLeg, ISession
from mailroute.places import lets_in_anybody, open_for
from mailroute.proofs import Proof
from mailroute.record import SessionRecord
from mailroute.states import NEXT, Happening, State
from mailroute.wire.scram import StoredKeys

_log = Logger(namespace="mailroute.session")

# By these names because Python 3.11 is slow to find a member in its class.
_ATTEMPT = Happening.ATTEMPT
_DONE = Happening.DONE
_REFUSED = Happening.REFUSED
_ENDED = Happening.ENDED

_UNROUTED = Refusal(Reason.CONTACT_ADMIN, "the password is right, but no route knows the user")
"""Where the password was checked here there is nothing to hide."""


@implementer(ISession)
class Session:
    """One client's connection from its first byte to its last."""

    __slots__ = (
        "_attempt",
        "_backend",
        "_deadline",
        "_dialog",
        "_door",
        "_failed",
        "_house",
        "_joined",
        "_leg",
        "_since",
        "_user",
        "_waiting",
        "record",
        "state",
    )

    def __init__(self, house: House, door: Door, leg: IClientLeg) -> None:
        self._house = house
        self._door = door
        self._leg: Any = leg
        self._dialog = door.protocol.dialog(door.terms)
        self._attempt: Attempt | None = None
        self._backend: str | None = None
        self._user = ""
        self._failed = 0
        self._waiting: Deferred[Any] | None = None
        self._joined: Joined | None = None
        self._since = house.clock.seconds()
        self._deadline: Deadline | None = None
        if house.login_timeout:
            self._deadline = house.deadlines.after(house.login_timeout, self)
        self.state = State.TALKING
        self.record = SessionRecord(leg.client(), door.name, self._since)

    # --- what its leg tells it ---

    def begin(self) -> None:
        """The connection is ready, TLS from the first byte included: greet."""
        self.record.client = self._house.introduce(self._dialog, self._leg, self._door.terms)
        self._obey(self._dialog.greet())

    def received(self, data: bytes) -> None:
        """Bytes came from the client."""
        if self.state in (State.JOINED, State.OVER):
            return
        if self.state is not State.TALKING:
            # It sends ahead while its login is under way.  Whoever does not is read on,
            # because a paused transport would not notice that the client is gone.
            self._leg.pause()
        self._obey(self._dialog.receive(data))

    def half_closed(self) -> None:
        """The client will send no more, and may still read; a login that is under way goes on."""
        if self.state is State.TALKING:
            self.lost("the client closed the connection")

    def secured(self) -> None:
        """TLS that the dialog asked for is on."""
        self.record.client = self._house.introduce(self._dialog, self._leg, self._door.terms)
        self._obey(self._dialog.secured())

    def lost(self, why: str) -> None:
        """The client's connection is gone."""
        self._end(f"{why} while {self.state.value}")

    def time_is_up(self) -> None:
        """The client has not logged in in time."""
        self.leave(Farewell.LOGIN_TIMEOUT)

    def leave(self, why: Farewell) -> None:
        """End the connection: politely before login, at once after it."""
        if self.state is State.OVER:
            return
        if self.state is not State.JOINED:
            self._leg.write(self._dialog.farewell(why))
        self._end(why.value)

    def known(self) -> SessionRecord:
        """Return what is known of it now; once it is joined, with the bytes that have passed."""
        if self._joined is not None:
            self.record.count(self._joined)
        return self.record

    # --- running ---

    def _obey(self, events: list[DialogEvent]) -> None:
        for event in events:
            if isinstance(event, Send):
                self._leg.write(event.data)
            elif isinstance(event, Attempt):
                self._move(_ATTEMPT, event)
            elif isinstance(event, KeysWanted):
                self._move(Happening.KEYS, event.credentials)
            elif isinstance(event, HangUp):
                self._end(event.why.value)
            else:
                self._leg.start_tls()

    def _move(self, happening: Happening, value: Any = None) -> None:
        state = NEXT.get((self.state, happening))
        if state is not None:
            self.state = state
            _ENTER[state](self, value)

    def _work(self, result: object) -> None:
        """Go on with the result of a state's work, now or when its Deferred fires."""
        if isinstance(result, Deferred):
            self._waiting = result
            result.addCallbacks(self._done, self._not_done)
        else:
            self._move(_DONE, result)

    def _done(self, value: object) -> None:
        self._waiting = None
        try:
            self._move(_DONE, value)
        except Exception:
            self._fault(Failure())

    def _not_done(self, failure: Failure) -> None:
        self._waiting = None
        error = failure.value
        try:
            if isinstance(error, LoginRefused):
                self._move(_REFUSED, error.refusal)
            elif not (self.state is State.OVER and failure.check(CancelledError)):
                self._fault(failure)
        except Exception:
            self._fault(Failure())

    def _fault(self, failure: Failure) -> None:
        """Something of ours is broken: the log gets the traceback, the client a plain answer."""
        _log.failure(
            "session {session_id} failed while {state}",
            failure=failure,
            session_id=self.record.client.session_id,
            state=self.state.value,
        )
        self.leave(Farewell.FAULT)

    # --- the states ---

    def _enter_fetching(self, credentials: Credentials) -> None:
        lookup = self._begun(Attempt(credentials))
        if lookup is not None:
            # Not at once, so that a client that pipelines exchanges cannot make the stack deep.
            keys, clock = Deferred.fromCoroutine(self._house.keys(self._door, lookup)), self._house.clock
            self._work(keys.addCallback(lambda found: deferLater(clock, 0, lambda: found)))

    def _enter_checking(self, attempt: Attempt) -> None:
        lookup = self._begun(attempt)
        if lookup is None:
            return
        if self._door.authenticator is None:
            self._move(_DONE, lookup.user)
        else:
            self._work(self._door.authenticator.authenticate(lookup))

    def _begun(self, attempt: Attempt) -> Lookup | None:
        """Return what is asked about who tries to log in; None if it is refused already."""
        self._attempt = attempt
        self._since = self._house.clock.seconds()
        self.record.backend = "-"
        credentials = attempt.credentials
        try:
            self._user = self._house.name(credentials, self._door)
        except ValueError as error:
            self.record.user = credentials.account[:256].decode("utf-8", "backslashreplace")
            self._refuse(Reason.AUTHENTICATION_FAILED, f"not a user name: {error}")
            return None
        self.record.user = self._user or "-"
        if b"\0" in credentials.secret or b"\0" in credentials.user:
            self._refuse(Reason.AUTHENTICATION_FAILED, "a NUL byte in the credentials")
        elif self._door.authenticator is not None and credentials.authorize_as:
            self._refuse(Reason.AUTHORIZATION_FAILED, "asked to open the account of another user")
        else:
            return self._lookup(self._user)
        return None

    def _lookup(self, user: str) -> Lookup:
        return Lookup(
            user, self._door.protocol.name, self.record.client, self._credentials(), self._failed + 1
        )

    def _enter_routing(self, user: str) -> None:
        self._user = user
        self.record.user = user or "-"
        if self._door.route is not None:
            self._move(_DONE, self._door.route)
            return
        try:
            route = self._house.router.route(self._lookup(user))
        except LoginRefused as refused:
            self._move(_REFUSED, refused.refusal)
            return
        self._work(route)

    def _enter_opening(self, route: Route | None) -> None:
        now = self._house.clock.seconds()
        self.record.lookup = now - self._since
        if route is None:
            self._move(_REFUSED, UNKNOWN if self._door.authenticator is None else _UNROUTED)
            return
        try:
            backend = self._house.places.find(route)
        except LoginRefused as refused:
            self._move(_REFUSED, refused.refusal)
            return
        self.record.backend = backend.name
        assert self._attempt is not None  # noqa: S101 (the states CHECKING to OPENING have one)
        if self._door.authenticator is None and lets_in_anybody(route, backend, self._attempt):
            # The configuration does not allow this; nor do we, whoever made the settings.
            self._refuse(Reason.MISCONFIGURED, f"nobody checks passwords for {backend.name}")
            return
        self._since = now
        self._backend = route.backend
        self._leg.dialling()
        client = self.record.client
        self._work(open_for(backend, self._door.protocol, route, self._attempt, self._user, client))

    def _enter_refusing(self, refusal: Refusal) -> None:
        clock, failures = self._house.clock, self._house.failures
        delay = failures.delay(refusal, self._user, self._backend, clock.seconds() - self._since)
        self.record.refused(refusal)
        if refusal.reason is Reason.AUTHENTICATION_FAILED and self._credentials().proof is Proof.TOKEN:
            refusal = evolve(refusal, challenge=failures.challenge(refusal.challenge))
        self._forget_attempt()
        # Never at once, so that a client that pipelines logins cannot make the stack deep.
        waiting: Deferred[Refusal] = Deferred(lambda _: timer.cancel())
        timer = clock.callLater(delay, waiting.callback, refusal)
        self._work(waiting)

    def _enter_talking(self, found: Refusal | StoredKeys) -> None:
        if isinstance(found, StoredKeys):
            self._forget_attempt()
            self._leg.resume()
            self._obey(self._dialog.keys(found))
            return
        events = self._dialog.reject(found)
        self._failed += 1
        if found.final or (self._house.failed_logins and self._failed >= self._house.failed_logins):
            if events and isinstance(events[0], HangUp):
                self._obey(events)  # for a reason of its own
                return
            if events and isinstance(events[0], Send):
                self._leg.write(events[0].data)
            self.leave(Farewell.TOO_MANY_FAILURES)
            return
        self._leg.resume()
        self._obey(events)

    def _enter_joined(self, opened: Opened) -> None:
        self._stop_timer()
        record = self.record
        record.backend, record.connect, record.login = opened.backend, opened.connecting, opened.logging_in
        self._forget_attempt()
        answer = self._dialog.accept(opened.outcome)
        rest = self._dialog.rest()
        # Of all this nothing is needed any more, and a session may be held for days.
        del self._dialog
        record.settle()
        self._user, self._since = "", 0.0
        client, self._leg, untold = self._leg.hand_over()
        joined = self._house.join(client, opened.transport, answer + opened.outcome.rest, rest + untold, self)
        if self.state is State.JOINED:  # else it has ended already
            self._joined = joined

    def _enter_over(self, reason: str) -> None:
        self._stop_timer()
        self._forget_attempt()
        if self._waiting is not None:
            self._waiting.cancel()
        if self._joined is not None:
            self.record.count(self._joined)
            self._joined.cancel()
            self._joined = None
        self._leg.close()
        self.record.ended(reason, self._house.clock.seconds())

    # --- their parts ---

    def _credentials(self) -> Credentials:
        assert self._attempt is not None  # noqa: S101 (the states CHECKING to OPENING have one)
        return self._attempt.credentials

    def _refuse(self, reason: Reason, detail: str) -> None:
        self._move(_REFUSED, Refusal(reason, detail))

    def _forget_attempt(self) -> None:
        """The credentials of one try never get into the next."""
        self._attempt = None
        self._backend = None

    def _stop_timer(self) -> None:
        if self._deadline is not None:
            self._deadline.discard(self)
            self._deadline = None

    def parted(self, result: Any) -> None:
        """The splice has ended."""
        self._joined = None
        self.record.count(result)
        self._end(result.reason)

    def _end(self, reason: str) -> None:
        self._move(_ENDED, reason)


_ENTER: Mapping[State, Callable[[Session, Any], None]] = {
    State.TALKING: Session._enter_talking,
    State.FETCHING: Session._enter_fetching,
    State.CHECKING: Session._enter_checking,
    State.ROUTING: Session._enter_routing,
    State.OPENING: Session._enter_opening,
    State.REFUSING: Session._enter_refusing,
    State.JOINED: Session._enter_joined,
    State.OVER: Session._enter_over,
}
