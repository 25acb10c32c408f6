"""The frozen settings: what each key means, what it may be, and what it is unless given.

The field's names in Python are the file's, but for the plural of the blocks:
``listen`` is `Settings.listeners`, ``certificate``, ``backend`` and ``route``
likewise, and a backend's protocol keys (``imap``, …) are `Backend.endpoints`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint

from mailroute import dialogs
from mailroute.authenticators import AuthenticatorChain, Link
from mailroute.config import endpoints as strings
from mailroute.config import values
from mailroute.config.block import Block
from mailroute.config.files import Authorities, Chain, Key, Secret
from mailroute.config.metrics import Metrics
from mailroute.config.oauth2 import OAuth2
from mailroute.config.source import Source
from mailroute.events import Change, Credentials, Identity, Method, Security
from mailroute.interfaces import IMailProtocol, IRouter
from mailroute.names import UserNames
from mailroute.networks import Networks
from mailroute.proofs import SCRAM, Proof, needs_binding, proof_of


def _usual_security(data: Mapping[str, Any]) -> Security:
    """Return a listener's security where it says nothing."""
    return Security.STARTTLS if data["protocol"].starttls else Security.NONE


def _usual_way(data: Mapping[str, Any]) -> Security:
    """Return a backend's security where it says nothing."""
    protocols = [dialogs.find(name) for name in data["endpoints"]]
    never = protocols and not any(protocol is None or protocol.starttls for protocol in protocols)
    return Security.NONE if never else Security.STARTTLS


class Certificate(Block):
    """A ``[[certificate]]``: the first serves clients without SNI, the others those who ask for their names.

    Instead of a file's name, Python code may give the PEM itself, as bytes.
    """

    chain: Annotated[Chain, values.CHAIN] = Field(examples=["cert.pem"])
    """PEM file with the server's certificate first, then those that lead to its authority; required."""

    key: Annotated[Key, values.KEY] = Field(examples=["key.pem"], repr=False)
    """PEM file with the private key, not encrypted; required."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the certificate is for."""
        return self.chain.names


class Listener(Block):
    """A ``[[listen]]``: where clients come in, and what they have to do."""

    protocol: Annotated[IMailProtocol, values.PROTOCOL] = Field(examples=["imap"])
    """A protocol's name, or an `IMailProtocol`; required."""

    endpoint: Annotated[str | IStreamServerEndpoint, values.SERVER_ENDPOINT] = Field(examples=["tcp:143"])
    """A Twisted server endpoint string, or an `IStreamServerEndpoint`; required."""

    backend: Annotated[str | None, values.BACKEND] = None
    """The name of the backend that all its sessions go to; unless given, the routes are asked.
    Required where the protocol has no logins."""

    security: Annotated[Security, Field(strict=False)] = Field(default_factory=_usual_security)
    """``starttls``, ``tls`` (from the first byte) or ``none`` (no TLS at all, logins in the clear);
    ``starttls`` unless given, ``none`` where the protocol has no STARTTLS."""

    client_ca: Annotated[Chain | None, values.CHAIN] = None
    """PEM file with the authorities that may vouch for clients, which are then asked for certificates;
    no client is unless given."""

    cleartext_login: bool = False
    """Whether a ``starttls`` listener also takes logins before TLS; ``false`` unless given."""

    proxy_from: Annotated[Networks, values.PROXY_FROM] = Networks()
    """The networks of the proxies in front of it, or ``unix`` for all who come over a UNIX socket: a
    connection from there must begin with a PROXY header, which names the client; ``[]`` unless given."""

    mechanisms: Annotated[tuple[str, ...], values.MECHANISMS] = Field(default_factory=values.usual_mechanisms)
    """The SASL mechanisms to offer, in order; unless given, those that the authenticators can check or, where
    there are none, ``["PLAIN", "LOGIN"]``; less what the protocol lacks."""

    capabilities: Annotated[tuple[str, ...], values.CAPABILITIES] = ()
    """What to announce besides what mailroute itself does; ``[]`` unless given."""

    authenticate: Annotated[ICredentialsChecker | None, values.CHECKER] = None
    """Who checks passwords before mailroute routes: a Twisted strcred string such as ``file:passwd``, or an
    `ICredentialsChecker`; unless given, the authenticators do or, where there are none, the backend."""

    split: bool = False
    """Whether one message may go to several backends though it gets one reply; ``false`` unless given, and
    only for protocols in which mail is delivered and gets one reply."""

    host_name: Annotated[str, values.HOST_NAME] = ""
    """What mailroute calls itself to clients, and where mail is delivered to backends too; only for
    protocols in which a server does so; the system's host name unless given."""

    @property
    def name(self) -> str:
        """What the log calls it."""
        where = self.endpoint if isinstance(self.endpoint, str) else type(self.endpoint).__name__
        return f"{self.protocol.name} {where}"

    def server_endpoint(self, reactor: object) -> IStreamServerEndpoint:
        """Return the endpoint to listen on.

        :raises ValueError: the string describes none, or systemd has not given us its socket.
        """
        return strings.server_endpoint(self.endpoint, reactor)


