"""Every plug point of mailroute on one page: read this first.

A session goes through them in this order::

    IMailProtocol ──makes──▶ IDialog    who is calling?
    ICredentialsChecker (twisted.cred)  may they?            (optional)
    IRouter                             where do they live?
    IMailProtocol ──makes──▶ ILogin     log in there
    mailroute.splice                    join both connections

A dialog and a login do no I/O: bytes go in, the values of `mailroute.events`
come out.  Whoever implements one owns no socket, no timer and no thread.
"""

# Interfaces declare methods without "self", as zope.interface wants it.
# ruff: noqa: N805

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ITransport
from zope.interface import Attribute, Interface

from mailroute.events import (
    Client,
    Credentials,
    DialogEvent,
    DialogTerms,
    Farewell,
    LoggedIn,
    LoginEvent,
    LoginOrder,
    LoginTerms,
    Lookup,
    Method,
    Opened,
    Refusal,
    Route,
)


class IDialog(Interface):
    """The client's side of a protocol, from the greeting to the login.

    A dialog that has said `Attempt` keeps what it receives until `accept` or
    `reject` is called: bytes that a client pipelines behind its login are
    never parsed before the login's end is known, and never lost.
    """

    def greet() -> list[DialogEvent]:
        """Say the first words, once the connection is ready (TLS included)."""

    def receive(data: bytes) -> list[DialogEvent]:
        """Take bytes from the client.  Any bytes: never raises, never keeps more than a bound."""

    def secured() -> list[DialogEvent]:
        """TLS asked for with `StartTLS` is on: forget what was said before it."""

    def accept(outcome: LoggedIn) -> bytes:
        """The login succeeded: return the answer to the client's login command."""

    def reject(refusal: Refusal) -> list[DialogEvent]:
        """The login failed: answer it, and go on with the bytes kept."""

    def farewell(why: Farewell) -> bytes:
        """Return the polite last words for a connection that mailroute ends."""

    def rest() -> bytes:
        """Return, and forget, the bytes received behind an accepted login."""


class ILogin(Interface):
    """The backend's side of a protocol, from its greeting to its OK.

    It may begin before anybody knows for whom: without an order it goes as far
    as it can (greeting, TLS, capabilities), says `Ready` once, and waits.  With
    an order it never says `Ready`, and goes on at once.

    Ends with exactly one `LoggedIn` or `Refused`, also while it waits, and is
    not called after it.
    """

    def open(order: LoginOrder) -> list[LoginEvent]:
        """Log in at this account; called once, before ``start`` or at any time after it."""

    def start() -> list[LoginEvent]:
        """Begin, once the connection is ready (TLS from the first byte included)."""

    def receive(data: bytes) -> list[LoginEvent]:
        """Take bytes from the backend.  Any bytes: never raises, never keeps more than a bound."""

    def secured() -> list[LoginEvent]:
        """TLS asked for with `StartTLS` is on: forget what was said before it."""

    def doing() -> str:
        """Return what it waits for, such as "waiting for the greeting", for the log."""


class IMailProtocol(Interface):
    """One protocol that mailroute routes.

    To add one, provide this from a Twisted plugin (``twisted/plugins/*.py``),
    or give the object as a listener's ``protocol`` from Python.
    """

    name: str = Attribute("What the configuration calls it, for example ``imap``.")
    alpn: tuple[bytes, ...] = Attribute(
        "The ALPN protocol ids that a client may ask for (RFC 7301); any other is refused."
    )
    mechanisms: tuple[str, ...] = Attribute("The SASL mechanisms that its dialog understands.")
    logins: bool = Attribute(
        "Whether its clients say who they are.  If not, its dialog attempts as `mailroute.events.NOBODY`, "
        "and a listener says to which backend that leads."
    )
    starttls: bool = Attribute("Whether TLS can begin in the middle of it.")

    def dialog(terms: DialogTerms) -> IDialog:
        """Make the dialog for one client."""

    def login(terms: LoginTerms) -> ILogin:
        """Make the login for one connection to a backend."""


class IRouter(Interface):
    """Knows where accounts live.

    A router that also provides `twisted.application.service.IService` is
    started and stopped with the program.
    """

    def route(lookup: Lookup) -> Route | Deferred[Route | None] | None:
        """Return the route, ``None`` for a user it does not know, or a Deferred or coroutine of either.

        :raises mailroute.events.LoginRefused: (or fails with it) the user is
            known and may not log in, or the answer cannot be had now.
        """


class IRouteSource(Interface):
    """A kind of ``[[route]]`` block.

    To add one, provide this from a Twisted plugin (``twisted/plugins/*.py``).
    """

    name: str = Attribute("What ``source = …`` says in the configuration, for example ``table``.")

    def router(options: Mapping[str, object], context: object) -> IRouter:
        """Make a router from the block's keys.

        :param options: the block's keys and values, less ``source``.
        :param context: a `mailroute.routers.SourceContext`.
        :raises mailroute.routers.BadOption: names the key and what is wrong with it.
        """


class IBackend(Interface):
    """A place where accounts live."""

    name: str = Attribute("What the configuration calls it.")
    method: Method = Attribute("How mailroute logs in there.")

    def open(
        protocol: IMailProtocol, credentials: Credentials, user: str, client: Client, seam: object
    ) -> Deferred[Opened]:
        """Connect and log in.  Cancelling the Deferred closes the connection.

        :param user: the account's name there.
        :param seam: the dialog's message to the login, not to be looked at.
        :raises mailroute.events.LoginRefused: (fails with it) whatever goes wrong.
        """


class IClientLeg(Interface):
    """A client's connection, as its session sees it."""

    def write(data: bytes) -> None:
        """Send these bytes to the client."""

    def start_tls() -> None:
        """Begin the TLS handshake; the session's ``secured`` is called at its end."""

    def pause() -> None:
        """Stop reading; what has been read already may still arrive."""

    def resume() -> None:
        """Read again; if the client has shut its writing side, say so again."""

    def close() -> None:
        """Close once everything is written, or soon in any case."""

    def dialling() -> None:
        """Make room for the backend's connection: it is dialled now."""

    def client() -> Client:
        """Return what is known of the client now."""

    def hand_over() -> tuple[ITransport, IDeparture]:
        """Return the transport for the splice, and what takes the leg's place; the leg is not used again."""


class IDeparture(Interface):
    """What is left of a client's connection that has been spliced."""

    def close() -> None:
        """Count the client out: the splice has ended."""
