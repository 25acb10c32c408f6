"""How single values are read: each a validator that turns what was written into what it stands for.

The validation context has three keys, all optional: ``folder``, from where
relative paths start (else the working directory), ``reactor``, with which
endpoint strings are checked (else they are when they are used), and
``copies``, a `mailroute.sources.Copies` of the files that are named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from datetime import date, time
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from cryptography.fernet import Fernet
from pydantic import AfterValidator, BeforeValidator, GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint

from mailroute import authenticators, dialogs
from mailroute.config import files
from mailroute.config.endpoints import check_server_endpoint
from mailroute.interfaces import IMailProtocol, IRouter
from mailroute.names import CONTROL
from mailroute.networks import Networks
from mailroute.sources import Copies
from mailroute.tokens.files import read_key
from mailroute.wording import did_you_mean, listed, shown


def _folder(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder", "."))


def _copies(info: ValidationInfo) -> Copies | None:
    return (info.context or {}).get("copies")


def file_path(value: object, info: ValidationInfo) -> Path:
    """Return the path of what a key names.

    :raises ValueError: it is no name.
    """
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(f"must be the name of a file, not {shown(value)}")
    return _folder(info) / value


def _provided(value: object, interface: Any, otherwise: str) -> object:
    """Return an object that provides the interface; ``otherwise`` is what the file may say instead."""
    if not interface.providedBy(value):
        raise ValueError(f"must be {otherwise} or an {interface.__name__}, not {shown(value)}")
    return value


# --- certificates ----------------------------------------------------------------


def _chain(value: object, info: ValidationInfo) -> files.Chain | None:
    if value is None or isinstance(value, files.Chain):
        return value
    return files.read_chain(value if isinstance(value, bytes) else file_path(value, info), _copies(info))


def _key(value: object, info: ValidationInfo) -> files.Key:
    if isinstance(value, files.Key):
        return value
    return files.read_key(
        value if isinstance(value, bytes) else file_path(value, info),
        info.data.get("chain"),
        _copies(info),
    )


def _authorities(value: object, info: ValidationInfo) -> files.Authorities | None:
    if value is None or isinstance(value, files.Authorities):
        return value
    if isinstance(value, str | Path | bool | int | float | list | dict | date | time):
        return files.read_authorities(file_path(value, info), _copies(info))
    # Twisted has no public name for the interface that a trust root provides.
    return files.Authorities(None, value)


def _secret(value: object, info: ValidationInfo) -> files.Secret | None:
    if value is None or isinstance(value, files.Secret):
        return value
    return files.read_secret(file_path(value, info), _copies(info))


def _token_key(value: object, info: ValidationInfo) -> Fernet | None:
    if value is None or isinstance(value, Fernet):
        return value
    path = file_path(value, info)
    line = files.read(path, _copies(info)).split(b"\n", 1)[0]
    try:
        return read_key(line)
    except ValueError:
        raise ValueError(
            f"{path}: the first line must be 32 bytes in base64: openssl rand -base64 32"
        ) from None


def _directory(value: object, info: ValidationInfo) -> Path | None:
    if value is None:
        return None
    path = file_path(value, info)
    try:
        there = path.is_dir()
    except OSError as error:
        raise ValueError(f"cannot look at {path}: {error.strerror or error}") from None
    if not there:
        raise ValueError(
            f"there is no folder {path}: make it, with mode 0700, for the user that runs mailroute"
        )
    effective = os.access in os.supports_effective_ids
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=effective):
        # A new refresh token that cannot be kept would lock its user out.
        raise ValueError(f"cannot write into {path}: give it to the user that runs mailroute, with mode 0700")
    return path


# --- listeners -------------------------------------------------------------------


def _protocol(value: object) -> object:
    if not isinstance(value, str):
        return _provided(value, IMailProtocol, "a protocol's name")
    try:
        return dialogs.protocol(value)
    except dialogs.UnknownProtocol:
        raise ValueError(f'there is no protocol "{value}"{did_you_mean(value, dialogs.known())}') from None


def _server_endpoint(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return _provided(value, IStreamServerEndpoint, "a Twisted endpoint string")
    reactor = (info.context or {}).get("reactor")
    if reactor is not None:
        check_server_endpoint(value, reactor)
    return value


def _backend(value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"must be the name of a backend, not {shown(value)}")
    return value


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise ValueError(f'must be a list of strings, such as ["ONE", "TWO"], not {shown(value)}')
    return tuple(value)


def _proxy_from(value: object) -> Networks:
    if isinstance(value, Networks):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise ValueError(f'must be a list of networks, such as ["10.0.0.0/8"], not {shown(value)}')
    return Networks.of(value)


def _mechanisms(value: object, info: ValidationInfo) -> tuple[str, ...]:
    words = tuple(word.upper() for word in _strings(value))
    protocol: IMailProtocol | None = info.data.get("protocol")
    for word in words:
        # Without logins the key itself is wrong, which is found where the protocol is looked at.
        if protocol is not None and protocol.logins and word not in protocol.mechanisms:
            choice = listed(protocol.mechanisms) or "nothing"
            raise ValueError(f'"{word}" is not what {protocol.name} understands, which is {choice}')
        if words.count(word) > 1:
            raise ValueError(f'"{word}" is listed twice')
    return words


def usual_mechanisms(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the mechanisms of a listener that does not list any, from its other fields."""
    return tuple(word for word in ("PLAIN", "LOGIN") if word in data["protocol"].mechanisms)