class Backend(Block):
    """A ``[backend.NAME]``: a mail server."""

    endpoints: Annotated[Mapping[str, str | IStreamClientEndpoint], values.CLIENT_ENDPOINTS] = Field(
        default_factory=dict, examples=["tcp:10.0.0.1:143"]
    )
    """For each protocol that it serves, a Twisted client endpoint string, or an `IStreamClientEndpoint`.
    In the file each is a key of its own, named for the protocol; at least one is required."""

    security: Annotated[Security, Field(strict=False)] = Field(default_factory=_usual_way)
    """On the way there: ``starttls``, ``tls`` or ``none``; ``starttls`` unless given,
    ``none`` where no protocol that it serves has STARTTLS."""

    verify: Annotated[str, values.HOST_NAME] = ""
    """The name that its certificate must carry; the endpoint's host unless given."""

    ca: Annotated[Authorities | None, values.AUTHORITIES] = None
    """PEM file with the authorities that may vouch for it, or what `optionsForClientTLS` takes as trust root;
    the system's unless given."""

    login: Annotated[Method, Field(strict=False)] = Method.REPLAY
    """``replay`` what the client sent, log in as ``master`` for the user, not at all (``none``), or with a
    token that mailroute obtains itself (``oauth2``); ``replay`` unless given."""

    master_user: Annotated[str, values.MASTER_USER] = ""
    """The master user's name; required with ``login = "master"``."""

    master_password_file: Annotated[Secret | None, values.SECRET] = Field(default=None, repr=False)
    """File whose first line is the master user's password, or a `Secret`;
    required with ``login = "master"``."""

    master_separator: Annotated[str, values.SEPARATOR] = ""
    """What stands between the user's name and the master's where the backend takes both as one name; none
    unless given, and the mechanism PLAIN has both."""

    oauth2: OAuth2 | None = None
    """A ``[backend.NAME.oauth2]``: where tokens come from; required with ``login = "oauth2"``."""

    identity: Annotated[Identity, Field(strict=False)] = Identity.NATIVE
    """How it learns the client's address: ``native`` (ID for IMAP, XCLIENT for the others, not at all for a
    protocol without logins), ``proxy-v1``, ``proxy-v2`` or ``none``; ``native`` unless given."""

    warm: Annotated[int, values.WARM] = 0
    """How many connections to keep greeted before anybody wants to log in, for each protocol that a listener
    speaks, and in each worker; 0 unless given."""

    @property
    def master(self) -> Credentials | None:
        """The master user's name and password; ``None`` unless it logs in as a master."""
        if self.login is not Method.MASTER or self.master_password_file is None:
            return None
        return Credentials("PLAIN", self.master_user.encode(), self.master_password_file.value)

    def changed(self, change: Change) -> Backend:
        """Return it with what a route has otherwise.

        :raises ValueError: it cannot be like that.
        """
        update: dict[str, Any] = {}
        if change.host is not None or change.port is not None:
            places = self.endpoints.items()
            update["endpoints"] = {
                name: strings.moved(where, change.host, change.port) for name, where in places
            }
        for key, value in (
            ("login", change.login),
            ("identity", change.identity),
            ("security", change.security),
        ):
            if value is not None:
                update[key] = value
        if change.login is Method.MASTER and self.master_password_file is None:
            raise ValueError('login = "master" needs master_user and master_password_file in its block')
        if change.login is Method.OAUTH2 and self.oauth2 is None:
            raise ValueError('login = "oauth2" needs [backend.NAME.oauth2]')
        block = self.model_copy(update=update)
        if block.security is not Security.NONE and not all(map(block.verify_name, block.endpoints)):
            raise ValueError("TLS needs verify in its block, as its endpoint names no host")
        return block

    def verify_name(self, protocol: str) -> str:
        """Return the name that the certificate must carry; empty only where there is no TLS."""
        return self.verify or strings.host(self.endpoints[protocol])

    def client_endpoint(self, protocol: str, reactor: object) -> IStreamClientEndpoint:
        """Return the endpoint to dial.

        :raises KeyError: it does not serve the protocol.
        :raises ValueError: the string describes no endpoint.
        """
        return strings.client_endpoint(self.endpoints[protocol], reactor)

    def literal(self, protocol: str) -> tuple[int, object] | None:
        """Return the socket family and address for a protocol, if it takes no look-up to know them."""
        return strings.literal(self.endpoints[protocol])


_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]


class Limits(Block):
    """The ``[limits]``; 0 switches one off."""

    login_timeout: _Seconds = 60
    """Seconds from connecting to being logged in; 60 unless given."""

    backend_timeout: _Seconds = 30
    """Seconds for dialling a backend and logging in there; 30 unless given."""

    idle_timeout: _Seconds = 1800
    """Seconds without a byte either way, once joined; 1800 unless given."""

    stall_timeout: _Seconds = 300
    """Seconds for which one side may take nothing of what is there for it, once joined; 300 unless given."""

    session_lifetime: _Seconds = 0
    """Seconds that a joined session may last; 0, for ever, unless given."""

    failure_delay: _Seconds = 2.0
    """Seconds that a login with a wrong name or password takes at least; 2 unless given."""

    failed_logins: _Count = 10
    """Failed logins before the client is sent away; 10 unless given."""

    bad_commands: _Count = 5
    """Bad commands before the client is sent away; 5 unless given."""

    message_size: _Count = 0
    """Bytes of a message that is delivered; 0, any number, unless given."""

    recipients: _Count = 1000
    """Recipients of one message; 1000 unless given."""

    messages: _Count = 1000
    """Messages over one connection; 1000 unless given."""

    connections: _Count = 10000
    """Connections at once, in all; 10000 unless given."""

    connections_per_address: _Count = 200
    """Connections at once from one address, or from one /64 for IPv6; 200 unless given."""


