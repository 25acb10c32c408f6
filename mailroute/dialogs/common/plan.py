"""The best way to log in that a backend offers, as far as SASL goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from attrs import define, evolve, field

from mailroute.events import Credentials, LoginOrder, LoginTerms, Method
from mailroute.proofs import Proof
from mailroute.wire import sasl


class NoWay(Exception):
    """A login cannot be made at this backend; the text is for the log."""


@define
class Choice:
    """A mechanism chosen to log in at a backend: its name, and its messages as they are.

    ``secrets`` is that of the plan that is made of it.  ``failure_reply``
    answers the challenge with which an OAuth server explains its refusal
    (RFC 7628 section 3.2.3); None: there is none.
    """

    mechanism: bytes
    messages: tuple[bytes, ...] = field(repr=False)
    secrets: Callable[[], tuple[bytes, ...]] = field(repr=False)
    failure_reply: bytes | None = None


@define
class Plan:
    """What to send: the first chunk at once, each other when the backend asks for it.

    ``secrets`` returns the forms in which the secret goes over the wire, so that
    they can be taken out of what the backend says; few logins need them.
    ``failure_reply`` answers a challenge that comes after everything has been
    sent; None: there is none.
    """

    chunks: tuple[bytes, ...] = field(repr=False)
    secrets: Callable[[], tuple[bytes, ...]] = field(repr=False)
    failure_reply: bytes | None = None


def choose(terms: LoginTerms, order: LoginOrder, offered: frozenset[bytes]) -> Choice | None:
    """Choose the mechanism, and make its messages.

    :param offered: the backend's mechanisms, in upper case.
    :return: None if it offers no mechanism for this password: that may go by a command of the protocol's own.
    :raises NoWay: there is neither.
    """
    credentials = order.credentials
    user = order.user.encode("utf-8")
    if terms.method is Method.MASTER:
        choice = _master(terms, order, offered)
        if choice is not None:
            return choice
    if not credentials.proof.replayable:
        raise NoWay(f"the client has shown a {credentials.proof.value}, which cannot be shown to a backend")
    if credentials.proof is Proof.TOKEN:
        return _token(credentials if credentials.mechanism else _worded(credentials, user, offered), offered)
    if credentials.authorize_as:
        if b"PLAIN" not in offered:
            raise NoWay("the client authorizes as another user, which needs the mechanism PLAIN")
        return _plain(credentials.user, credentials.secret, user)
    if b"PLAIN" in offered:
        return _plain(user, credentials.secret, b"")
    if b"LOGIN" in offered:
        return Choice(b"LOGIN", (user, credentials.secret), partial(forms, credentials.secret))
    return None


def _master(terms: LoginTerms, order: LoginOrder, offered: frozenset[bytes]) -> Choice | None:
    """Return the choice for a master; None if both names are one, which has a password as any other."""
    if terms.master is None:
        raise NoWay("no master user is configured")
    if terms.master_separator:
        if order.user.count(terms.master_separator) != 1:
            raise NoWay("the user's name has the separator of master logins in it")
        return None
    if b"PLAIN" not in offered:
        raise NoWay("a master login needs the mechanism PLAIN, which the backend does not offer")
    return _plain(terms.master.user, terms.master.secret, order.user.encode("utf-8"))


def as_master(terms: LoginTerms, order: LoginOrder) -> LoginOrder:
    """Return the order under the name that has both the user's and the master's, where that is the way."""
    master, separator = terms.master, terms.master_separator
    if terms.method is not Method.MASTER or master is None or not separator:
        return order
    name = f"{order.user}{separator}{master.user.decode('utf-8')}"
    return evolve(order, user=name, credentials=Credentials("", name.encode("utf-8"), master.secret))


def lines(choice: Choice, command: bytes, initial: int) -> Plan:
    """Return the plan where each message goes as a line of base64.

    :param command: what begins the exchange, such as ``AUTH``; the mechanism's name follows it.
    :param initial: bytes of base64 that may stand on the command's own line (an initial response).
    """
    messages, failure_reply = choice.messages, choice.failure_reply
    if failure_reply is not None:
        failure_reply = _line(failure_reply)
    if initial and len(messages) == 1:
        encoded = sasl.encode(messages[0])
        if len(encoded) <= initial:
            first = b"%s %s %s\r\n" % (command, choice.mechanism, encoded)
            return Plan((first,), choice.secrets, failure_reply)
    first = b"%s %s\r\n" % (command, choice.mechanism)
    return Plan((first, *map(_line, messages)), choice.secrets, failure_reply)


def forms(password: bytes, message: bytes = b"") -> tuple[bytes, ...]:
    """Return the forms that a password takes on the wire; ``message`` is PLAIN's, if that is used."""
    quoted = password.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return (password, sasl.encode(password), quoted, *([sasl.encode(message)] if message else ()))


def _token_forms(message: bytes) -> tuple[bytes, ...]:
    fields = message.split(b"\1")
    tokens = [each.rpartition(b" ")[2] for each in fields if b" " in each]
    return (message, sasl.encode(message), *fields, *tokens)


def _line(message: bytes) -> bytes:
    return (sasl.encode(message) if message else b"") + b"\r\n"


def _plain(user: bytes, password: bytes, account: bytes) -> Choice:
    message = sasl.plain(user, password, account)
    return Choice(b"PLAIN", (message,), partial(forms, password, message))


_BEARERS = {"OAUTHBEARER": sasl.oauthbearer, "XOAUTH2": sasl.xoauth2}
"""What takes a bare token, the standard's own first."""


def _worded(credentials: Credentials, user: bytes, offered: frozenset[bytes]) -> Credentials:
    """Put a bare token into the message of the best mechanism that there is for it."""
    for name, message in _BEARERS.items():
        if name.encode("ascii") in offered:
            try:
                return evolve(credentials, mechanism=name, secret=message(user, credentials.secret))
            except ValueError as error:
                raise NoWay(str(error)) from None
    raise NoWay(f"a token needs one of the mechanisms {', '.join(_BEARERS)}, and the backend offers neither")


def _token(credentials: Credentials, offered: frozenset[bytes]) -> Choice:
    name = credentials.mechanism
    mechanism = name.encode("ascii")
    if mechanism not in offered:
        raise NoWay(f"the client logs in with {name}, which the backend does not offer")
    message = credentials.secret
    failure_reply = sasl.MECHANISMS[name].failure_reply
    return Choice(mechanism, (message,), partial(_token_forms, message), failure_reply)
