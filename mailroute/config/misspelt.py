"""Why an endpoint string is none, in words for the person who wrote it, and what they may have meant."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from OpenSSL import crypto
from twisted.internet.endpoints import quoteStringArgument

from mailroute.wording import did_you_mean

_TCP = ("port", "interface", "backlog")

SERVER = {
    "tcp": _TCP,
    "tcp6": ("port", "backlog", "interface"),
    "ssl": (
        "port",
        "privateKey",
        "certKey",
        "sslmethod",
        "interface",
        "backlog",
        "extraCertChain",
        "dhParameters",
    ),
    "tls": ("path", "port", "backlog", "interface"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}
"""The parts of Twisted's server endpoints, in the order in which they may stand without their names."""

CLIENT = {
    "tcp": ("host", "port", "timeout", "bindAddress"),
    "ssl": ("host", "port", "timeout", "bindAddress", "certKey", "privateKey", "caCertsDir", "hostname"),
    "tls": ("host", "port", "timeout", "bindAddress", "certificate", "privateKey", "trustRoots", "endpoint"),
    "unix": ("path", "timeout", "lockfile"),
}
"""Those of client endpoints."""

_UNNAMED = {"tcp": 2, "ssl": 2, "unix": 1}
"""How many of a client endpoint's parts may stand without their names, if not all."""

_NUMBERS = ("port", "backlog", "timeout", "lockfile")
_REQUIRED = ("host", "port", "address", "path")
_PEM = ("certKey", "privateKey", "certificate", "extraCertChain")

_EXAMPLES = {
    True: {
        "ssl": "ssl:993:privateKey=key.pem:certKey=cert.pem",
        "tcp6": "tcp6:143",
        "tls": "tls:/etc/mailroute/certificates:993",
        "unix": "unix:/run/mailroute/imap:mode=660",
        "": "tcp:143",
    },
    False: {"tls": "tls:mail.example.com:993", "unix": "unix:/run/dovecot/imap", "": "tcp:10.0.0.1:143"},
}

HOST = re.compile(r"[^\s\x00-\x1f\x7f/@]+")
"""What a host in an endpoint may look like."""

_PORT = r"(?:port=)?(?P<port>\d+)"
_ADDRESS = r"\[?(?P<address>[0-9A-Fa-f:.]+(?:%\w+)?)\]?"
_DIALLED = re.compile(rf"(?:host=)?{_ADDRESS}:{_PORT}")
_BOUND = re.compile(rf"{_PORT}:(?:interface=)?{_ADDRESS}")
_URL = re.compile(r"(?:[a-z0-9]+:)?//(?P<host>[^/:@\s]+):(?P<port>\d+)(?:/.*)?")
_PAIR = re.compile(r"(?P<host>[^:/@\s]*):(?P<port>\d+)")


def no_endpoint(
    endpoint: str, positional: list[str], named: dict[str, str], error: Exception | None, *, server: bool
) -> str:
    """Say why a string is no endpoint, or why Twisted cannot make the one that it describes.

    :param positional: its parts without names, the type first; ``named`` those with names.
    :param error: what Twisted has raised; None if it would take it.
    :param server: it is to be listened on.
    """
    kind = positional[0] if positional else ""
    error = getattr(error, "originalException", error)  # of Twisted's FilePath
    if isinstance(error, OSError):
        return f'"{endpoint}" {_unreadable(error, kind)}'
    if isinstance(error, crypto.Error):
        return f'"{endpoint}" needs a certificate and its private key, in PEM: {_pem(named)} has not both'
    if kind == "systemd":
        return (
            f'"{endpoint}" is a socket that systemd has not handed over: '
            "have systemd start mailroute, with a .socket unit beside its service"
        )
    examples = _EXAMPLES[server]
    example = meant(endpoint, server=server) or examples.get(kind, examples[""])
    reason = next(_reasons(endpoint, positional, named, server), "")
    if not reason:
        reason = "parts are missing or unknown" if isinstance(error, TypeError) else str(error)
    return f'"{endpoint}" is no endpoint ({reason}): write for example "{example}"'


def meant(endpoint: str, *, server: bool) -> str:
    """Return the endpoint that a string was probably meant to be; empty if nobody knows."""
    kind, colon, rest = endpoint.partition(":")
    if kind not in (SERVER if server else CLIENT):
        kind, rest = "tcp", endpoint
    elif not colon or kind not in ("tcp", "tcp6", "ssl", "tls"):
        return ""
    return _listened_on(kind, rest.removeprefix("//")) if server else _dialled(kind, rest)


def _path(kind: str, rest: str) -> str:
    return f"unix:{rest}" if kind == "tcp" and re.fullmatch("/[^/:][^:]*", rest) else ""


