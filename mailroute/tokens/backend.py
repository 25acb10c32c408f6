"""A backend where mailroute logs in with a token of its own."""

from __future__ import annotations

from attrs import evolve, frozen
from twisted.internet.defer import Deferred
from zope.interface import implementer

from mailroute.events import Change, Credentials, LoginOrder, LoginRefused, Method, Opened, Reason, Refusal
from mailroute.interfaces import IBackend, IMailProtocol
from mailroute.proofs import Proof
from mailroute.tokens.cache import Token, Tokens


@implementer(IBackend)
@frozen(eq=False)
class TokenBackend:
    """Gets a token for each login, and logs in with it at the backend itself, as if a client had sent it."""

    inner: IBackend
    tokens: Tokens

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.inner.name

    @property
    def method(self) -> Method:
        """How mailroute logs in: not with what the client has shown."""
        return Method.OAUTH2

    def changed(self, change: Change) -> IBackend:
        """Return this one with what a route has otherwise (`IBackend.changed`)."""
        return self.inner.changed(change)

    def open(self, protocol: IMailProtocol, order: LoginOrder) -> Deferred[Opened]:
        """Connect and log in (`IBackend.open`); where there are no logins, only connect."""
        if not protocol.logins:
            return self.inner.open(protocol, order)
        return Deferred.fromCoroutine(self._open(protocol, order))

    async def _open(self, protocol: IMailProtocol, order: LoginOrder) -> Opened:
        token = await self.tokens.get(order.user)
        try:
            return await self.inner.open(protocol, _shows(order, token))
        except LoginRefused as refused:
            if not token.known or refused.refusal.reason is not Reason.AUTHENTICATION_FAILED:
                raise _told(refused.refusal) from None
        # It may have been revoked; one that is new has not been.
        token = await self.tokens.get(order.user, refused=token.value)
        try:
            return await self.inner.open(protocol, _shows(order, token))
        except LoginRefused as refused:
            raise _told(refused.refusal) from None


def _shows(order: LoginOrder, token: Token) -> LoginOrder:
    user = order.user.encode("utf-8")
    shown = Credentials("", user, token.value.encode("ascii"), proof=Proof.TOKEN)
    return evolve(order, credentials=shown)


def _told(refusal: Refusal) -> LoginRefused:
    """Return what a backend says of our token in words that are not about the client's password."""
    if refusal.reason is Reason.AUTHENTICATION_FAILED:
        # The client has been checked already: it must not be asked for its password again.
        detail = f"the backend does not take a token that it should: {refusal.detail}"
        return LoginRefused(Refusal(Reason.MISCONFIGURED, detail))
    return LoginRefused(evolve(refusal, reply=None, challenge=None))
