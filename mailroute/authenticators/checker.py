"""The ``checker`` source: passwords are checked by what twisted.cred has, or a plugin for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.cred.checkers import (
    FilePasswordDB,
    ICredentialsChecker,
    InMemoryUsernamePasswordDatabaseDontUse,
)
from twisted.cred.credentials import IUsernamePassword, UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.strcred import InvalidAuthType, findCheckerFactories, findCheckerFactory
from twisted.internet.defer import maybeDeferred
from zope.interface import implementer

from mailroute.events import LoginRefused, Lookup, Reason, Refusal
from mailroute.interfaces import IAuthenticateSource, IAuthenticator
from mailroute.proofs import Proof
from mailroute.sources import BadOption, Copies, InThread, SourceContext, only, text
from mailroute.wording import did_you_mean


@implementer(IAuthenticator)
class CheckerAuthenticator:
    """Asks a checker for `IUsernamePassword`; the avatar id that it gives is the name.

    A checker does not say whether it is the user or the password that it
    refuses.  Of the two that Twisted brings along we can see which; every other
    one's word is final.

    :param in_thread: calls a function outside the reactor's thread.
    """

    proofs = frozenset({Proof.PASSWORD})

    def __init__(self, checker: ICredentialsChecker, in_thread: InThread) -> None:
        self._checker: Any = checker
        self._in_thread = in_thread

    async def authenticate(self, lookup: Lookup) -> str | None:
        """Return the name that the checker gives (`IAuthenticator.authenticate`)."""
        assert lookup.credentials is not None  # noqa: S101 - the chain asks with what a client has shown
        user = lookup.user.encode("utf-8")
        try:
            avatar = await self._asked(UsernamePassword(user, lookup.credentials.secret))
        except UnauthorizedLogin:
            if await self._knows(user):
                raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "the checker refused")) from None
            return None
        return _name(avatar)

    async def _asked(self, credentials: UsernamePassword) -> object:
        if isinstance(self._checker, FilePasswordDB):
            # It reads its whole file for each login, which must not hold everybody up.
            # In a box, because what a thread returns must not be a Deferred.
            (asked,) = await self._in_thread(lambda: [self._checker.requestAvatarId(credentials)])
        else:
            asked = maybeDeferred(self._checker.requestAvatarId, credentials)
        avatar: object = await asked
        return avatar

    async def _knows(self, user: bytes) -> bool:
        if isinstance(self._checker, FilePasswordDB):
            return await self._in_thread(lambda: self._is_in_file(user))
        if isinstance(self._checker, InMemoryUsernamePasswordDatabaseDontUse):
            return user in self._checker.users
        return True

    def _is_in_file(self, user: bytes) -> bool:
        try:
            self._checker.getUser(user)
        except KeyError:
            return False
        return True

    def __str__(self) -> str:
        if isinstance(self._checker, FilePasswordDB):
            return f"passwords are checked by {self._checker.filename}"
        return f"passwords are checked by {type(self._checker).__name__}"


def _name(avatar: object) -> str:
    if isinstance(avatar, bytes):
        avatar = avatar.decode("utf-8")
    if not isinstance(avatar, str) or not avatar:
        raise LoginRefused(Refusal(Reason.AUTHENTICATION_FAILED, "the checker gave no name"))
    return avatar


def checks_passwords(checker: Any) -> ICredentialsChecker:
    """Return the checker, if it takes names and passwords.

    :raises ValueError: it does not.
    """
    if not ICredentialsChecker.providedBy(checker):
        raise ValueError(f"a {type(checker).__name__} is no ICredentialsChecker")
    if not any(found.isOrExtends(IUsernamePassword) for found in checker.credentialInterfaces):
        raise ValueError("cannot check passwords (IUsernamePassword): name another checker")
    found: ICredentialsChecker = checker
    return found


def make_checker(description: str, folder: Path, copies: Copies | None) -> ICredentialsChecker:
    """Make a checker from a strcred string.

    :raises ValueError: says why not; what may be a password in the string is not repeated.
    """
    kind, _, argument = description.partition(":")
    if kind == "file" and argument:
        argument = str(folder / argument)
        _check_file(Path(argument), copies)
    try:
        checker = findCheckerFactory(kind).generateChecker(argument)
    except InvalidAuthType:
        known = sorted(factory.authType for factory in findCheckerFactories())
        raise ValueError(f'there is no checker "{kind}"{did_you_mean(kind, known)}') from None
    except Exception as error:
        raise ValueError(
            f'the checker "{kind}" does not take what follows it: {type(error).__name__}'
        ) from None
    if isinstance(checker, InMemoryUsernamePasswordDatabaseDontUse):
        # Twisted keeps these names and passwords as text, and compares them with a client's bytes.
        users: dict[Any, Any] = dict(checker.users)
        checker.users = {name.encode(): password.encode() for name, password in users.items()}
    return checks_passwords(checker)


def _check_file(path: Path, copies: Copies | None) -> None:
    """Read the file once: the checker itself would only fail once somebody logs in."""
    try:
        _ = path.read_bytes() if copies is None else copies.read(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None


@implementer(IAuthenticateSource)
class CheckerSource:
    """Makes a `CheckerAuthenticator` from the key ``checker``."""

    name = "checker"

    def authenticator(self, options: Mapping[str, object], context: object) -> IAuthenticator:
        """Make the authenticator; see `IAuthenticateSource.authenticator`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        only(options, ("checker",))
        given = options.get("checker")
        try:
            if given is None or isinstance(given, str):
                checker = make_checker(text(options, "checker"), context.folder, context.copies)
            else:
                checker = checks_passwords(given)
        except ValueError as error:
            raise BadOption("checker", str(error)) from None
        return CheckerAuthenticator(checker, context.in_thread)
