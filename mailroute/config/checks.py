"""What single blocks cannot know: whether the parts of a configuration go together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attrs import field, frozen

from mailroute import dialogs
from mailroute.authenticators import AuthenticatorChain, Link
from mailroute.config import metrics, oauth2
from mailroute.config.endpoints import brings_tls, host, kind, parts
from mailroute.config.errors import ConfigError, Fault, Problem, written
from mailroute.config.models import Backend, Listener, Settings
from mailroute.config.ways_in import ways_in
from mailroute.events import Identity, Method, Security
from mailroute.interfaces import IDeliveryProtocol, IMailProtocol, INamedProtocol, IRouter
from mailroute.proofs import Proof
from mailroute.sources import unknown_backend
from mailroute.tls import client_tls

PASSWORDS = frozenset({Proof.PASSWORD})
"""What a listener's own checker can check."""

REPLAYED = frozenset(proof for proof in Proof if proof.replayable)
"""What can be handed on to a backend, for that to check."""


@frozen
class Authenticators:
    """Whether there is a chain of authenticators, and what that can check."""

    present: bool
    proofs: frozenset[Proof]


def proofs(links: Iterable[Link]) -> frozenset[Proof]:
    """Return what the authenticators can check together."""
    return AuthenticatorChain(tuple(links)).proofs


@frozen
class Parts:
    """What to check: every part that is sound by itself, and what the others say they are.

    ``served`` (protocols), ``named`` (backends) and ``certified`` are of the
    whole configuration: a part that is wrong in itself must not make another
    look wrong.  ``shared``: workers are to share the listeners.  ``proved``: a
    router may check passwords (`mailroute.events.Route.proven`).
    """

    listeners: Mapping[int, Listener]
    backends: Mapping[str, Backend]
    served: frozenset[str]
    named: frozenset[str]
    certified: bool
    authenticators: Authenticators
    missing: tuple[str, ...] = field(default=())
    shared: bool = False
    proved: bool = False


def check(settings: Settings) -> None:
    """Refuse settings whose parts do not go together.

    :raises ConfigError: says everything that is wrong.
    """
    blocks = {"listen": settings.listeners, "backend": settings.backends, "route": settings.routes}
    listeners = dict(enumerate(settings.listeners))
    whole = Parts(
        listeners=listeners,
        backends=settings.backends,
        served=frozenset(name for backend in settings.backends.values() for name in backend.endpoints),
        named=frozenset(settings.backends),
        certified=bool(settings.certificates),
        authenticators=Authenticators(bool(settings.authenticators), proofs(settings.authenticators)),
        missing=tuple(name for name in needed(settings.listeners, listeners) if not blocks[name]),
        shared=settings.workers != 1,
        proved=any(proves(router) for _, router in settings.routes),
    )
    found = [Problem(None, written(fault.path), fault.message) for fault in faults(whole)]
    if whole.shared and settings.source is None:
        found.append(Problem(None, "workers", _NO_SOURCE))
    if settings.metrics is not None:
        found += [Problem(None, "metrics", lack) for lack in metrics.missing()]
    if found:
        raise ConfigError(found)


def proves(router: IRouter) -> bool:
    """Tell whether a router may check passwords."""
    return bool(getattr(router, "proves", False))


def protocol_of(name: str, listeners: Iterable[Listener]) -> IMailProtocol | None:
    """Return the protocol that a backend's key stands for, ``None`` if nobody knows it."""
    given = (listener.protocol for listener in listeners)
    return next((one for one in given if one.name == name), None) or dialogs.find(name)


def asks_routes(listener: Listener) -> bool:
    """Tell whether it needs routes: it neither says itself where its sessions go, nor has to."""
    protocol = listener.protocol
    return listener.backend is None and (protocol.logins or IDeliveryProtocol.providedBy(protocol))


def needed(blocks: object, listeners: Mapping[int, Listener]) -> tuple[str, ...]:
    """Return the tables that the configuration cannot do without.

    :param blocks: its ``[[listen]]`` blocks as they were written; ``listeners`` are those that are sound.
    """
    if isinstance(blocks, list | tuple) and blocks:
        asking = (
            asks_routes(listeners[position])
            if position in listeners
            else not (isinstance(block, Mapping) and "backend" in block)
            for position, block in enumerate(blocks)
        )
        if not any(asking):
            return ("listen", "backend")
    return ("listen", "backend", "route")


def faults(whole: Parts) -> Iterator[Fault]:
    """Yield everything that does not go together."""
    for name in whole.missing:
        yield Fault((name,), _MISSING[name])
    if whole.shared and not hasattr(os, "memfd_create"):
        yield Fault(("workers",), "must be 1 here: more than one needs Linux")
    for position, listener in whole.listeners.items():
        for key, message in _of_listener(listener, whole):
            yield Fault(("listen", position, *key), message)
    yield from _doubles(whole.listeners)
    for name, backend in whole.backends.items():
        for key, message in _of_backend(backend, whole):
            yield Fault(("backend", name, *key), message)


