"""The record of a protocol whose clients log in: what it is called, and what makes its halves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zope.interface import implementer

from mailroute.events import DialogTerms, LoginTerms
from mailroute.interfaces import IDialog, ILogin, ILoginProtocol, IProbe, IProbedProtocol
from mailroute.wire.sasl import NAMES


@implementer(ILoginProtocol, IProbedProtocol)
@dataclass(frozen=True, eq=False)
class LoginProtocol:
    """One such protocol; its fields are those of the interfaces."""

    name: str
    port: int
    tls_port: int | None
    alpn: tuple[bytes, ...]
    check_capability: Callable[[str], None]
    dialog: Callable[[DialogTerms], IDialog]
    login: Callable[[LoginTerms], ILogin]
    probe: Callable[[LoginTerms], IProbe]
    password_command: bool = False
    mechanisms: tuple[str, ...] = NAMES
    logins: bool = True
    starttls: bool = True
