"""Logins that mailroute checks itself, before a real server that takes its word."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from servers.accounts import ALICE, Account, message
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.programs import program
from servers.proxy import Mailroute
from servers.raw import RawImap
from servers.site import backend, configuration, listeners, users

pytestmark = pytest.mark.integration

SECRET = "another one: ä"
MASTER = Account("master", "the master's own", "east")
KEYS = {"login": "master", "master_user": MASTER.user, "master_password_file": "master-password"}
SCHEMES = ["ARGON2ID", "BLF-CRYPT", "SHA512-CRYPT", "SHA256-CRYPT", "PBKDF2", "SCRAM-SHA-256", "SCRAM-SHA-1"]
SLOW = "$6$rounds=3000000$saltsaltsalt$" + "a" * 86


def hashed(scheme: str) -> str:
    command = [program("doveadm", "dovecot-core"), "pw", "-s", scheme, "-p", SECRET]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def user(scheme: str) -> Account:
    return Account(f"{scheme.lower()}@east.example.org", SECRET, "east")


@pytest.fixture(scope="module")
def east(certificate: Certificate) -> Iterator[Dovecot]:
    accounts = [Account(user(scheme).user, "the server's own", "east") for scheme in SCHEMES]
    with Dovecot(Terms(certificate=certificate, master=MASTER), ALICE, *accounts) as server:
        for account in accounts:
            server.deliver(account, message("for you"))
        yield server


def proxy(
    east: Dovecot, authority: Authority, certificate: Certificate, lines: list[str], **limits: float
) -> Mailroute:
    config = configuration(certificate, {"east": backend(east, authority, **KEYS)}, **limits)
    config["authenticate"] = [{"source": "passwd-file", "file": "hashes"}]
    files = {"master-password": f"{MASTER.password}\n", "hashes": "".join(f"{line}\n" for line in lines)}
    return Mailroute(listeners(), config, {**users(ALICE), **files})


def log_in(session: RawImap, name: str, password: str) -> bytes:
    return session.command(b'a LOGIN "%s" "%s"' % (name.encode(), password.encode()))


def test_every_hash_opens_an_account(east: Dovecot, authority: Authority, certificate: Certificate) -> None:
    """With hashes of Dovecot's own making the passwords open the accounts there, by its master user."""
    lines = [f"{user(scheme).user}:{hashed(scheme)}::::::" for scheme in SCHEMES]
    with proxy(east, authority, certificate, lines) as here:
        for scheme in SCHEMES:
            with RawImap("127.0.0.1", here.ports["imap"]) as session:
                session.greeting()
                session.starttls(authority.context())
                refused = log_in(session, user(scheme).user, "the server's own")
                assert b"a NO [AUTHENTICATIONFAILED] Authentication failed." in refused
                assert b"a OK" in log_in(session, user(scheme).user, SECRET)
                assert b"1 EXISTS" in session.command("b SELECT INBOX")
        assert SECRET not in here.log.text()
        assert "wrong password" in here.log.text()


def test_an_unknown_user_cannot_be_told_from_a_wrong_password(
    east: Dovecot, authority: Authority, certificate: Certificate
) -> None:
    """Where a hash takes longer than any delay, an unknown user waits for one, and hears the same words."""
    with proxy(east, authority, certificate, [f"{ALICE.user}:{SLOW}"]) as here:
        seconds, said = {}, set()
        for name in (ALICE.user, "nobody@east.example.org"):
            with RawImap("127.0.0.1", here.ports["plain"]) as session:
                session.greeting()
                began = time.monotonic()
                said.add(log_in(session, name, "not that"))
                seconds[name] = time.monotonic() - began
    shorter, longer = sorted(seconds.values())
    assert len(said) == 1
    assert shorter > 0.5
    assert longer < 2 * shorter


def test_a_slow_hash_holds_nobody_up(east: Dovecot, authority: Authority, certificate: Certificate) -> None:
    """While a hash that takes seconds is under way, others are greeted and answered at once."""
    with (
        proxy(east, authority, certificate, [f"{ALICE.user}:{SLOW}"]) as here,
        RawImap("127.0.0.1", here.ports["plain"]) as slow,
    ):
        slow.greeting()
        answered = threading.Event()
        slow.send(b"a LOGIN %s wrong\r\n" % ALICE.user.encode())
        waiting = threading.Thread(target=lambda: (slow.read(b"a "), answered.set()))
        waiting.start()
        turns = 0
        while not answered.is_set():
            with RawImap("127.0.0.1", here.ports["plain"]) as session:
                session.greeting()
                assert b"b OK" in session.command("b NOOP")
            turns += 1
        waiting.join()
    assert turns > 20