_MISSING = {
    "listen": "nothing to listen on: add a [[listen]] block",
    "backend": "nowhere to route to: add a [backend.NAME] block",
    "route": 'nobody would be routed: add a [[route]] block, such as source = "default"',
}

_ABOUT_LOGINS = ("client_ca", "cleartext_login", "mechanisms", "authenticate")

_SHARED = ("tcp", "tcp6", "unix", "systemd")

_NOT_SHARED = 'a "{}" endpoint cannot be handed to workers: use tcp, tcp6, unix or systemd, or workers = 1'

_NO_SOURCE = (
    "needs settings that were read from a file, or built from tables: "
    "finished parts cannot be handed to other processes; use mailroute.load, or workers = 1"
)

_TWICE = 'does TLS by itself, and security = "{}" would do it again: use a tcp: endpoint'

_Found = Iterator[tuple[tuple[str, ...], str]]


def _of_listener(listener: Listener, whole: Parts) -> _Found:
    name = listener.protocol.name
    if not listener.protocol.logins:
        for key in _given(listener, _ABOUT_LOGINS):
            yield (key,), f"means nothing for {name}, which has no logins: remove it"
        if listener.backend is None and not asks_routes(listener):
            message = f'missing: {name} does not say who is calling; name its backend, as in backend = "east"'
            yield ("backend",), message
    yield from _of_listener_tls(listener, whole.certified)
    if whole.shared and isinstance(listener.endpoint, str) and kind(listener.endpoint) not in _SHARED:
        yield ("endpoint",), _NOT_SHARED.format(kind(listener.endpoint))
    yield from _of_listener_backend(listener, whole)
    yield from _of_proxies(listener)
    yield from _of_kind(listener)
    if listener.protocol.logins:
        yield from _of_listener_logins(listener, whole)


def _of_listener_logins(listener: Listener, whole: Parts) -> _Found:
    """Find logins that nobody would check, and mechanisms that nobody can."""
    can, who = whole.authenticators.proofs, "no [[authenticate]] block can check: remove it"
    if listener.authenticate is not None:
        can, who = PASSWORDS, "authenticate cannot check: remove one"
    elif not whole.authenticators.present:
        yield from _unchecked(listener, whole)
        can, who = REPLAYED, "a backend cannot be shown: remove it, or add an [[authenticate]] block"
    sound = whole.named == whole.backends.keys()
    yield from ways_in(listener, can, who, whole.backends if sound else None)


def _of_listener_backend(listener: Listener, whole: Parts) -> _Found:
    name = listener.protocol.name
    if "backend" in whole.missing:
        return
    if listener.backend is None:
        if name not in whole.served:
            yield (
                ("protocol",),
                f'no backend serves "{name}": add {name} = "tcp:HOST:PORT" to a [backend.NAME]',
            )
    elif listener.backend not in whole.named:
        yield ("backend",), unknown_backend(listener.backend, whole.named)
    elif listener.backend in whole.backends and name not in whole.backends[listener.backend].endpoints:
        message = f'does not serve {name}: add {name} = "tcp:HOST:PORT" to [backend.{listener.backend}]'
        yield ("backend",), message


def _of_proxies(listener: Listener) -> _Found:
    """Find proxies whose header could not be read, or who could not be there."""
    proxies, where = listener.proxy_from, kind(listener.endpoint)
    if not proxies:
        return
    if where in ("ssl", "tls"):
        message = 'begins TLS before a PROXY header could be read: use a tcp: endpoint, and security = "tls"'
        yield ("endpoint",), message
    elif where == "unix" and not proxies.unix:
        message = f'names "{proxies}", and those who come over a UNIX socket have no address: use ["unix"]'
        yield ("proxy_from",), message
    elif where in ("tcp", "tcp6") and not proxies.ip:
        message = f'names only "unix", and nobody comes to a {where}: endpoint so: name networks'
        yield ("proxy_from",), message


def _of_kind(listener: Listener) -> _Found:
    """Find the keys that mean nothing in a protocol of this kind."""
    protocol: Any = listener.protocol
    name, given = protocol.name, listener.model_fields_set
    if "host_name" in given and not INamedProtocol.providedBy(protocol):
        yield ("host_name",), f'means nothing with protocol = "{name}", which does not tell it: remove it'
    if "split" not in given:
        return
    if not IDeliveryProtocol.providedBy(protocol):
        yield ("split",), f'means nothing with protocol = "{name}", where nothing is delivered: remove it'
    elif protocol.splits:
        yield ("split",), f'means nothing with protocol = "{name}", which always splits: remove it'


