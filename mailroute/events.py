"""The frozen values that pass from room to room.

Nothing here does anything.  A dialog says what happened with the values of
the first part, a login with those of the second; the rest describes who is
calling, where the account lives and why somebody was turned away.
"""

from __future__ import annotations

import enum
from functools import partial
from typing import TYPE_CHECKING

from attrs import define, field, frozen
from twisted.internet.interfaces import ITransport

if TYPE_CHECKING:
    from attrs import frozen as passing
else:
    # For values that every session makes anew.  To attrs "frozen" is to set each field by a
    # call, which takes three times as long: so it is the type checker that holds them frozen.
    passing = partial(define, unsafe_hash=True)

# --- who is calling ---------------------------------------------------------


@passing
class Address:
    """One end of a TCP connection: a numeric IP address and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@passing
class Client:
    """What is known of a connected client before it says who it is.

    ``source`` and ``destination`` are ``None`` where the transport has no IP
    address (a UNIX socket).  ``tls`` is the negotiated version, such as
    ``TLSv1.3``, or ``None`` in the clear; ``server_name`` the SNI it asked for.
    """

    session_id: str
    source: Address | None
    destination: Address | None
    tls: str | None = None
    server_name: str | None = None


class Proof(enum.Enum):
    """What a client offers to show that it is who it says."""

    PASSWORD = "password"
    """A password: it can be replayed by any password mechanism."""

    TOKEN = "token"
    """An OAuth bearer token: it can only be passed on by its own mechanism."""


@passing
class Credentials:
    """What a client sent to say who it is; its repr does not show the secret.

    ``user`` is the authentication identity as it was sent, ``authorize_as``
    the account to open if that is another one (the SASL authorization
    identity, RFC 4422 section 3.4.1).  ``secret`` is the password, or for a
    token the whole SASL message as it came.
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
    """The question that a router answers; ``user`` is normalised."""

    user: str
    protocol: str
    client: Client


@frozen
class Route:
    """The answer: a backend's name, and the user's name there if it differs."""

    backend: str
    name: str | None = None


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
    """

    reason: Reason
    detail: str
    reply: bytes | None = None
    challenge: bytes | None = None


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
    """The backend has not let us in, or did not speak as it should."""

    refusal: Refusal


@frozen
class Ready:
    """The login has got as far as it can for nobody in particular: it waits for its order."""


@passing
class Opened:
    """A backend's connection, logged in: its transport, paused, and how long it took (seconds)."""

    transport: ITransport
    outcome: LoggedIn
    connecting: float
    logging_in: float


DialogEvent = Send | StartTLS | Attempt | HangUp
LoginEvent = Send | StartTLS | Ready | LoggedIn | Refused


# --- what a dialog or a login is made from -----------------------------------


@frozen
class DialogTerms:
    """What a dialog needs to know of its listener.

    ``tls_offered``: the client may ask for STARTTLS.  ``login_allowed``: it may
    log in as things stand; a STARTTLS listener allows it once TLS is on.
    ``mechanisms``: the SASL mechanisms to offer, in order.  ``capabilities``:
    what else to announce.  ``bad_commands``: how many are answered before the
    client is sent away, 0 for any number.
    """

    tls_offered: bool = False
    login_allowed: bool = True
    mechanisms: tuple[str, ...] = ("PLAIN", "LOGIN")
    capabilities: tuple[str, ...] = ()
    bad_commands: int = 5


class Method(enum.Enum):
    """How mailroute logs in at a backend; the values are the configuration's words."""

    REPLAY = "replay"
    MASTER = "master"
    NONE = "none"


class Identity(enum.Enum):
    """How a backend learns the client's address; the values are the configuration's words."""

    NATIVE = "native"
    PROXY_V1 = "proxy-v1"
    PROXY_V2 = "proxy-v2"
    NONE = "none"


@passing
class LoginTerms:
    """What a login needs to know of its backend, whoever it will be for.

    ``master``: the master user's name and password.  ``starttls``: insist on
    TLS before anything else.  ``tell_client``: hand over the client's identity
    in the protocol's own words.
    """

    method: Method = Method.REPLAY
    master: Credentials | None = None
    starttls: bool = False
    tell_client: bool = False


@passing
class LoginOrder:
    """Which account to open, and for whom.

    ``user`` is the name to use at the backend; ``seam`` the dialog's message
    to the login.
    """

    credentials: Credentials
    user: str
    client: Client
    seam: object = None


# --- what a probe sees --------------------------------------------------------


@frozen
class Greeted:
    """The backend's first words, without control characters and of bounded length."""

    text: str


@frozen
class Offered:
    """What a backend offers: in the clear the first time, if TLS can begin there.

    ``capabilities``: as it lists them; none: it has not listed any.
    ``mechanisms``: SASL's, in upper case.  ``starttls``: TLS may begin now.
    ``passwords``: a command of the protocol's own takes a password now.
    """

    capabilities: tuple[str, ...]
    mechanisms: tuple[str, ...] = ()
    starttls: bool = False
    passwords: bool = False


@frozen
class Introduced:
    """Whether a backend lets itself be told who the client is, in its protocol's own words.

    ``taken`` is None if it does not say.  ``attributes`` are those that it
    lists.  ``detail`` is how it was told and what came of that, ``remedy`` how
    to have it believe us, or how to see that it does.
    """

    taken: bool | None
    detail: str
    remedy: str = ""
    attributes: tuple[str, ...] = ()


Sight = Greeted | Offered | Introduced