class UserNamesTable(Block):
    """The ``[user_names]``: how users' names are brought into one form before anybody compares them."""

    lowercase_local_part: bool = False
    """Whether to lower the case of what is before the ``@`` as well; ``false`` unless given."""

    default_domain: str = ""
    """What to append, behind an ``@``, to a name that has none; nothing unless given."""

    @field_validator("default_domain")
    @classmethod
    def _domain(cls, domain: str) -> str:
        UserNames(default_domain=domain)  # raises
        return domain


class Settings(Block):
    """The whole configuration.

    ``mailroute.config.load`` makes one from a file, `mailroute.config.build`
    from the same tree in Python; the constructor takes finished parts::

        Settings(
            listeners=(Listener(protocol="imap", endpoint="tcp:1143", security="none"),),
            backends={"east": Backend(endpoints={"imap": my_endpoint}, security="none")},
            routes=(("everybody", MyRouter()),),
        )

    :raises ConfigError: the parts do not go together.
    :raises pydantic.ValidationError: a part is of the wrong kind.
    """

    certificates: Annotated[tuple[Certificate, ...], values.SEQUENCE] = ()
    """What TLS clients are shown; the first one serves those without SNI."""

    listeners: Annotated[tuple[Listener, ...], values.SEQUENCE]
    """Where clients come in."""

    backends: Annotated[Mapping[str, Backend], values.FROZEN]
    """The mail servers by name."""

    authenticators: Annotated[tuple[Link, ...], values.SEQUENCE] = ()
    """Who checks in order who calls, for the listeners that have logins and no ``authenticate`` of their own;
    where there are none, the backends do."""

    routes: Annotated[tuple[tuple[str, Annotated[IRouter, values.ROUTER]], ...], values.SEQUENCE] = ()
    """The routers in order, each with a label for the log; none is needed where every listener has a
    backend."""

    limits: Limits = Limits()
    """How long and how many."""

    user_names: UserNames = UserNames()
    """How users' names are brought into one form."""

    metrics: Metrics | None = None
    """Where Prometheus finds metrics; there are none unless given."""

    workers: Annotated[int | Literal["auto"], values.WORKERS] = 1
    """How many processes carry the mail, or ``auto`` for one on each core that there is for mailroute;
    1 unless given."""

    source: Source | None = Field(default=None, repr=False)
    """What workers need to make the same settings for themselves; ``None`` unless there are workers."""

    def proofs(self, listener: Listener) -> frozenset[Proof] | None:
        """Return what of its clients' credentials can be checked here; ``None`` if backends check them."""
        if listener.authenticate is not None:
            return frozenset({Proof.PASSWORD})
        return AuthenticatorChain(self.authenticators).offers if self.authenticators else None

    def mechanisms(self, listener: Listener) -> tuple[str, ...]:
        """Return the SASL mechanisms that a listener offers: none that could not succeed."""
        proofs = self.proofs(listener)
        if proofs is None or "mechanisms" in listener.model_fields_set:
            return listener.mechanisms
        can = {proof for proof in proofs if proof.replayable or self._opens_unshown(listener, proof)}
        if listener.client_ca is None:
            can.discard(Proof.CERTIFICATE)
        known = listener.protocol.mechanisms
        clear = listener.security is Security.NONE
        return tuple(word for word in known if proof_of(word) in can and not (clear and needs_binding(word)))

    def _opens_unshown(self, listener: Listener, proof: Proof) -> bool:
        """Tell whether its clients may show what backends cannot be shown.

        A client has a certificate because it is to use that; SCRAM it prefers by itself, and would fail with
        it at any backend that needs the password.
        """
        found = unshown(listener, self.backends)
        return any(found) and (all(found) or proof not in SCRAM)

    @property
    def worker_count(self) -> int:
        """How many processes carry the mail, here and now."""
        if self.workers != "auto":
            return self.workers
        return min(len(os.sched_getaffinity(0)), values.MAX_WORKERS)

    def model_post_init(self, _: object, /) -> None:
        """Check that the parts go together."""
        from mailroute.config.checks import check  # which knows the models

        check(self)


def unshown(listener: Listener, backends: Mapping[str, Backend]) -> list[bool]:
    """Tell of each backend for a listener's clients whether it need not see what these have shown."""
    chosen = [block for name, block in backends.items() if listener.backend in (None, name)]
    return [block.login is not Method.REPLAY for block in chosen if listener.protocol.name in block.endpoints]