def _of_listener_tls(listener: Listener, certified: bool) -> _Found:
    security = listener.security.value
    if listener.security is Security.STARTTLS and not listener.protocol.starttls:
        yield ("security",), f'must be "tls" or "none": {listener.protocol.name} has no STARTTLS'
        return
    if listener.security is not Security.NONE:
        if not certified:
            message = f'"{security}" needs a certificate: add a [[certificate]] block with chain and key'
            yield ("security",), message
        if brings_tls(listener.endpoint):
            yield ("endpoint",), _TWICE.format(security)
    elif listener.client_ca is not None:
        yield ("client_ca",), 'means nothing with security = "none": remove it, or use "starttls" or "tls"'
    if "cleartext_login" not in listener.model_fields_set or not listener.protocol.logins:
        return
    if listener.security is Security.TLS and listener.cleartext_login:
        yield ("cleartext_login",), 'means nothing with security = "tls", where all is encrypted: remove it'
    if listener.security is Security.NONE and not listener.cleartext_login:
        message = 'cannot be false with security = "none", which has no TLS to wait for: use "starttls"'
        yield ("cleartext_login",), message


def _unchecked(listener: Listener, whole: Parts) -> _Found:
    """Find the backends that would let in anybody whom this listener sends there."""
    if whole.proved and asks_routes(listener):
        return  # whom a router has not checked no session lets in
    protocol, only = listener.protocol.name, listener.backend
    for name, backend in whole.backends.items():
        if only not in (None, name):
            continue
        if protocol in backend.endpoints and backend.login is not Method.REPLAY:
            yield (
                ("authenticate",),
                f'missing, and [backend.{name}] has login = "{backend.login.value}": anybody would get in '
                'unchecked; add an [[authenticate]] block, or use login = "replay"',
            )


def _doubles(listeners: Mapping[int, Listener]) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for position, listener in listeners.items():
        endpoint = listener.endpoint
        if not isinstance(endpoint, str) or _any_port(endpoint):
            continue
        if endpoint in first:
            path = ("listen", position, "endpoint")
            yield Fault(path, f'"{endpoint}" is taken by listen[{first[endpoint] + 1}]: use another port')
        first.setdefault(endpoint, position)


def _any_port(endpoint: str) -> bool:
    """Tell whether the system chooses the port, each time another."""
    positional, named = parts(endpoint)
    return named.get("port", "".join(positional[1:2])) == "0"


def _of_backend(backend: Backend, whole: Parts) -> _Found:
    if not backend.endpoints:
        yield (), 'serves no protocol: add one, such as imap = "tcp:HOST:143"'
    if backend.warm and backend.identity in (Identity.PROXY_V1, Identity.PROXY_V2):
        yield (
            ("warm",),
            f'cannot go with identity = "{backend.identity.value}", whose header names the client before '
            'anything else: remove one, or use identity = "native"',
        )
    yield from _of_backend_protocols(backend, whole)
    yield from _of_backend_tls(backend)
    yield from oauth2.faults(backend.login, backend.oauth2)
    given = backend.model_fields_set
    if backend.master_separator and backend.master_separator in backend.master_user:
        yield ("master_separator",), f'must not be in master_user, which is "{backend.master_user}"'
    for key in ("master_user", "master_password_file", "master_separator"):
        if backend.login is Method.MASTER and not getattr(backend, key) and key != "master_separator":
            yield (key,), 'missing: login = "master" needs it'
        if backend.login is not Method.MASTER and key in given:
            yield (
                (key,),
                f'means nothing with login = "{backend.login.value}": remove it, or use login = "master"',
            )


def _of_backend_protocols(backend: Backend, whole: Parts) -> _Found:
    served = [protocol_of(name, whole.listeners.values()) for name in backend.endpoints]
    known = [protocol for protocol in served if protocol is not None]
    without = [protocol.name for protocol in known if not protocol.starttls]
    if backend.security is Security.STARTTLS and without:
        apart = "" if len(without) == len(served) else ", or give it a [backend.NAME] of its own"
        yield ("security",), f'must be "tls" or "none": {without[0]} has no STARTTLS{apart}'
    logs_in = backend.login in (Method.MASTER, Method.OAUTH2)
    if logs_in and served and not any(each is None or each.logins for each in served):
        yield ("login",), f"means nothing for {known[0].name}, which has no logins: remove it"


def _of_backend_tls(backend: Backend) -> _Found:
    if backend.security is Security.NONE:
        for key in _given(backend, ("ca", "verify")):
            yield (key,), 'means nothing with security = "none": remove it, or use "starttls" or "tls"'
        return
    for protocol, endpoint in backend.endpoints.items():
        if not backend.verify and not host(endpoint):
            message = (
                f"missing: the endpoint for {protocol} names no host, which the certificate could be for"
            )
            yield ("verify",), message
        elif problem := _unverifiable(backend.verify or host(endpoint), backend):
            yield ("verify",) if backend.verify else (protocol,), problem
        if brings_tls(endpoint):
            yield (protocol,), _TWICE.format(backend.security.value)


def _unverifiable(name: str, backend: Backend) -> str:
    """Say why no certificate could be verified for the name; empty if one can."""
    try:
        client_tls(name, backend.ca)
    except Exception as error:  # service-identity and idna have many kinds
        return (
            f'a certificate cannot be verified for the name "{name}" ({error}): '
            "give its certificate's name as verify"
        )
    return ""


def _given(block: Backend | Listener, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key in block.model_fields_set]
