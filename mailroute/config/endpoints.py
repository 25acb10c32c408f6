"""Twisted's endpoint strings: checked before anything listens or dials."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from twisted.internet.endpoints import clientFromString, quoteStringArgument, serverFromString
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint

from mailroute.config.misspelt import CLIENT, HOST, SERVER, no_endpoint

BACKLOG = 1024
"""Connections that the kernel keeps for a listener that has not accepted them yet; Linux bounds it by
net.core.somaxconn.  With Twisted's 50, clients that come by the hundred wait for a second and longer."""

_PART = re.compile(r"((?:[^:=\\]|\\.)*)([:=]|$)", re.DOTALL)


def parts(description: str) -> tuple[list[str], dict[str, str]]:
    r"""Split an endpoint string into its positional parts, the type first, and its named ones.

    The rules are Twisted's: a colon parts, the first ``=`` names, a backslash
    takes what follows as it is (``tcp:host=\:\:1:port=143``).
    """
    positional: list[str] = []
    named: dict[str, str] = {}
    pieces: list[str] = []
    for match in _PART.finditer(description):
        pieces.append(re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL))
        if match[2] == "=":
            continue
        if len(pieces) == 1:
            positional.append(pieces[0])
        else:
            named[pieces[0]] = "=".join(pieces[1:])
        pieces = []
        if not match[2]:
            break
    return positional, named


def kind(endpoint: object) -> str:
    """Return the type of an endpoint string, such as ``tcp``; empty for an object."""
    positional = parts(endpoint)[0] if isinstance(endpoint, str) else []
    return positional[0] if positional else ""


def brings_tls(endpoint: object) -> bool:
    """Tell whether an endpoint string is of those that do TLS by themselves."""
    return kind(endpoint) in ("ssl", "tls")


def host(endpoint: object) -> str:
    """Return the host that a client endpoint string dials; empty if it has none or is an object."""
    if not isinstance(endpoint, str) or kind(endpoint) not in ("tcp", "tls", "ssl"):
        return ""
    positional, named = parts(endpoint)
    return named.get("host", "".join(positional[1:2]))


def literal(endpoint: object) -> tuple[int, object] | None:
    """Return the family and address that a client endpoint string dials without any look-up.

    None if it names a host, says more than where to dial, or is an object.
    """
    if not isinstance(endpoint, str):
        return None
    (kind, *values), named = parts(endpoint)
    names = {"tcp": ("host", "port"), "unix": ("path",)}.get(kind, ())
    given = dict(zip(names, values, strict=False)) | named
    if not names or given.keys() != set(names) or len(values) > len(names):
        return None
    if kind == "unix":
        return socket.AF_UNIX, given["path"]
    try:
        address = ipaddress.ip_address(given["host"])
    except ValueError:
        return None
    if getattr(address, "scope_id", None):
        return None
    return socket.AF_INET if address.version == 4 else socket.AF_INET6, (str(address), int(given["port"]))


def moved(endpoint: object, new_host: str | None, new_port: int | None) -> str:
    """Return a client endpoint string with another host or port.

    :raises ValueError: it dials no host and port.
    """
    positional, named = parts(endpoint) if isinstance(endpoint, str) else ([""], {})
    if positional[0] != "tcp":
        raise ValueError('another host or port needs a "tcp:" endpoint in its block')
    given = dict(zip(("host", "port"), positional[1:], strict=False)) | named
    if new_host is not None:
        given["host"] = new_host
    if new_port is not None:
        given["port"] = str(new_port)
    return ":".join(["tcp", *(f"{key}={quoteStringArgument(value)}" for key, value in given.items())])


def server_endpoint(endpoint: str | IStreamServerEndpoint, reactor: object) -> IStreamServerEndpoint:
    """Return the endpoint that the string describes, or the object itself.

    :raises ValueError: the string describes none.
    """
    if not isinstance(endpoint, str):
        return endpoint
    try:
        return cast(IStreamServerEndpoint, serverFromString(reactor, _with_backlog(endpoint)))
    except Exception as error:
        raise ValueError(no_endpoint(endpoint, *parts(endpoint), error, server=True)) from None


def _with_backlog(endpoint: str) -> str:
    """Return a server endpoint string with a backlog, unless it may have one."""
    positional, named = parts(endpoint)
    known = kind(endpoint) in ("tcp", "tcp6", "ssl", "unix") and len(positional) <= 2
    return f"{endpoint}:backlog={BACKLOG}" if known and "backlog" not in named else endpoint


