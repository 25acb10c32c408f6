"""The frozen values that pass from room to room.

Nothing here does anything.  A dialog says what happened with the values of
the first part, a login with those of the second; the rest describes who is
calling, where the account lives and why somebody was turned away.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from attrs import define, field, frozen
from twisted.internet.interfaces import ITransport

from mailroute.callers import Address as Address
from mailroute.callers import Client as Client
from mailroute.callers import Mailing as Mailing
from mailroute.proofs import Proof

if TYPE_CHECKING:
    from attrs import frozen as passing
else:
    # For values that every session makes anew.  To attrs "frozen" is to set each field by a
    # call, which takes three times as long: so it is the type checker that holds them frozen.
    passing = partial(define, unsafe_hash=True)

# --- who is calling ---------------------------------------------------------


@passing
class Credentials:
    """What a client sent to say who it is; its repr does not show the secret.

    ``user`` is the authentication identity as it was sent, ``authorize_as`` the account to open if that is
    another one (the SASL authorization identity, RFC 4422 section 3.4.1).  ``secret`` is the password, or for
    a token the whole SASL message as it came.  A token without a mechanism is one of mailroute's own: the
    bare token, for any mechanism that takes one.
    """

    mechanism: str
    user: bytes
    secret: bytes = field(repr=False)
    authorize_as: bytes = b""
    proof: Proof = Proof.PASSWORD

    @property
    def account(self) -> bytes:
        """The account that the client wants to open."""
        return self.authorize_as or self.user


NOBODY = Credentials("", b"", b"")
"""What a client shows in a protocol without logins: no name, and nothing to check."""


# --- where the account lives ------------------------------------------------


@passing
class Lookup:
    """The question that a router answers; ``user`` is normalised.

    ``credentials``: what the client shows, for a source that checks it; None where nobody logs in.
    ``attempt``: which of the logins of its connection this is, from 1.  ``note`` takes what a person who asks
    where an account lives may like to know of the way to the answer; None: nobody does.  ``mailing``: the
    message that is to be delivered to the user; None where none is.
    """

    user: str
    protocol: str
    client: Client
    credentials: Credentials | None = None
    attempt: int = 1
    note: Callable[[str], None] | None = field(default=None, eq=False, repr=False)
    mailing: Mailing | None = None


class Security(enum.Enum):
    """How a connection is protected; the values are the configuration's words."""

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


class Method(enum.Enum):
    """How mailroute logs in at a backend; the values are the configuration's words."""

    REPLAY = "replay"
    MASTER = "master"
    NONE = "none"
    OAUTH2 = "oauth2"


class Identity(enum.Enum):
    """How a backend learns the client's address; the values are the configuration's words."""

    NATIVE = "native"
    PROXY_V1 = "proxy-v1"
    PROXY_V2 = "proxy-v2"
    NONE = "none"


@frozen
class Change:
    """What is otherwise for one account than its backend's block says; None: nothing.

    ``host`` and ``port`` are where to connect instead, for every protocol that the block serves.
    """

    host: str | None = None
    port: int | None = None
    login: Method | None = None
    identity: Identity | None = None
    security: Security | None = None


@frozen
class Route:
    """The answer: where an account lives, and how to get in there.

    ``backend``: the backend's name.  ``name``: the user's name there, if it differs.  ``others``: backends to
    try in order if that one does not answer.  ``password``: what to log in with there, instead of what the
    client sent; ``master``: in whose name, if not the user's own (SASL PLAIN with the user as the
    authorization identity).  ``proven``: the source has checked the lookup's credentials, and they are the
    user's.  ``change``: what the backend's block has otherwise.  ``forward``: keys and values to hand to the
    backend with the client's identity.  ``user``: the source's own name for the user, if it is another one.
    """

    backend: str
    name: str | None = None
    others: tuple[str, ...] = ()
    password: bytes | None = field(default=None, repr=False)
    master: str | None = None
    proven: bool = False
    change: Change | None = None
    forward: tuple[tuple[str, str], ...] = ()
    user: str | None = None

    def credentials(self, user: str) -> Credentials | None:
        """Return what to log in with as this user; None: with what the client sent."""
        if self.password is None:
            return None
        if self.master is None:
            return Credentials("PLAIN", user.encode(), self.password)
        return Credentials("PLAIN", self.master.encode(), self.password, user.encode())


# --- why somebody is turned away --------------------------------------------


class Reason(enum.Enum):
    """Why a login failed, in no protocol's words; each dialog has its own reply for each."""

    AUTHENTICATION_FAILED = "authentication failed"
    AUTHORIZATION_FAILED = "authorization failed"
    UNAVAILABLE = "backend unavailable"
    MISCONFIGURED = "misconfigured"
    LIMIT = "limit reached"
    EXPIRED = "password expired"
    CONTACT_ADMIN = "account disabled"
    PRIVACY_REQUIRED = "TLS required"


