"""Authenticators in order: the first that knows a user decides."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Coroutine, Sequence
from hashlib import blake2b
from typing import Any

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from zope.interface import implementer

from mailroute.events import Credentials, LoginRefused, Lookup, Reason, Refusal
from mailroute.interfaces import IAuthenticator
from mailroute.proofs import Proof
from mailroute.sources import CONTROL


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


@implementer(IAuthenticator)
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

    def authenticate(self, lookup: Lookup) -> Deferred[str]:
        """Return the user's name.

        :raises LoginRefused: (fails with it) nobody knows the user, or one refused or failed.
        """
        return Deferred.fromCoroutine(self._authenticate(lookup))

    async def _authenticate(self, lookup: Lookup) -> str:
        proof = _shown(lookup).proof
        asked = [link for link in self._links if proof in link.authenticator.proofs]
        if not asked:
            raise LoginRefused(Refusal(Reason.MISCONFIGURED, f"a {proof.value} cannot be checked here"))
        unanswered: LoginRefused | None = None
        for link in asked:
            try:
                name = await self._ask(link, lookup)
            except LoginRefused as refused:
                if not link.lenient or refused.refusal.reason is not Reason.UNAVAILABLE:
                    raise
                self._log.warn("{detail}; the next is asked", detail=refused.refusal.detail)
                unanswered = unanswered or refused
                continue
            if name is not None:
                return name
        if unanswered is not None:
            # It may know the user: to call the password wrong might be a lie.
            raise unanswered
        await self._pretend([link.authenticator for link in asked], lookup)
        raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "no authenticator knows the user"))

    async def _ask(self, link: Link, lookup: Lookup) -> str | None:
        try:
            answer = await _awaited(link.authenticator.authenticate(lookup))
        except (LoginRefused, CancelledError):
            raise
        except Exception as error:
            self._log.failure("{authenticator} failed", authenticator=link.label)
            detail = f"{link.label} failed: {type(error).__name__}"
            raise LoginRefused(Refusal(Reason.UNAVAILABLE, detail)) from None
        if answer is None:
            return None
        if not isinstance(answer, str) or not answer or CONTROL.search(answer):
            detail = f"{link.label} answered with something that is no user's name"
            raise LoginRefused(Refusal(Reason.MISCONFIGURED, detail))
        return answer

    async def _pretend(self, asked: Sequence[IAuthenticator], lookup: Lookup) -> None:
        """Take as long as a wrong password of one authenticator's users, always the same one for a name."""
        decoys = [each for each in asked if IDecoy.providedBy(each)]
        if decoys:
            digest = blake2b(lookup.user.encode("utf-8"), digest_size=8, key=self._salt).digest()
            await _awaited(IDecoy(decoys[int.from_bytes(digest) % len(decoys)]).pretend(lookup))


def _shown(lookup: Lookup) -> Credentials:
    assert lookup.credentials is not None  # noqa: S101 - who asks shows them
    return lookup.credentials


async def _awaited(answer: Any) -> Any:
    if isinstance(answer, Deferred | Coroutine | Awaitable):
        return await answer
    return answer