def client_endpoint(endpoint: str | IStreamClientEndpoint, reactor: object) -> IStreamClientEndpoint:
    """Return the endpoint that the string describes, or the object itself.

    :raises ValueError: the string describes none.
    """
    if not isinstance(endpoint, str):
        return endpoint
    try:
        return cast(IStreamClientEndpoint, clientFromString(reactor, endpoint))
    except Exception as error:
        raise ValueError(no_endpoint(endpoint, *parts(endpoint), error, server=False)) from None


def check_server_endpoint(endpoint: str | IStreamServerEndpoint, reactor: object) -> None:
    """Refuse a string that describes no endpoint.

    :raises ValueError: says why.
    """
    if kind(endpoint) == "haproxy":
        raise ValueError(
            'would take a PROXY header from anybody: remove "haproxy:", '
            'and say from where to take one, as in proxy_from = ["10.0.0.0/8"]'
        )
    if kind(endpoint) == "systemd":
        # Its sockets are there only when systemd has started us, and not when
        # an operator checks the file: only the words can be checked.
        _check_systemd(str(endpoint))
        return
    server_endpoint(endpoint, reactor)
    if not isinstance(endpoint, str):
        return
    given = _given(endpoint, SERVER)
    if kind(endpoint) == "tls" and not Path(given["path"]).is_dir():
        raise ValueError(
            f'there is no folder "{given["path"]}" with certificates and keys, which is what "tls:" listens '
            'with: write "tls:FOLDER:PORT", or "ssl:PORT:privateKey=FILE:certKey=FILE" for a single one'
        )
    if kind(endpoint) == "unix" and not given["address"]:
        raise ValueError(no_endpoint(endpoint, *parts(endpoint), None, server=True))
    if "port" in given:
        _check_port(given["port"], lowest=0)


def check_client_endpoint(endpoint: str | IStreamClientEndpoint, reactor: object) -> None:
    """Refuse a string that describes no endpoint, or one that nobody should dial.

    :raises ValueError: says why.
    """
    client_endpoint(endpoint, reactor)
    if not isinstance(endpoint, str):
        return
    given = _given(endpoint, CLIENT)
    if kind(endpoint) == "unix" and not given.get("path"):
        raise ValueError(no_endpoint(endpoint, *parts(endpoint), None, server=False))
    if kind(endpoint) not in ("tcp", "tls", "ssl"):
        return
    if not HOST.fullmatch(given["host"]):
        raise ValueError(no_endpoint(endpoint, *parts(endpoint), None, server=False))
    _check_port(given["port"], lowest=1)
    if kind(endpoint) == "ssl" and not given.get("hostname"):
        # "tls:" takes no IPv6 address.
        other = (
            f'write "tls:{given["host"]}:{given["port"]}", which does, or '
            if ":" not in given["host"]
            else ""
        )
        raise ValueError(
            'would take anybody for the backend, as "ssl:" does not look whose certificate it gets: '
            f"{other}add the name that it must carry, as in :hostname=mail.example.com"
        )


def _given(endpoint: str, kinds: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return an endpoint string's parts by their names; it is one that Twisted takes."""
    positional, named = parts(endpoint)
    names = kinds.get(positional[0], ())
    if "host" in named:
        names = tuple(name for name in names if name != "host")  # "tcp:143:host=mail.example.com"
    return dict(zip(names, positional[1:], strict=False)) | named


def _check_port(port: str, lowest: int) -> None:
    if not lowest <= int(port) <= 65535:
        raise ValueError(f"the port must be from {lowest} to 65535, not {port}")


def _check_systemd(endpoint: str) -> None:
    positional, named = parts(endpoint)
    values = dict(zip(("domain", "index", "name"), positional[1:], strict=False)) | named
    if unknown := sorted(values.keys() - {"domain", "index", "name"}):
        raise ValueError(f'systemd endpoints have no "{unknown[0]}": they have domain, and index or name')
    if not hasattr(socket, f"AF_{values.get('domain')}"):
        raise ValueError('must say a domain: "systemd:domain=INET:index=0" (or INET6, UNIX)')
    if ("index" in values) == ("name" in values):
        raise ValueError('must say either an index or a name: "systemd:domain=INET:index=0"')
    if not values.get("index", "0").isdecimal():
        raise ValueError(f'the index must be a number from 0, not "{values["index"]}"')
