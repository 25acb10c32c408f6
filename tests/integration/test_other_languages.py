"""The IMAP libraries of Perl and Node see through mailroute what they see without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers.accounts import ALICE, BOB, Account
from servers.commands import run
from servers.programs import node_package, perl_module, program
from servers.site import Door, Site

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent

BOTH_ACCOUNTS = pytest.mark.parametrize("account", [ALICE, BOB], ids=["alice", "bob"])


def arguments(door: Door, account: Account, security: str) -> list[str | Path]:
    """Return what the scripts have to be told."""
    port = door.imaps if security == "tls" else door.imap
    return [str(port), security, door.authority.file, account.user, account.password]


@pytest.mark.parametrize("security", ["starttls", "tls"])
@BOTH_ACCOUNTS
def test_imapflow_sees_the_same(site: Site, tmp_path: Path, account: Account, security: str) -> None:
    """What Node's imapflow reads and changes is the same."""
    modules = node_package("imapflow")

    def use(door: Door) -> list[str]:
        command = [
            program("node", "nodejs"),
            HERE / "node" / "client.js",
            *arguments(door, account, security),
        ]
        said = run(command, tmp_path, environment={"NODE_PATH": str(modules)}).stdout
        return said.decode().splitlines()

    seen = site.same(use, account)
    assert any(f"Subject: {account.backend} 1" in line for line in seen)


@pytest.mark.parametrize("mechanism", ["LOGIN command", "PLAIN", "LOGIN"])
@pytest.mark.parametrize("security", ["starttls", "tls"])
@BOTH_ACCOUNTS
def test_mail_imapclient_sees_the_same(
    site: Site, tmp_path: Path, account: Account, security: str, mechanism: str
) -> None:
    """What Perl's Mail::IMAPClient reads and changes is the same, however it logs in."""
    perl_module("Mail::IMAPClient", "libmail-imapclient-perl")
    perl_module("IO::Socket::SSL", "libio-socket-ssl-perl")
    script = HERE / "perl" / "mail_imapclient.pl"

    def use(door: Door) -> list[str]:
        command = [program("perl", "perl"), script, *arguments(door, account, security), mechanism]
        return run(command, tmp_path).stdout.decode().splitlines()

    seen = site.same(use, account)
    assert f"Subject: {account.backend} 1" in [line.rstrip("\r") for line in seen]


@pytest.mark.parametrize("security", ["starttls", "tls"])
@BOTH_ACCOUNTS
def test_net_imap_client_sees_the_same(site: Site, tmp_path: Path, account: Account, security: str) -> None:
    """What Perl's Net::IMAP::Client reads and changes is the same."""
    perl_module("Net::IMAP::Client", "libnet-imap-client-perl")
    script = HERE / "perl" / "net_imap_client.pl"

    def use(door: Door) -> list[str]:
        command = [program("perl", "perl"), script, *arguments(door, account, security)]
        return run(command, tmp_path).stdout.decode().splitlines()

    seen = site.same(use, account)
    assert any(f"Subject: {account.backend} 1" in line for line in seen)