@frozen
class Refusal:
    """Why a login failed.

    ``detail`` is for the log alone.  ``reply`` is the backend's own reply, in
    the words of its protocol, where the client may see it; ``challenge`` an
    OAuth server's error document (RFC 7628 section 3.2.2) for the client.
    ``unreached``: the backend has not said a word, so that another one may be tried.
    ``wait``: seconds for which whoever refuses wants the client to wait for its answer, at the least;
    ``final``: after that the client is to be sent away, however many logins may fail.
    """

    reason: Reason
    detail: str
    reply: bytes | None = None
    challenge: bytes | None = None
    unreached: bool = False
    wait: float = 0
    final: bool = False


class LoginRefused(Exception):
    """A login came to nothing; ``refusal`` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.reason.value}: {refusal.detail}")
        self.refusal = refusal


class Farewell(enum.Enum):
    """Why mailroute ends a connection that is not logged in."""

    TOO_MANY = "too many connections"
    TOO_MANY_FROM_ADDRESS = "too many connections from this address"
    NO_DESCRIPTORS = "no descriptor left"
    TOO_MANY_COMMANDS = "too many commands before login"
    TOO_MANY_BAD_COMMANDS = "too many bad commands"
    TOO_MANY_FAILURES = "too many failed logins"
    TOO_MANY_MESSAGES = "too many messages"
    TOO_LONG = "line or literal too long"
    LOGIN_TIMEOUT = "no login in time"
    INJECTION = "bytes behind STARTTLS"
    NOT_THIS_PROTOCOL = "another protocol's request"
    PROXY_HEADER = "a PROXY header, and its address is not in this listener's proxy_from"
    BAD_LINE_ENDS = "a message with lines that do not end with CR LF"
    SHUTDOWN = "shutting down"
    LOGGED_OUT = "logged out"
    FAULT = "internal error"


# --- what a dialog or a login says ------------------------------------------


@passing
class Send:
    """Write these bytes to the peer; they may hold a secret, which the repr does not show."""

    data: bytes = field(repr=False)


@frozen
class StartTLS:
    """Begin the TLS handshake; everything that follows is inside TLS."""


@passing
class Attempt:
    """The client wants to log in; in a protocol without logins, that it is there, as `NOBODY`.

    ``seam`` is the dialog's message to the login of the same protocol (what
    the client asked for before); nobody in between looks at it.
    """

    credentials: Credentials
    seam: object = None


@passing
class KeysWanted:
    """The client wants to show that it knows a password, whose stored keys are wanted (`IDialog.keys`)."""

    credentials: Credentials


@frozen
class HangUp:
    """Close the connection once everything has been written; the reason may be that of a refusal."""

    why: Farewell | Reason


@passing
class LoggedIn:
    """The backend has let us in.

    ``welcome`` is the login's message to the dialog of the same protocol;
    ``rest`` what the backend has sent behind it, for the client as it stands.
    """

    welcome: object = None
    rest: bytes = field(default=b"", repr=False)


@frozen
class Refused:
    """The backend has not let us in, or did not speak as it should.

    ``answered``: that is its answer to the login, so that nothing is wrong with the backend.
    """

    refusal: Refusal
    answered: bool = False


@frozen
class Ready:
    """The login has got as far as it can for nobody in particular: it waits for its order."""


@passing
class Opened:
    """A connection, logged in at ``backend``: its transport, paused, and how long it took (seconds)."""

    transport: ITransport
    outcome: LoggedIn
    connecting: float
    logging_in: float
    backend: str


DialogEvent = Send | StartTLS | KeysWanted | Attempt | HangUp
LoginEvent = Send | StartTLS | Ready | LoggedIn | Refused


# --- what a dialog or a login is made from -----------------------------------


@frozen
class DialogTerms:
    """What a dialog needs to know of its listener.

    ``tls_offered``: the client may ask for STARTTLS.  ``login_allowed``: it may log in as things stand; a
    STARTTLS listener allows it once TLS is on.  ``passwords``: a login with name and password may succeed at
    all.  ``mechanisms``: the SASL mechanisms to offer, in order; ``certified`` and ``bound`` come before them
    once the client has shown its certificate, or TLS has channel binding.  ``capabilities``: what else to
    announce.  ``bad_commands``: how many are answered before the client is sent away, 0 for any number.
    ``host_name``: what mailroute calls itself, for protocols that tell it.
    """

    tls_offered: bool = False
    login_allowed: bool = True
    mechanisms: tuple[str, ...] = ("PLAIN", "LOGIN")
    capabilities: tuple[str, ...] = ()
    bad_commands: int = 5
    passwords: bool = True
    host_name: str = "localhost"
    certified: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()


@passing
class LoginTerms:
    """What a login needs to know of its backend, whoever it will be for.

    ``master``: the master user's name and password; ``master_separator``: what joins it to a user's.
    ``starttls``: insist on TLS first.  ``tell_client``: say who the client is in the protocol's own words.
    """

    method: Method = Method.REPLAY
    master: Credentials | None = None
    starttls: bool = False
    tell_client: bool = False
    master_separator: str = ""


@passing
class LoginOrder:
    """Which account to open, and for whom.

    ``user`` is the name to use at the backend; ``seam`` the dialog's message to the login.
    ``forward`` is that of the route.  ``patience``: seconds for the backend to say its first word,
    when there are others to try; 0 for no bound but the backend's own.
    """

    credentials: Credentials
    user: str
    client: Client
    seam: object = None
    forward: tuple[tuple[str, str], ...] = ()
    patience: float = 0
