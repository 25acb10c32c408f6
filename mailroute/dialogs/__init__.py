"""The protocols that mailroute speaks, by name."""

from __future__ import annotations

from functools import cache

from twisted.plugin import getPlugins

from mailroute.dialogs.common.no_login import NoLogin
from mailroute.dialogs.imap import IMAP
from mailroute.dialogs.managesieve import MANAGESIEVE
from mailroute.dialogs.pop3 import POP3
from mailroute.dialogs.smtp import LMTP, SMTP, SUBMISSION
from mailroute.dialogs.tcp import TCP
from mailroute.interfaces import IMailProtocol

__all__ = ["NoLogin", "UnknownProtocol", "find", "known", "protocol"]

_BUILT_IN: tuple[IMailProtocol, ...] = (IMAP, LMTP, MANAGESIEVE, POP3, SMTP, SUBMISSION, TCP)


class UnknownProtocol(LookupError):
    """No protocol has that name; the text lists those that there are."""


@cache
def _protocols() -> dict[str, IMailProtocol]:
    """All of them, third parties' plugins last, so that none of those hides one of ours."""
    found: dict[str, IMailProtocol] = {}
    for candidate in (*_BUILT_IN, *getPlugins(IMailProtocol)):
        found.setdefault(candidate.name, candidate)
    return found


def known() -> tuple[str, ...]:
    """The names of all protocols, in alphabetical order."""
    return tuple(sorted(_protocols()))


def find(name: str) -> IMailProtocol | None:
    """Return the protocol with that name, ``None`` if there is none."""
    return _protocols().get(name)


def protocol(name: str) -> IMailProtocol:
    """Return the protocol with that name.

    :raises UnknownProtocol: there is none.
    """
    found = find(name)
    if found is None:
        raise UnknownProtocol(f"no protocol is named {name!r}; there are {', '.join(known())}")
    return found
