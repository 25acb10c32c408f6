"""Where one client's messages go: the transaction under way, and the backends that it needs."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from mailroute.delivery.passage import OneReply, Passage, Session
from mailroute.delivery.target import Target
from mailroute.delivery.terms import MAX_BACKENDS, Alarm, DeliveryDoor
from mailroute.delivery.transaction import Recipient, Transaction
from mailroute.envelope import Begin, MailFrom, Obstacle, Outcome, RcptTo, Reply
from mailroute.events import LoginRefused, Lookup, Mailing, Reason, Refusal, Route
from mailroute.house import House
from mailroute.interfaces import IBackend, IReceiver
from mailroute.wire.smtp_syntax import BadSyntax, spell


class Forwarding:
    """The messages of one session, one after the other.

    :ivar dialled: the names of the backends that were needed so far.
    """

    def __init__(self, house: House, door: DeliveryDoor, receiver: IReceiver, session: Session) -> None:
        self._house = house
        self._door = door
        self._receiver = receiver
        self._session = session
        self._lookup: Deferred[Any] | None = None
        self._lookup_alarm = Alarm(house.deadlines, _LookUp(self))
        self._targets: dict[IBackend, Target] = {}
        self._transaction: Transaction | None = None
        self._passage: Passage | None = None
        self._messages = 0
        self.dialled: dict[str, None] = {}

    @property
    def stuck(self) -> bool:
        """Whether some backend does not take what was written."""
        return any(target.stuck for target in self._targets.values())

    def leave(self, why: str) -> None:
        """The session is over: let go of all backends, and of a message that has not ended."""
        self._lookup_alarm.clear()
        if self._lookup is not None:
            self._lookup.cancel()
        self.drop(f"given up ({why})")
        for target in self._targets.values():
            target.leave()
        self._targets.clear()

    def mail(self, mail: MailFrom) -> None:
        """Begin a transaction."""
        self.drop("called off")
        self._messages += 1
        self._transaction = Transaction(mail, self._messages)

    def drop(self, why: str = "") -> None:
        """Forget the transaction; ``why``: what to log of one that has not ended."""
        transaction, self._transaction, self._passage = self._transaction, None, None
        if transaction is None:
            return
        transaction.log(self._session.record.client.session_id, "" if transaction.ended else why)
        for backend, target in list(self._targets.items()):
            target.reset()
            if target.gone:
                del self._targets[backend]

    def recipient(self, recipient: RcptTo) -> None:
        """Look a recipient up, and offer it to its backend."""
        try:
            user = self._house.normalise(recipient.account)
        except ValueError:
            self._refuse(recipient, Obstacle.BAD_ADDRESS)
            return
        if self._door.route is not None:
            self._routed(recipient, self._door.route)
            return
        assert self._transaction is not None  # noqa: S101 (a recipient has a sender)
        mailing = _mailing(self._transaction.mail, recipient)
        lookup = Lookup(user, self._door.protocol.name, self._session.record.client, mailing=mailing)
        try:
            found = self._house.router.route(lookup)
        except LoginRefused as refused:
            self._turn_away(recipient, refused.refusal)
            return
        if not isinstance(found, Deferred):
            self._routed(recipient, found)
            return
        self._lookup = found
        self._lookup_alarm.set(self._door.lookup_timeout)
        routed = self._session.asks(lambda answer: self._looked_up(recipient, answer))
        found.addBoth(routed)

    def _looked_up(self, recipient: RcptTo, answer: Route | Failure | None) -> None:
        self._lookup = None
        self._lookup_alarm.clear()
        if not isinstance(answer, Failure):
            self._routed(recipient, answer)
        elif isinstance(answer.value, LoginRefused):
            self._turn_away(recipient, answer.value.refusal)
        elif answer.check(CancelledError):
            self._refuse(recipient, Obstacle.LOOKUP_FAILED)
        else:
            self._session.fault(answer)

    def _turn_away(self, recipient: RcptTo, refusal: Refusal) -> None:
        """Refuse a recipient as a source does, after the time for which it wants the client to wait.

        The client is not sent away, whatever the source says: other recipients may be there already.
        """

        def refuse() -> None:
            self._lookup = None
            self._refuse(recipient, why)

        why = Obstacle.LOOKUP_FAILED if refusal.reason is Reason.UNAVAILABLE else refusal.reason
        if not refusal.wait:
            self._refuse(recipient, why)
            return
        refused = self._session.asks(refuse)
        self._lookup = deferLater(self._house.clock, refusal.wait, lambda: None)
        self._lookup.addBoth(lambda _: refused())

    def _routed(self, recipient: RcptTo, route: Route | None) -> None:
        transaction = self._transaction
        assert transaction is not None  # noqa: S101 (a recipient has a sender)
        if route is None:
            self._refuse(recipient, Obstacle.UNKNOWN)
            return
        try:
            backend = self._house.places.find(route)
        except LoginRefused as refused:
            self._refuse(recipient, refused.refusal.reason)
            return
        others = {target.backend for target in transaction.targets} - {backend}
        if others and not (self._door.protocol.splits or self._door.split):
            self._refuse(recipient, Obstacle.ELSEWHERE, backend.name)
            return
        if len(others) >= MAX_BACKENDS:
            self._refuse(recipient, Obstacle.TOO_MANY_BACKENDS, backend.name)
            return
        if route.name is not None:
            try:
                there = spell(route.name.encode("utf-8"), recipient.mailbox)
            except BadSyntax:
                self._refuse(recipient, Reason.MISCONFIGURED, backend.name)
                return
            recipient = evolve(recipient, mailbox=there)
        self._offer(transaction, recipient, self._target(backend, others))

    def _target(self, backend: IBackend, wanted: set[IBackend]) -> Target:
        target = self._targets.get(backend)
        if target is None:
            if len(self._targets) >= MAX_BACKENDS:
                # One that has none of this message's recipients makes room.
                spare = next(spare for spare in self._targets if spare not in wanted)
                self._targets.pop(spare).leave()
            house = self._house
            self._session.dialling()
            self.dialled[backend.name] = None
            target = self._targets[backend] = Target(
                backend, self._door, house.clock, house.deadlines, self._session
            )
        return target

    def _offer(self, transaction: Transaction, recipient: RcptTo, target: Target) -> None:
        def answered(outcomes: tuple[Outcome, ...]) -> None:
            [outcome] = outcomes
            entry = Recipient(recipient, target.backend.name, outcome)
            transaction.recipients.append(entry)
            if isinstance(outcome, Reply) and outcome.positive:
                transaction.accepted.append((entry, target))
            self._session.obey(self._receiver.answer(outcome))

        if target.failed is not None:
            # It has had its connection in this transaction: the next one may try another.
            self._session.asks(answered)((target.failed,))
            return
        client, seam = self._session.record.client, self._receiver.seam()
        target.recipient(transaction.mail, recipient, client, seam, self._session.asks(answered))

    def _refuse(self, recipient: RcptTo, why: Outcome, backend: str = "-") -> None:
        assert self._transaction is not None  # noqa: S101 (a recipient has a sender)
        self._transaction.recipients.append(Recipient(recipient, backend, why))
        self._session.obey(self._receiver.answer(why))

    # --- the message ---

    def begin(self, begin: Begin) -> None:
        """Ask all backends for leave to send the message."""
        transaction = self._transaction
        assert transaction is not None  # noqa: S101 (it has recipients)
        several = len(transaction.targets) > 1
        kind = OneReply if several and not self._door.protocol.splits else Passage
        self._passage = kind(transaction, self._session, self._receiver, self._house.clock, self.drop)
        self._passage.begin(begin)

    @property
    def passage(self) -> Passage:
        """The message that is under way."""
        assert self._passage is not None  # noqa: S101 (there is one)
        return self._passage


def _mailing(mail: MailFrom, recipient: RcptTo) -> Mailing:
    return Mailing(mail.hello, mail.mailbox, mail.parameters, recipient.mailbox, recipient.parameters)


class _LookUp:
    """The look-up takes too long."""

    def __init__(self, forwarding: Forwarding) -> None:
        self._forwarding = forwarding

    def time_is_up(self) -> None:
        """Give it up; it fails with CancelledError."""
        if self._forwarding._lookup is not None:
            self._forwarding._lookup.cancel()
