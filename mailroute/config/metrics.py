"""The ``[metrics]``: where Prometheus finds them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Annotated

from attrs import frozen
from pydantic import Field, ValidationInfo
from twisted.internet.endpoints import quoteStringArgument

from mailroute.config import values
from mailroute.config.block import Block
from mailroute.wording import shown

MAX_PATH = 100
"""Bytes of a socket's path: the system takes 107, and the lock beside it has a longer name."""

_FORMS = 'an IP address and a port, such as "127.0.0.1:9317", or the path of a UNIX socket'


@frozen
class Address:
    """Where to listen: an IP address and a port, or the path of a UNIX socket."""

    ip: IPv4Address | IPv6Address | None = None
    port: int = 0
    path: Path | None = None

    @property
    def endpoint(self) -> str:
        """Twisted's string for it.  A socket is for its owner and group, whatever the umask."""
        if self.ip is None:
            # Twisted leaves the character that would make it a name and a value.
            path = quoteStringArgument(str(self.path)).replace("=", r"\=")
            return f"unix:{path}:mode=660"
        kind = "tcp" if self.ip.version == 4 else "tcp6"
        return f"{kind}:{self.port}:interface={quoteStringArgument(str(self.ip))}"

    @property
    def private(self) -> bool:
        """Whether nobody can reach it from another machine."""
        return self.ip is None or self.ip.is_loopback

    def __str__(self) -> str:
        if self.ip is None:
            return str(self.path)
        return f"{self.ip}:{self.port}" if self.ip.version == 4 else f"[{self.ip}]:{self.port}"


def _address(value: object, info: ValidationInfo) -> Address:
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be {_FORMS}, not {shown(value)}")
    if "/" in value:
        path = values.file_path(value, info)
        if len(bytes(path)) > MAX_PATH:
            raise ValueError(f"{path} is too long for a socket: it may have {MAX_PATH} bytes")
        return Address(path=path)
    found = re.fullmatch(r"([0-9.]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", value)
    if found is None:
        raise ValueError(f"must be {_FORMS}, not {shown(value)}")
    try:
        address = ip_address(found[1].strip("[]"))
    except ValueError:
        raise ValueError(f'must be {_FORMS}, and "{found[1]}" is no IP address') from None
    if int(found[2]) > 65535:
        raise ValueError(f"the port must be from 0 to 65535, not {found[2]}")
    return Address(address, int(found[2]))


class Metrics(Block):
    """A ``[metrics]``: they are served over HTTP, to whoever can reach the address."""

    address: Annotated[Address, values.Read(_address, info=True)] = Field(examples=["127.0.0.1:9317"])
    """An IP address and a port, or the path of a UNIX socket, which has a ``/`` in it; required."""


def missing() -> Iterator[str]:
    """Yield what is missing for it, and what to do about it."""
    if find_spec("prometheus_client") is None:
        yield 'needs the package prometheus_client: pip install "mailroute[metrics]"'
