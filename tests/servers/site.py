"""The usual arrangement: two Dovecots, east and west, and one mailroute in front of both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from attrs import frozen

from servers.accounts import ALICE, BOB, SPARE, Account, message
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot
from servers.proxy import Mailroute

T = TypeVar("T")

DIRECT, PROXIED = "direct", "proxied"

LIMITS = {
    "failure_delay": 0,
    "failed_logins": 0,
    "connections_per_address": 0,
}
"""What keeps one test's clients from being in the way of the next one's: they all have one address."""


@frozen
class Door:
    """Where a client connects to reach an account: the account's own server, or mailroute."""

    way: str
    imap: int
    imaps: int
    authority: Authority
    host: str = "localhost"


class Site:
    """Servers by their names, and the doors to them."""

    def __init__(self, authority: Authority, servers: Mapping[str, Dovecot], proxy: Mailroute) -> None:
        self.authority = authority
        self.servers = servers
        self.proxy = proxy
        self._spare = list(SPARE)

    def door(self, way: str, account: Account) -> Door:
        """Return where to connect."""
        if way == DIRECT:
            server = self.servers[account.backend]
            return Door(way, server.imap, server.imaps, self.authority)
        return Door(way, self.proxy.ports["imap"], self.proxy.ports["imaps"], self.authority)

    def account(self, backend: str = "east") -> Account:
        """Return an account that no other test uses; mailroute knows it by its domain."""
        account = next(account for account in self._spare if account.backend == backend)
        self._spare.remove(account)
        return account

    def same(self, run: Callable[[Door], T], account: Account) -> T:
        """Run a client both ways, insist that it saw the same, and return that."""
        self.servers[account.backend].settle(account)
        direct = run(self.door(DIRECT, account))
        proxied = run(self.door(PROXIED, account))
        assert proxied == direct
        return direct


def comparable(answers: Iterable[object]) -> list[str]:
    """Return answers as printed, less what differs from one session or mailbox to the next."""
    return [_DIFFERS.sub(lambda match: match[1] or "", repr(answer)) for answer in answers]


_DIFFERS = re.compile(r"\(\d+\.\d+(?: \+ \d+\.\d+)* secs\)|((?:UIDVALIDITY|APPENDUID|COPYUID)) \d+")


def furnish(servers: Mapping[str, Dovecot]) -> None:
    """Put some mail into the mailboxes of alice and bob, so that one can be told from the other."""
    for account, count in ((ALICE, 3), (BOB, 2)):
        server = servers[account.backend]
        for number in range(1, count + 1):
            server.deliver(account, message(f"{account.backend} {number}", number=number))
        server.deliver(account, message(f"{account.backend} filed", number=10), "Archive")
        server.settle(account)


def listeners() -> dict[str, dict[str, object]]:
    """Return the listeners of the usual proxy: STARTTLS, TLS from the first byte, and no TLS at all."""
    return {
        "imap": {"security": "starttls"},
        "imaps": {"security": "tls"},
        "plain": {"security": "none"},
    }


def configuration(
    certificate: Certificate, backends: Mapping[str, Mapping[str, object]], **limits: float
) -> dict[str, object]:
    """Return the rest of the usual proxy's configuration: everybody lives where the domain says."""
    return {
        "certificate": [{"chain": str(certificate.chain), "key": str(certificate.key)}],
        "backend": backends,
        "route": [
            {"source": "table", "file": "users.txt"},
            *(
                {"source": "pattern", "match": rf".+@{name}\.example\.org", "backend": name}
                for name in backends
            ),
        ],
        "limits": {**LIMITS, **limits},
    }


def users(*accounts: Account) -> dict[str, str]:
    """Return the table that says where accounts live, as the file that the configuration names."""
    return {"users.txt": "".join(f"{account.user} {account.backend}\n" for account in accounts)}


def backend(server: Dovecot, authority: Authority, **keys: object) -> dict[str, object]:
    """Return the ``[backend.…]`` block for a Dovecot."""
    usual = {
        "imap": f"tcp:{server.host}:{server.imap}",
        "security": "starttls",
        "login": "replay",
        "identity": "native",
    }
    tls = {"verify": "localhost", "ca": str(authority.file)}
    return usual | ({} if keys.get("security") == "none" else tls) | keys
