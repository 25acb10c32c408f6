"""What is to be looked at: a backend of the configuration, or an endpoint that takes its place."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from mailroute import config, dialogs
from mailroute.config import Backend, Security, document, endpoints
from mailroute.events import Identity, Method
from mailroute.interfaces import IMailProtocol, IProbedProtocol
from mailroute.probe.visit import Place, Way
from mailroute.sources.hosts import Hosts
from mailroute.tls import Inspector

FILE = Path("mailroute.toml")
"""The configuration, unless another one is named."""

KEPT = ("master_user", "master_password_file", "master_separator", "warm")
"""Keys of a backend that nothing is found out about, and that stay as they are."""


class Misuse(Exception):
    """The command line asks for what there is not; the text says what to write."""


@frozen
class Service:
    """One protocol of a backend: how it is served, as somebody has written.

    ``place`` is where, ``way`` how to come in, ``security`` and ``identity`` what
    the configuration says of that, or what is tried first.
    """

    endpoint: str
    place: Place
    way: Way
    security: Security
    identity: Identity


@frozen
class Target:
    """A backend that is to be looked at.

    ``configured``: it is the configuration's.  ``authorities``: who has to
    vouch for it, in words; ``ca`` their file, as it is written.  ``kept`` are
    the keys that nothing is found out about.
    """

    name: str
    configured: bool
    services: tuple[Service, ...]
    login: Method = Method.REPLAY
    authorities: str = "the system's authorities"
    ca: str = ""
    kept: Mapping[str, object] = field(factory=dict)


def find(name: str, file: Path | None, protocol: str | None, reactor: Any) -> Target:
    """Return what the command line asks for.

    :param name: a backend's, or an endpoint.
    :param file: the configuration; None: the usual one, if it is there.
    :param protocol: the only one that is to be looked at; None for all that it serves.
    :raises Misuse: there is no such thing.
    :raises mailroute.config.ConfigError: the configuration is wrong.
    """
    if protocol is not None and dialogs.find(protocol) is None:
        raise Misuse(f"--protocol: there is no {protocol!r}: it can be {', '.join(dialogs.known())}")
    used = file if file is not None else FILE if FILE.exists() else None
    backend = None if used is None else config.load_backend(used, name, reactor)
    if used is not None and backend is not None:
        table = document.read_document(used)[1]["backend"][name]
        return _of_backend(name, backend, table, protocol, reactor)
    if protocol is None:
        where = f"in {used}" if used is not None else "to look up: name its file with --config"
        raise Misuse(
            f"there is no [backend.{name}] {where}; to look at a host, say HOST:PORT and --protocol, "
            f"which is one of {', '.join(dialogs.known())}"
        )
    return _of_endpoint(name, dialogs.protocol(protocol), reactor)


def _of_backend(
    name: str, backend: Backend, table: Mapping[str, object], only: str | None, reactor: Any
) -> Target:
    if only is not None and only not in backend.endpoints:
        served = ", ".join(backend.endpoints)
        raise Misuse(f"--protocol: backend {name} does not serve {only}: it serves {served}")
    way = Way(
        backend.security is Security.TLS,
        backend.security is Security.STARTTLS,
        backend.identity if backend.identity is not Identity.NONE else Identity.NATIVE,
    )
    services = [
        Service(
            str(backend.endpoints[key]),
            Place(
                dialogs.protocol(key),
                backend.client_endpoint(key, Hosts(reactor)),
                _verifiable(backend.verify_name(key)),
                backend.ca,
                backend.login,
            ),
            way,
            backend.security,
            backend.identity,
        )
        for key in backend.endpoints
        if only in (None, key)
    ]
    where = {} if backend.ca is None else {"authorities": f"the authorities in {backend.ca.path}"}
    kept = {key: table[key] for key in KEPT if key in table}
    return Target(name, True, tuple(services), backend.login, ca=str(table.get("ca", "")), kept=kept, **where)


def _of_endpoint(text: str, protocol: IMailProtocol, reactor: Any) -> Target:
    endpoint, tls_first = _endpoint(text, protocol)
    try:
        endpoints.check_client_endpoint(endpoint, reactor)
        place = Place(
            protocol,
            endpoints.client_endpoint(endpoint, Hosts(reactor)),
            _verifiable(endpoints.host(endpoint)),
        )
    except ValueError as error:
        raise Misuse(str(error)) from None
    security = Security.TLS if tls_first else Security.STARTTLS if protocol.starttls else Security.NONE
    way = Way(tls_first, not tls_first)
    return Target(text, False, (Service(endpoint, place, way, security, Identity.NATIVE),))


def _endpoint(text: str, protocol: IMailProtocol) -> tuple[str, bool]:
    """Return the endpoint string, and whether TLS is to be expected from the first byte there."""
    usual = IProbedProtocol(protocol) if IProbedProtocol.providedBy(protocol) else None
    if endpoints.kind(text) in ("tcp", "tls", "ssl", "unix"):
        positional, named = endpoints.parts(text)
        port = named.get("port", positional[-1])
        return text, usual is not None and port == str(usual.tls_port)
    host, port = _host_and_port(text)
    if not port and usual is None:
        raise Misuse(f"{text}: {protocol.name} has no usual port: say HOST:PORT")
    port = port or str(usual.port if usual is not None else "")
    escaped = host.replace("\\", "\\\\").replace(":", "\\:")
    return f"tcp:{escaped}:{port}", usual is not None and port == str(usual.tls_port)


def _host_and_port(text: str) -> tuple[str, str]:
    try:
        return str(ipaddress.ip_address(text)), ""
    except ValueError:
        host, _, port = text.rpartition(":")
        if not host or (text.startswith("[") and text.endswith("]")):
            host, port = text, ""
    if port and not port.isdecimal():
        raise Misuse(
            f'"{text}" is no endpoint: say HOST, HOST:PORT or [IPV6]:PORT, or for example tcp:HOST:PORT'
        )
    return host.removeprefix("[").removesuffix("]"), port


def _verifiable(name: str) -> str:
    """Return the name if a certificate can be compared with it, else nothing."""
    try:
        Inspector(name)
    except ValueError:
        return ""
    return name