def _capabilities(value: object, info: ValidationInfo) -> tuple[str, ...]:
    words = _strings(value)
    protocol: IMailProtocol | None = info.data.get("protocol")
    if protocol is not None:
        for word in words:
            protocol.check_capability(word)
    return words


def _checker(value: object, info: ValidationInfo) -> object:
    if value is None:
        return None
    if isinstance(value, str):
        return authenticators.make_checker(value, _folder(info), _copies(info))
    _provided(value, ICredentialsChecker, 'a string such as "file:passwd"')
    return authenticators.checks_passwords(value)


# --- backends --------------------------------------------------------------------


def _client_endpoints(value: object) -> Mapping[str, object]:
    """Each protocol's endpoint.  An error here is told by the key: see `mailroute.config.reading`."""
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a table of endpoints by protocol, not {shown(value)}")
    for protocol, endpoint in value.items():
        try:
            client_endpoint(endpoint)
        except ValueError as error:
            raise ValueError(f"{protocol}: {error}") from None
    return MappingProxyType(dict(value))


def client_endpoint(value: object) -> object:
    """Return a client endpoint, or the string for one.

    :raises ValueError: it is neither.
    """
    if isinstance(value, str):
        return value
    return _provided(value, IStreamClientEndpoint, "a Twisted endpoint string")


def _host_name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[^\s\x00-\x1f/:@]+|[0-9a-fA-F:.]+", value):
        raise ValueError(
            f'must be a host name or an IP address, such as "mail.example.com", not {shown(value)}'
        )
    return value


def _master_user(value: object) -> str:
    if not isinstance(value, str) or not value or CONTROL.search(value):
        raise ValueError(f"must be a user name, not {shown(value)}")
    return value


def _separator(value: object) -> str:
    if not isinstance(value, str) or len(value) != 1 or value.isalnum() or not "!" <= value <= "~":
        raise ValueError(f'must be a character such as "*", and neither letter nor digit, not {shown(value)}')
    return value


# --- the whole -------------------------------------------------------------------


def _router(value: object) -> object:
    return _provided(value, IRouter, "a [[route]]")


MAX_WORKERS = 64
"""The most worker processes: more than the cores of most machines, and each has its share of memory."""


def workers(value: object) -> int | Literal["auto"]:
    """Return a number of workers, or ``auto``.

    :raises ValueError: it is neither, or too large.
    """
    if value == "auto":
        return "auto"
    if type(value) is int and 1 <= value <= MAX_WORKERS:
        return value
    raise ValueError(f'must be a number from 1 to {MAX_WORKERS}, or "auto", not {shown(value)}')


MAX_WARM = 1000
"""The most connections to keep ready: more logins than that do not come within one round trip."""


def _warm(value: object) -> int:
    if type(value) is int and 0 <= value <= MAX_WARM:
        return value
    raise ValueError(f"must be a number from 0 to {MAX_WARM}, not {shown(value)}")


class Read:
    """Annotates a field: the function is all there is to its validation.

    Like `pydantic.PlainValidator`, which however warns of types that are zope interfaces.
    """

    def __init__(self, function: Callable[..., object], *, info: bool = False) -> None:
        self._function = function
        self._info = info

    def __get_pydantic_core_schema__(self, _: object, __: GetCoreSchemaHandler) -> CoreSchema:
        if self._info:
            return core_schema.with_info_plain_validator_function(self._function)
        return core_schema.no_info_plain_validator_function(self._function)


CHAIN = Read(_chain, info=True)
KEY = Read(_key, info=True)
AUTHORITIES = Read(_authorities, info=True)
SECRET = Read(_secret, info=True)
PROTOCOL = Read(_protocol)
SERVER_ENDPOINT = Read(_server_endpoint, info=True)
BACKEND = Read(_backend)
PROXY_FROM = Read(_proxy_from)
MECHANISMS = Read(_mechanisms, info=True)
CAPABILITIES = Read(_capabilities, info=True)
CHECKER = Read(_checker, info=True)
CLIENT_ENDPOINTS = Read(_client_endpoints)
TOKEN_KEY = Read(_token_key, info=True)
FOLDER = Read(_directory, info=True)
HOST_NAME = Read(_host_name)
MASTER_USER = Read(_master_user)
SEPARATOR = Read(_separator)
ROUTER = Read(_router)
WORKERS = Read(workers)
WARM = Read(_warm)
FROZEN = AfterValidator(MappingProxyType)
SEQUENCE = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
