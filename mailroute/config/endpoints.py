"""Twisted's endpoint strings: checked before anything listens or dials."""

from __future__ import annotations

import re
import socket
from typing import Any, cast

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint

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


def host(endpoint: object) -> str:
    """Return the host that a client endpoint string dials; empty if it has none or is an object."""
    if not isinstance(endpoint, str) or kind(endpoint) not in ("tcp", "tls", "ssl"):
        return ""
    positional, named = parts(endpoint)
    return named.get("host", "".join(positional[1:2]))


def server_endpoint(endpoint: str | IStreamServerEndpoint, reactor: object) -> IStreamServerEndpoint:
    """Return the endpoint that the string describes, or the object itself.

    :raises ValueError: the string describes none.
    """
    if not isinstance(endpoint, str):
        return endpoint
    try:
        return cast(IStreamServerEndpoint, serverFromString(reactor, endpoint))
    except Exception as error:
        raise ValueError(_no_endpoint(endpoint, error, "tcp:143")) from None


def client_endpoint(endpoint: str | IStreamClientEndpoint, reactor: object) -> IStreamClientEndpoint:
    """Return the endpoint that the string describes, or the object itself.

    :raises ValueError: the string describes none.
    """
    if not isinstance(endpoint, str):
        return endpoint
    try:
        return cast(IStreamClientEndpoint, clientFromString(reactor, endpoint))
    except Exception as error:
        raise ValueError(_no_endpoint(endpoint, error, "tcp:10.0.0.1:143")) from None


def address(endpoint: object) -> dict[str, Any] | None:
    """Return the IP address that a client endpoint string dials, as keywords of `mailroute.dial.Address`.

    None for whatever else there is: host names, UNIX sockets, objects.
    """
    if not isinstance(endpoint, str) or kind(endpoint) != "tcp":
        return None
    positional, named = parts(endpoint)
    where, bind = host(endpoint), named.get("bindAddress")
    if not all(_is_address(each) for each in (where, bind) if each is not None):
        return None
    return {
        "host": where,
        "port": int(named.get("port") or positional[-1]),
        "timeout": int(named.get("timeout", 30)),
        "bind": bind,
    }


def _is_address(host: str) -> bool:
    # One with a zone, such as fe80::1%eth0, has to be looked up.
    return "%" not in host and (isIPAddress(host) or isIPv6Address(host))


def check_server_endpoint(endpoint: str | IStreamServerEndpoint, reactor: object) -> None:
    """Refuse a string that describes no endpoint.

    :raises ValueError: says why.
    """
    if kind(endpoint) == "haproxy":
        raise ValueError("a PROXY header is not taken on a listener yet: remove haproxy:")
    if kind(endpoint) == "systemd":
        # Its sockets are there only when systemd has started us, and not when
        # an operator checks the file: only the words can be checked.
        _check_systemd(str(endpoint))
        return
    server_endpoint(endpoint, reactor)
    if kind(endpoint) in ("tcp", "tcp6", "ssl"):
        positional, named = parts(str(endpoint))
        _check_port(named.get("port") or positional[1], lowest=0)


def check_client_endpoint(endpoint: str | IStreamClientEndpoint, reactor: object) -> None:
    """Refuse a string that describes no endpoint.

    :raises ValueError: says why.
    """
    client_endpoint(endpoint, reactor)
    if kind(endpoint) in ("tcp", "tls", "ssl"):
        positional, named = parts(str(endpoint))
        if not host(endpoint):
            raise ValueError('has no host: write "tcp:HOST:PORT"')
        _check_port(named.get("port") or positional[-1], lowest=1)


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


def _no_endpoint(endpoint: str, error: Exception, example: str) -> str:
    reason = str(error) if isinstance(error, ValueError) and str(error) else "parts are missing or unknown"
    return f'"{endpoint}" is no endpoint ({reason}): write for example "{example}"'
