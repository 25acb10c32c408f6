"""Authenticators in order: the first that knows a user decides."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailroute.events import Credentials, LoginRefused, Lookup, Reason, Refusal
from mailroute.interfaces import IAuthenticator, IKeyholder
from mailroute.proofs import SCRAM, Proof
from mailroute.sources import CONTROL, BadAnswer
from mailroute.sources.faults import fault
from mailroute.wire.scram import StoredKeys

MAX_NAME = 512
"""Bytes of a user's name, as in `mailroute.names`, which this room does not know."""

_Answer = TypeVar("_Answer")


@frozen
class Link:
    """An authenticator in a chain.

    ``label`` is for the log, such as ``authenticate[1] (passwd-file)``.
    ``lenient``: if it cannot answer, the next ones are asked.
    """

    label: str
    authenticator: IAuthenticator
    lenient: bool = False


class IDecoy(IAuthenticator):
    """An authenticator that takes long enough for a client to see whether it has been asked."""

    def pretend(lookup: Lookup) -> Awaitable[None] | None:  # noqa: N805 - as interfaces have it
        """Take as long as to find these credentials wrong, for a user whom nobody knows.

        For the same name always as long.
        """


class IKeyDecoy(IDecoy):
    """A decoy for users who would show that they know a password, without sending it."""

    def made_up(lookup: Lookup) -> StoredKeys:  # noqa: N805 - as interfaces have it
        """Return keys as a user could have them whom nobody knows; for the same name always the same salt."""


@implementer(IKeyholder)
class AuthenticatorChain:
    """Asks authenticators in order until one knows the user.

    Whoever knows the user decides: the next might take for right what this one
    found wrong.  So does one that cannot answer, unless it is lenient.

    :param salt: what decides which of several authenticators an unknown user is taken to be one of; the
        same wherever the same client may come.
    """

    _log = Logger()

    def __init__(self, links: Sequence[Link], salt: bytes | None = None) -> None:
        self._links = tuple(links)
        self._salt = secrets.token_bytes(16) if salt is None else salt

    @property
    def proofs(self) -> frozenset[Proof]:
        """What any of them can check."""
        return frozenset().union(*(link.authenticator.proofs for link in self._links))

    @property
    def offers(self) -> frozenset[Proof]:
        """What can be offered: not what only some of those can show who have passwords here."""
        having = [link.authenticator for link in self._links if Proof.PASSWORD in link.authenticator.proofs]
        common = set(SCRAM) if having else set()
        for each in having:
            common &= IKeyholder(each).offers if IKeyholder.providedBy(each) else frozenset()
        return (self.proofs - SCRAM) | common

    def authenticate(self, lookup: Lookup) -> Deferred[str]:
        """Return the user's name.

        :raises LoginRefused: (fails with it) nobody knows the user, or one refused or failed.
        """
        return Deferred.fromCoroutine(self._authenticate(lookup))

    def keys(self, lookup: Lookup) -> Deferred[StoredKeys]:
        """Return the user's keys (`IKeyholder.keys`), made up for a user whom nobody knows."""
        return Deferred.fromCoroutine(self._keys(lookup))

    async def _authenticate(self, lookup: Lookup) -> str:
        asked = self._able(lookup)
        name = await self._first(asked, lambda each: each.authenticate(lookup), str)
        if name is None:
            await self._pretend([link.authenticator for link in asked], lookup)
            raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "no authenticator knows the user"))
        return name

    async def _keys(self, lookup: Lookup) -> StoredKeys:
        asked = [link for link in self._able(lookup) if IKeyholder.providedBy(link.authenticator)]
        found = await self._first(asked, lambda each: each.keys(lookup), StoredKeys)
        if found is not None:
            return found
        decoys = [link.authenticator for link in asked if IKeyDecoy.providedBy(link.authenticator)]
        return IKeyDecoy(self._choose(decoys, lookup)).made_up(lookup) if decoys else self._made_up(lookup)

    def _able(self, lookup: Lookup) -> list[Link]:
        """Return who can check what the client shows."""
        proof = _shown(lookup).proof
        asked = [link for link in self._links if proof in link.authenticator.proofs]
        if not asked:
            raise LoginRefused(Refusal(Reason.MISCONFIGURED, f"a {proof.value} cannot be checked here"))
        return asked

    async def _first(
        self, asked: Sequence[Link], ask: Callable[[Any], Any], kind: type[_Answer]
    ) -> _Answer | None:
        """Return the first answer, None if nobody knows the user."""
        unanswered: LoginRefused | None = None
        for link in asked:
            try:
                answer = await self._ask(link, ask)
            except LoginRefused as refused:
                if not link.lenient or refused.refusal.reason is not Reason.UNAVAILABLE:
                    raise
                self._log.warn("{detail}; the next is asked", detail=refused.refusal.detail)
                unanswered = unanswered or refused
                continue
            if answer is not None:
                return _checked(link.label, answer, kind)
        if unanswered is not None:
            # It may know the user: to call the password wrong might be a lie.
            raise unanswered
        return None

    async def _ask(self, link: Link, ask: Callable[[Any], Any]) -> object:
        try:
            return await _awaited(ask(link.authenticator))
        except (LoginRefused, CancelledError):
            raise
        except BadAnswer as error:
            raise _nonsense(f"{link.label} gave nonsense: {error}") from None
        except Exception as error:
            self._log.error(
                "{authenticator} failed: {fault}", authenticator=link.label, fault=fault(Failure())
            )
            detail = f"{link.label} failed: {type(error).__name__}"
            raise LoginRefused(Refusal(Reason.UNAVAILABLE, detail)) from None

    async def _pretend(self, asked: Sequence[IAuthenticator], lookup: Lookup) -> None:
        """Take as long as a wrong password of one authenticator's users, always the same one for a name."""
        decoys = [each for each in asked if IDecoy.providedBy(each)]
        if decoys:
            await _awaited(IDecoy(self._choose(decoys, lookup)).pretend(lookup))

    def _choose(self, decoys: Sequence[IAuthenticator], lookup: Lookup) -> IAuthenticator:
        return decoys[int.from_bytes(self._drawn(lookup, 8)) % len(decoys)]

    def _made_up(self, lookup: Lookup) -> StoredKeys:
        return StoredKeys(4096, self._drawn(lookup, 16), secrets.token_bytes(32), secrets.token_bytes(32))

    def _drawn(self, lookup: Lookup, size: int) -> bytes:
        return blake2b(lookup.user.encode("utf-8"), digest_size=size, key=self._salt).digest()


def _checked(label: str, answer: object, kind: type[_Answer]) -> _Answer:
    if not isinstance(answer, kind):
        detail = f"{label} answered with a {type(answer).__name__}"
    elif isinstance(answer, str) and not _can_be_a_name(answer):
        detail = f"{label} answered with something that is no user's name"
    else:
        return answer
    raise _nonsense(detail)


def _nonsense(detail: str) -> LoginRefused:
    return LoginRefused(Refusal(Reason.MISCONFIGURED, detail))


def _can_be_a_name(name: str) -> bool:
    try:
        length = len(name.encode("utf-8"))
    except UnicodeEncodeError:  # half a surrogate pair, which JSON may hold
        return False
    return 0 < length <= MAX_NAME and not CONTROL.search(name)


def _shown(lookup: Lookup) -> Credentials:
    assert lookup.credentials is not None  # noqa: S101 - who asks shows them
    return lookup.credentials


async def _awaited(answer: Any) -> Any:
    return await answer if isinstance(answer, Awaitable) else answer
