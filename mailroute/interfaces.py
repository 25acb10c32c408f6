"""Every plug point of mailroute on one page: read this first.

A session goes through them in this order::

    IMailProtocol ──makes──▶ IDialog    who is calling?
    IAuthenticator                      may they?            (optional)
    IRouter                             where do they live?
    IMailProtocol ──makes──▶ ILogin     log in there
    mailroute.splice                    join both connections

Where mail is delivered there is neither login nor splice, and the recipients
take the place of the user::

    IDeliveryProtocol ──makes──▶ IReceiver    for whom?
    IRouter                                   where do they live?
    IDeliveryProtocol ──makes──▶ ILogin       ready to take mail there?
    IDeliveryProtocol ──makes──▶ ISender      pass the message on

A dialog and a login, a receiver and a sender do no I/O: bytes go in, the values of `mailroute.events`
come out.  Whoever implements one owns no socket, no timer and no thread.
"""

# Interfaces declare methods without "self", as zope.interface wants it.
# ruff: noqa: N805

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from mailroute.envelope import (
    Begin,
    Chunk,
    DeliveryTerms,
    End,
    MailFrom,
    Outcome,
    Piece,
    RcptTo,
    ReceiverEvent,
    SenderEvent,
)
from mailroute.events import (
    Change,
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
from mailroute.proofs import Proof
from mailroute.sights import Sight
from mailroute.wire.scram import StoredKeys


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

    def certified() -> None:
        """The client has shown a certificate in its TLS handshake; called before ``greet`` or ``secured``."""

    def bound(binding: bytes) -> None:
        """TLS has channel binding (tls-exporter, RFC 9266); called before ``greet`` or ``secured``."""

    def keys(keys: StoredKeys) -> list[DialogEvent]:
        """Go on with the keys that `KeysWanted` asks for; those of an unknown user are made up."""

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
    or give the object as a listener's ``protocol`` from Python.  What its clients
    do decides which of the two that follow it is.
    """

    name: str = Attribute("What the configuration calls it, for example ``imap``.")
    alpn: tuple[bytes, ...] = Attribute(
        "The ALPN protocol ids that a client may ask for (RFC 7301); any other is refused."
    )
    mechanisms: tuple[str, ...] = Attribute("The SASL mechanisms that its dialog understands.")
    logins: bool = Attribute(
        "Whether its clients say who they are.  If not, logins at backends are those of "
        "`mailroute.events.NOBODY`; unless its messages are routed (`IDeliveryProtocol`), a listener "
        "says to which backend that leads."
    )
    password_command: bool = Attribute("Whether a client can log in with name and password without SASL.")
    starttls: bool = Attribute("Whether TLS can begin in the middle of it.")

    def check_capability(word: str) -> None:
        """Check one of the words that a listener is to announce besides what mailroute does by itself.

        :raises ValueError: it cannot be announced; the text says so of the word, with reason and remedy.
        """

    def login(terms: LoginTerms) -> ILogin:
        """Make the login for one connection to a backend."""


class IProbe(ILogin):
    """A login that looks at a backend and logs in nowhere: it ends with `LoggedIn` when it has seen all.

    It begins TLS if the terms ask for it and the backend offers it.
    """

    def seen() -> list[Sight]:
        """Return, and forget, what it has seen since the last call."""


class IProbedProtocol(IMailProtocol):
    """A protocol whose backends ``mailroute probe`` can ask; of others it sees the connection and TLS."""

    port: int = Attribute("Where backends usually serve it, in the clear at first.")
    tls_port: int | None = Attribute("Where they usually serve it with TLS from the first byte.")

    def probe(terms: LoginTerms) -> IProbe:
        """Make what looks at one backend, over one connection."""


class ILoginProtocol(IMailProtocol):
    """A protocol in which a client logs in, and is then joined with its backend."""

    def dialog(terms: DialogTerms) -> IDialog:
        """Make the dialog for one client."""


class INamedProtocol(IMailProtocol):
    """A protocol in which mailroute tells clients its host's name: a listener's ``host_name``."""


class IDeliveryProtocol(INamedProtocol):
    """A protocol in which a client delivers messages, each to any number of backends.

    Its `login` is done as `mailroute.events.NOBODY`, once for each backend of a
    session; the ``welcome`` goes to `sender`, and what `IReceiver.seam` returns to the login.
    """

    splits: bool = Attribute(
        "Whether each recipient of a message gets a reply of its own, so that they may live on several "
        "backends.  If not, the listener's ``split`` decides."
    )

    def receiver(terms: DeliveryTerms) -> IReceiver:
        """Make the client's half for one client."""

    def sender(welcome: object) -> ISender:
        """Make the backend's half for one connection that is ready."""


class IReceiver(Interface):
    """The client's side of a delivery, from its greeting to its end.

    One that has said `RcptTo`, `Begin` or `End` keeps what it receives until it
    is answered: with `answer`, or where a message may come with `proceed`, and
    where one has ended with `finish`.
    """

    def greet() -> list[ReceiverEvent]:
        """Say the first words, once the connection is ready (TLS included)."""

    def receive(data: bytes) -> list[ReceiverEvent]:
        """Take bytes from the client.  Any bytes: never raises, never keeps more than a bound."""

    def secured() -> list[ReceiverEvent]:
        """TLS asked for with `StartTLS` is on: forget what was said before it."""

    def answer(outcome: Outcome) -> list[ReceiverEvent]:
        """Tell what has become of a recipient, or of a chunk that was not the last."""

    def proceed() -> list[ReceiverEvent]:
        """Some backend is ready for the message: have it sent."""

    def finish(outcomes: tuple[Outcome, ...]) -> list[ReceiverEvent]:
        """Tell what has become of the message: for each accepted recipient, in order.

        Instead of `proceed`, that it cannot be sent.
        """

    def farewell(why: Farewell) -> bytes:
        """Return the polite last words for a connection that mailroute ends."""

    def seam() -> object:
        """Return what logins at backends have to know of the client."""


class ISender(Interface):
    """A backend's side of a delivery, once its connection is ready.

    It is asked one thing after the other, and answers each: a recipient, the
    message's begin and each chunk's end with one `Answered`, the message's end
    with one for each accepted recipient.
    """

    def recipient(mail: MailFrom, recipient: RcptTo) -> list[SenderEvent]:
        """Offer a recipient, and before the first one of a transaction its sender."""

    def begin(event: Begin) -> list[SenderEvent]:
        """Ask for leave to send the message."""

    def chunk(event: Chunk) -> list[SenderEvent]:
        """Begin a chunk."""

    def piece(event: Piece) -> list[SenderEvent]:
        """Pass a piece of the message on."""

    def end(event: End) -> list[SenderEvent]:
        """End a chunk, or the message."""

    def reset() -> list[SenderEvent]:
        """Call the transaction off; nothing is answered."""

    def quit() -> list[SenderEvent]:
        """Say the last words."""

    def receive(data: bytes) -> list[SenderEvent]:
        """Take bytes from the backend.  Any bytes: never raises, never keeps more than a bound."""

    def doing() -> str:
        """Return what it waits for, such as "waiting for the answer to RCPT", for the log."""


class IAuthenticator(Interface):
    """Knows whether users are who they say; it may be an `IService`, as a router."""

    proofs: frozenset[Proof] = Attribute("What it can check; it is asked for nothing else.")

    def authenticate(lookup: Lookup) -> str | Awaitable[str | None] | None:
        """Return the user's name, ``None`` for a user it does not know, or a Deferred or coroutine of either.

        ``lookup.credentials`` is what the client shows; ``lookup.user`` is empty where that says by itself
        whose it is.  The name returned is normalised, and the one that is routed.

        :raises mailroute.events.LoginRefused: (or fails with it) the credentials are wrong, or the
            answer cannot be had now (`mailroute.events.Reason.UNAVAILABLE`).
        """


class IKeyholder(IAuthenticator):
    """An authenticator that has stored keys of passwords, for clients that show that they know theirs."""

    offers: frozenset[Proof] = Attribute("What of its `proofs` it is good for each of its users.")

    def keys(lookup: Lookup) -> Awaitable[StoredKeys | None]:
        """Return the user's keys for the lookup's mechanism, ``None`` for a user it does not know.

        A user who has none gets some that are made up, always the same ones.

        :raises mailroute.events.LoginRefused: (fails with it) they cannot be had now.
        """


class IAuthenticateSource(Interface):
    """A kind of ``[[authenticate]]`` block, which a Twisted plugin may add, as an `IRouteSource`."""

    name: str = Attribute("What ``source = …`` says in the configuration, for example ``passwd-file``.")

    def authenticator(options: Mapping[str, object], context: object) -> IAuthenticator:
        """Make one from the block's keys, less ``source`` and ``on_error``; as `IRouteSource.router`."""


class IRouter(Interface):
    """Knows where accounts live.

    A router that also provides `twisted.application.service.IService` is
    started and stopped with the program.  One that may answer with a route that
    is ``proven`` says so by an attribute ``proves`` that is true.
    """

    def route(lookup: Lookup) -> Route | Deferred[Route | None] | None:
        """Return the route, ``None`` for a user it does not know, or a Deferred or coroutine of either.

        :raises mailroute.events.LoginRefused: (or fails with it) the user is
            known and may not log in, or the answer cannot be had now.
        """


class IKeepingRouter(IRouter):
    """A router that keeps answers for a while."""

    def forget(lookup: Lookup) -> None:
        """Have the source asked next time, whatever is known."""


class IRouteSource(Interface):
    """A kind of ``[[route]]`` block.

    To add one, provide this from a Twisted plugin (``twisted/plugins/*.py``).
    """

    name: str = Attribute("What ``source = …`` says in the configuration, for example ``table``.")

    def router(options: Mapping[str, object], context: object) -> IRouter:
        """Make a router from the block's keys.

        :param options: the block's keys and values, less ``source``.
        :param context: a `mailroute.sources.SourceContext`.
        :raises mailroute.sources.BadOption: names the key and what is wrong with it.
        """


class IBackend(Interface):
    """A place where accounts live."""

    name: str = Attribute("What the configuration calls it.")
    method: Method = Attribute("How mailroute logs in there.")

    def open(protocol: IMailProtocol, order: LoginOrder) -> Deferred[Opened]:
        """Connect and log in.  Cancelling the Deferred closes the connection.

        :raises mailroute.events.LoginRefused: (fails with it) whatever goes wrong.
        """

    def changed(change: Change) -> IBackend:
        """Return this one with what a route has otherwise; the same for an equal change, as long as it lasts.

        :raises ValueError: it cannot be like that; the text says why.
        """
