"""What a configuration will do, in plain sentences, for ``mailroute check``."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from twisted.cred.checkers import FilePasswordDB

from mailroute.config.checks import asks_routes, protocol_of
from mailroute.config.endpoints import brings_tls
from mailroute.config.models import Backend, Certificate, Listener, Settings
from mailroute.events import Identity, Method, Security
from mailroute.interfaces import IDeliveryProtocol
from mailroute.names import UserNames


def describe(settings: Settings) -> list[str]:
    """Return what the settings will do, a sentence an item, without any secret."""
    routed = any(map(asks_routes, settings.listeners))
    return [
        *(_listener(listener, settings) for listener in settings.listeners),
        *map(_certificate, settings.certificates),
        *(_backend(name, backend, settings) for name, backend in settings.backends.items()),
        *_authenticators(settings),
        *(f"Route {position}: {_itself(router)}." for position, (_, router) in enumerate(settings.routes, 1)),
        *(["A user whom no route knows is turned away as if the password were wrong."] if routed else []),
        *_user_names(settings),
        *_workers(settings),
        *_limits(settings),
        *_metrics(settings),
    ]


def _delivery(listener: Listener) -> str:
    when = {
        Security.STARTTLS: "offers STARTTLS",
        Security.TLS: "speaks TLS from the first byte",
        Security.NONE: "without TLS",
    }[listener.security]
    splits = IDeliveryProtocol(listener.protocol).splits or listener.split
    how = (
        "a message goes to all its recipients' backends"
        if splits
        else "recipients on another backend than the first are asked for again"
    )
    where = _endpoint(listener.endpoint)
    return f"Takes mail by {listener.protocol.name} on {where}: {when}; {how}."


def _listener(listener: Listener, settings: Settings) -> str:
    delivers = IDeliveryProtocol.providedBy(listener.protocol)
    said = _delivery(listener) if delivers else _clients(listener, settings)
    if not listener.proxy_from:
        return said
    return (
        f"{said} A connection from {listener.proxy_from} must begin with a PROXY header, naming the client."
    )


def _clients(listener: Listener, settings: Settings) -> str:
    where = f"Listens for {listener.protocol.name} on {_endpoint(listener.endpoint)}"
    if not listener.protocol.logins:
        how = "in the clear" if listener.security is Security.NONE else "with TLS from the first byte"
        if brings_tls(listener.endpoint):
            how = "with the endpoint's own TLS"
        return f"{where}, {how}: joins every client to backend {listener.backend}, whoever it is."
    when = {
        Security.STARTTLS: "takes logins once STARTTLS is done",
        Security.TLS: "speaks TLS from the first byte",
        Security.NONE: "takes logins in the clear, without TLS",
    }[listener.security]
    if brings_tls(listener.endpoint):
        when = "speaks the endpoint's own TLS from the first byte"
    if listener.cleartext_login and listener.security is Security.STARTTLS:
        when = "offers STARTTLS and takes logins in the clear as well"
    proofs, mechanisms = settings.proofs(listener), settings.mechanisms(listener)
    if proofs is None:
        checker = "the backend checks passwords"
    elif listener.authenticate is None:
        checker = "the authenticators check who calls"
    elif isinstance(listener.authenticate, FilePasswordDB):
        checker = f"{listener.authenticate.filename} checks passwords"
    else:
        checker = f"{type(listener.authenticate).__name__} checks passwords"
    offers = f"offers {', '.join(mechanisms)}" if mechanisms else "offers no SASL mechanism"
    if listener.client_ca is not None:
        offers += f"; asks for certificates of the authorities in {listener.client_ca.path or 'the PEM'}"
    announced = f"; announces {', '.join(listener.capabilities)} too" if listener.capabilities else ""
    goes = "" if listener.backend is None else f"; everybody goes to backend {listener.backend}"
    return f"{where}: {when}; {checker}; {offers}{announced}{goes}."


def _endpoint(endpoint: object) -> str:
    return endpoint if isinstance(endpoint, str) else f"an endpoint made by {type(endpoint).__name__}"


def _certificate(certificate: Certificate) -> str:
    ends = certificate.chain.certificates[0].not_valid_after_utc
    expired = ends < datetime.datetime.now(datetime.UTC)
    where = f" in {certificate.chain.path}" if certificate.chain.path else ""
    names = ", ".join(certificate.names) or "no name at all"
    until = f"EXPIRED on {ends:%Y-%m-%d}" if expired else f"good until {ends:%Y-%m-%d}"
    return f"The certificate{where} is for {names}, {until}."


def _backend(name: str, backend: Backend, settings: Settings) -> str:
    places = ", ".join(f"{key} at {_endpoint(place)}" for key, place in backend.endpoints.items())
    login = {
        Method.REPLAY: "logs in with what the client sent",
        Method.MASTER: f"logs in as {_master(backend)} for the user",
        Method.NONE: "does not log in",
        Method.OAUTH2: f"logs in with {backend.oauth2}",
    }[backend.login]
    served = [protocol_of(key, settings.listeners) for key in backend.endpoints]
    logs_in = any(protocol is None or protocol.logins for protocol in served)
    speaks = logs_in or any(map(IDeliveryProtocol.providedBy, served))
    native = "tells the client's address in the protocol's own words"
    identity = {
        Identity.NATIVE: native if speaks else "does not tell the client's address",
        Identity.PROXY_V1: "tells the client's address in a PROXY v1 header",
        Identity.PROXY_V2: "tells the client's address in a PROXY v2 header",
        Identity.NONE: "does not tell the client's address",
    }[backend.identity]
    warm = [f"{backend.warm} connections are kept ready for each protocol"] if backend.warm else []
    parts = [places, _way(backend), *([login] if logs_in else []), identity, *warm]
    return f"Backend {name}: {'; '.join(parts)}."


def _master(backend: Backend) -> str:
    separator = backend.master_separator
    return f"USER{separator}{backend.master_user}" if separator else backend.master_user


def _way(backend: Backend) -> str:
    """Say how the way to the backend is protected."""
    if backend.security is Security.NONE:
        own = [protocol for protocol, endpoint in backend.endpoints.items() if brings_tls(endpoint)]
        if not own:
            return "in the clear"
        return "with the endpoint's own TLS" + (
            "" if len(own) == len(backend.endpoints) else f" for {' and '.join(own)}, else in the clear"
        )
    how = "STARTTLS" if backend.security is Security.STARTTLS else "TLS from the first byte"
    names = " or ".join(sorted({backend.verify_name(protocol) for protocol in backend.endpoints}))
    if backend.ca is None:
        authority = "the system's authorities"
    elif backend.ca.path is None:
        authority = type(backend.ca.root).__name__
    else:
        authority = f"the authorities in {backend.ca.path}"
    return f"{how}, with a certificate for {names} from {authority}"


def _authenticators(settings: Settings) -> Iterator[str]:
    for position, link in enumerate(settings.authenticators, 1):
        then = "; if it cannot answer, the next one is asked" if link.lenient else ""
        yield f"Authenticator {position}: {_itself(link.authenticator)}{then}."
    if settings.authenticators:
        yield "A user whom no authenticator knows is turned away as if the password were wrong."


def _itself(asked: object) -> str:
    if type(asked).__str__ is object.__str__:
        return f"asks {type(asked).__name__}"
    return str(asked)


def _have_users(settings: Settings) -> bool:
    protocols = [listener.protocol for listener in settings.listeners]
    return any(protocol.logins or IDeliveryProtocol.providedBy(protocol) for protocol in protocols)


def _user_names(settings: Settings) -> Iterator[str]:
    names = settings.user_names if _have_users(settings) else UserNames()
    if names.lowercase_local_part:
        yield "User names are compared in lower case; without the option, only their domains are."
    if names.default_domain:
        yield f"A user name without an @ stands for the same name @{names.default_domain}."


_TOGETHER = "each is a process of its own, and the limits on connections hold for all together"


def _workers(settings: Settings) -> Iterator[str]:
    if settings.workers == "auto":
        cores = settings.worker_count
        yield f"As many workers carry the mail as there are cores for them: {cores} now; {_TOGETHER}."
    elif settings.workers != 1:
        yield f"{settings.workers} workers carry the mail; {_TOGETHER}."


def _limits(settings: Settings) -> Iterator[str]:
    delivers = any(IDeliveryProtocol.providedBy(listener.protocol) for listener in settings.listeners)
    limits = _LIMITS if _have_users(settings) else _LIMITS_WITHOUT_LOGINS
    for name, sentence, without in (*limits, *(_LIMITS_OF_MAIL if delivers else ())):
        value = getattr(settings.limits, name)
        yield sentence.format(f"{value:g}" if isinstance(value, float) else value) if value else without


def _metrics(settings: Settings) -> Iterator[str]:
    if settings.metrics is not None:
        address = settings.metrics.address
        who = "on this machine" if address.private else "from anywhere, without authentication"
        yield f"Metrics for Prometheus are at {address}, /metrics, for whoever can reach that {who}."


_LIMITS = (
    ("login_timeout", "A client has {} s to log in.", "A client may take any time to log in."),
    (
        "backend_timeout",
        "A backend has {} s to let a user in.",
        "A backend may take any time to let a user in.",
    ),
    ("idle_timeout", "A session ends after {} s without a byte.", "An idle session never ends."),
    (
        "stall_timeout",
        "A session ends when one side takes nothing for {} s.",
        "A stalled session never ends.",
    ),
    ("session_lifetime", "A session ends after {} s.", "A session may last for ever."),
    (
        "failure_delay",
        "A wrong name or password is answered after {} s at the earliest.",
        "A wrong name or password is answered as soon as a backend does: guessing is not slowed down.",
    ),
    ("failed_logins", "{} failed logins end a connection.", "Any number of failed logins is answered."),
    ("bad_commands", "{} bad commands end a connection.", "Any number of bad commands is answered."),
    ("connections", "At most {} connections at once.", "Any number of connections at once."),
    (
        "connections_per_address",
        "At most {} connections at once from one address.",
        "Any number of connections at once from one address.",
    ),
)

_LIMITS_OF_MAIL = (
    ("message_size", "A message may have {} bytes.", "A message may have any size."),
    ("recipients", "A message may have {} recipients.", "A message may have any number of recipients."),
    ("messages", "A connection may bring {} messages.", "A connection may bring any number of messages."),
)

_ABOUT_LOGINS = ("login_timeout", "backend_timeout", "failure_delay", "failed_logins", "bad_commands")

_LIMITS_WITHOUT_LOGINS = (
    (
        "login_timeout",
        "A client's TLS and the backend's connection have {} s together.",
        "A client's TLS may take any time.",
    ),
    (
        "backend_timeout",
        "A backend has {} s to take a connection.",
        "A backend may take any time to take a connection.",
    ),
    *(limit for limit in _LIMITS if limit[0] not in _ABOUT_LOGINS),
)