def _listened_on(kind: str, rest: str) -> str:
    if rest.isdecimal():
        return f"tcp:{rest}"
    found = _BOUND.fullmatch(rest) or _DIALLED.fullmatch(rest)
    place = found["address"] if found is not None else ""
    if not _is_address(place):
        found = _PAIR.fullmatch(rest)
        place = found["host"] if found is not None else ""
        if place not in ("", "*", "localhost"):
            return ""  # it could be a type of endpoint as well
    if found is None or kind == "tls":
        return _path(kind, rest)
    interface = f":interface={quoteStringArgument(place)}" if place not in ("", "*") else ""
    return f"{kind}:{found['port']}{interface}"


def _dialled(kind: str, rest: str) -> str:
    bare = rest.removeprefix("//")
    found = _DIALLED.fullmatch(bare)
    if found is not None and _is_address(found["address"], 6):
        place = f"host={quoteStringArgument(found['address'])}:port={found['port']}"
        # Twisted's "tls:" wants a name.
        return f"ssl:{place}:hostname=mail.example.com" if kind in ("ssl", "tls") else f"{kind}:{place}"
    found = _URL.fullmatch(rest) or _PAIR.fullmatch(bare)
    if found is not None and found["host"]:
        return f"{kind}:{found['host']}:{found['port']}"
    return _path(kind, rest)


def _is_address(text: str, version: int = 0) -> bool:
    try:
        return ipaddress.ip_address(text).version in (version or 4, version or 6)
    except ValueError:
        return False


def _reasons(endpoint: str, positional: list[str], named: dict[str, str], server: bool) -> Iterator[str]:
    """Find what is wrong, the most telling first."""
    kinds = SERVER if server else CLIENT
    kind = positional[0] if positional else ""
    if not endpoint:
        yield "it is empty"
    if kind not in kinds:
        yield f'there is no type "{kind}"{did_you_mean(kind, kinds)}'
        return
    rest = endpoint.partition(":")[2]
    for shape in (_DIALLED, _BOUND):
        found = shape.fullmatch(rest)
        if found is not None and _is_address(found["address"], 6):
            yield "a colon that is part of an IPv6 address needs a backslash in front"
    known = kinds[kind]
    for name in named:
        if name not in known:
            yield f'a {kind}: endpoint has no "{name}"{did_you_mean(name, known)}'
    values = positional[1:]
    unnamed = _unnamed(known, named, kind, server)
    if server and kind != "tls" and len(values) > 1 and values[1].isdecimal() and not values[0].isdecimal():
        yield "the port comes first, and then the interface"
    if len(values) > len(unnamed):
        yield f'"{values[len(unnamed)]}" is one part too many'
    yield from _of_parts(
        known, dict(zip(unnamed, values, strict=False)) | named, folder=kind == "tls" and server
    )


def _of_parts(known: tuple[str, ...], given: dict[str, str], *, folder: bool) -> Iterator[str]:
    """Find what is wrong with the values; ``folder``: the port need not be said."""
    for name in _REQUIRED:
        if name in known and not given.get(name) and not (folder and name == "port"):
            yield f"the {name} is missing"
    if "host" in given and not HOST.fullmatch(given["host"]):
        yield f'"{given["host"]}" is no host'
    for name in _NUMBERS:
        if name in given and not given[name].strip().isdecimal():
            yield f'the {name} must be a number, not "{given[name]}"'
    if "mode" in given and not re.fullmatch("[0-7]+", given["mode"]):
        yield f'the mode must be an octal number such as 660, not "{given["mode"]}"'


def _unnamed(known: tuple[str, ...], named: dict[str, str], kind: str, server: bool) -> list[str]:
    """Return the parts that may stand without names."""
    if not server and kind in ("tcp", "ssl") and "host" in named:
        return ["port"]  # Twisted's own exception
    return list(known if server else known[: _UNNAMED.get(kind, len(known))])


def _unreadable(error: OSError, kind: str) -> str:
    name, why = str(error.filename), error.strerror or str(error)
    remedy = "name one that this user can read"
    if kind == "ssl" and name.endswith("server.pem"):
        remedy = "say where the key and the certificate are, with privateKey=FILE and certKey=FILE"
    elif isinstance(error, NotADirectoryError):
        remedy = "name a folder with PEM files"
    return f"names {name}, which cannot be read ({why}): {remedy}"


def _pem(named: dict[str, str]) -> str:
    """Return the names of the files that certificates and keys are in."""
    return " with ".join(dict.fromkeys(named[part] for part in _PEM if part in named)) or "server.pem"
