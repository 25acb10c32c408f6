"""Mail clients that are commands: what they fetch, show and file is the same through mailroute."""

from __future__ import annotations

import contextlib
import mailbox
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import pytest
from servers.accounts import ALICE, BOB, Account, message
from servers.commands import run
from servers.programs import program
from servers.site import DIRECT, PROXIED, Door, Site

pytestmark = pytest.mark.integration

SECURITY = pytest.mark.parametrize("security", ["starttls", "tls"])
BOTH_ACCOUNTS = pytest.mark.parametrize("account", [ALICE, BOB], ids=["alice", "bob"])


def port(door: Door, security: str) -> int:
    return door.imaps if security == "tls" else door.imap


def maildirs(folder: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Return what stands in the Maildirs below a folder: flags and contents, by the folders' names."""
    found = {}
    for place in sorted(folder.rglob("cur")):
        box = mailbox.Maildir(place.parent)
        # mbsync marks the messages that it has copied, each with another number.
        found[place.parent.name] = sorted(
            (each.get_flags(), re.sub(rb"(?m)^X-TUID: .*\r?\n", b"", each.as_bytes())) for each in box
        )
    return found


# --- curl -------------------------------------------------------------------


def curl(
    door: Door, account: Account, security: str, home: Path, *words: str, path: str = "", check: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """Run curl on a mailbox."""
    scheme = "imaps" if security == "tls" else "imap"
    command = [program("curl", "curl"), "--silent", "--show-error", "--ssl-reqd"]
    command += ["--cacert", str(door.authority.file), "--user", f"{account.user}:{account.password}"]
    return run([*command, *words, f"{scheme}://{door.host}:{port(door, security)}/{path}"], home, check=check)


@SECURITY
@BOTH_ACCOUNTS
@pytest.mark.parametrize("options", ["", "AUTH=PLAIN", "AUTH=LOGIN"])
def test_curl_reads_the_same(
    site: Site, tmp_path: Path, account: Account, security: str, options: str
) -> None:
    """With every way that curl has to log in, it lists and fetches the same."""
    chosen = ["--login-options", options] if options else []

    def read(door: Door) -> list[bytes]:
        requests = [
            ((), ""),
            ((), "INBOX;UID=1"),
            ((), "INBOX;UID=2;SECTION=HEADER"),
            ((), "INBOX?SUBJECT%202"),
        ]
        requests.append((("--request", "EXAMINE Archive"), ""))
        return [
            curl(door, account, security, tmp_path, *chosen, *words, path=path).stdout
            for words, path in requests
        ]

    seen = site.same(read, account)
    assert f"Subject: {account.backend} 1".encode() in seen[1]


def test_curl_sends_the_login_at_once_or_when_asked(site: Site, tmp_path: Path, way: str) -> None:
    """The client gets in with an initial response (SASL-IR) as well as without."""
    for words in ((), ("--sasl-ir",)):
        listed = curl(site.door(way, ALICE), ALICE, "tls", tmp_path, *words).stdout
        assert b'* LIST (\\HasNoChildren) "." INBOX\r\n' in listed


def test_curl_puts_a_message_into_a_mailbox(site: Site, tmp_path: Path, way: str) -> None:
    """A message that curl uploads is the one that it then reads."""
    account, letter = site.account("west"), tmp_path / "letter"
    letter.write_bytes(message("uploaded"))
    door = site.door(way, account)
    curl(door, account, "starttls", tmp_path, "--upload-file", str(letter), path="INBOX")
    assert curl(door, account, "starttls", tmp_path, path="INBOX;UID=1").stdout == letter.read_bytes()


def test_curl_is_told_of_a_wrong_password(site: Site, tmp_path: Path) -> None:
    """With a wrong password curl ends with the same status as it does directly."""
    wrong = Account(ALICE.user, "not that", ALICE.backend)

    def status(door: Door) -> int:
        return curl(door, wrong, "starttls", tmp_path, check=False).returncode

    assert site.same(status, ALICE) == 67  # CURLE_LOGIN_DENIED


# --- mbsync -----------------------------------------------------------------

MBSYNC = """\
IMAPAccount account
Host {door.host}
Port {port}
User {account.user}
Pass "{account.password}"
{tls_word} {tls}
CertificateFile {door.authority.file}
SystemCertificates no
AuthMechs {mechanism}

IMAPStore there
Account account

MaildirStore here
Path {folder}/
Inbox {folder}/INBOX
SubFolders Verbatim

Channel both
Far :there:
Near :here:
Patterns *
Create Both
Expunge Both
SyncState *
"""


def mbsync(door: Door, account: Account, security: str, home: Path, mechanism: str = "*") -> Path:
    """Synchronise an account with a folder, and return that."""
    binary = program("mbsync", "isync")
    version = run([binary, "--version"], home).stdout
    numbers = tuple(int(number) for number in re.findall(rb"\d+", version)[:2])
    folder = home / "mail"
    folder.mkdir(exist_ok=True)
    (home / "mbsyncrc").write_text(
        MBSYNC.format(
            door=door,
            account=account,
            port=port(door, security),
            tls_word="TLSType" if numbers >= (1, 5) else "SSLType",
            tls="IMAPS" if security == "tls" else "STARTTLS",
            mechanism=mechanism,
            folder=folder,
        )
    )
    run([binary, "-c", home / "mbsyncrc", "-a"], home)
    return folder


@SECURITY
@BOTH_ACCOUNTS
@pytest.mark.parametrize("mechanism", ["*", "LOGIN"])
def test_mbsync_copies_the_same(
    site: Site, tmp_path: Path, account: Account, security: str, mechanism: str
) -> None:
    """A Maildir that mbsync makes through mailroute has the messages and flags of one made directly."""

    def copy(door: Door) -> object:
        return maildirs(mbsync(door, account, security, tmp_path / door.way, mechanism))

    seen = site.same(copy, account)
    assert set(seen) == {"INBOX", "Archive"}
    assert f"Subject: {account.backend} 1".encode() in seen["INBOX"][0][1]


def test_mbsync_works_in_both_directions(site: Site, tmp_path: Path, way: str) -> None:
    """Messages new on either side, and flags and deletions, reach the other one through mailroute."""
    account = site.account("east")
    door, server = site.door(way, account), site.servers["east"]
    for number in (1, 2):
        server.deliver(account, message(f"there {number}", number=number))
    here = mailbox.Maildir(mbsync(door, account, "starttls", tmp_path) / "INBOX")
    assert sorted(each["subject"] for each in here) == ["there 1", "there 2"]

    here.add(mailbox.MaildirMessage(message("here", number=3)))
    for key, each in list(here.items()):
        if each["subject"] == "there 1":
            each.set_flags("FS")
            here[key] = each
        elif each["subject"] == "there 2":
            each.add_flag("T")
            here[key] = each
    mbsync(door, account, "starttls", tmp_path)

    elsewhere = maildirs(mbsync(site.door(DIRECT, account), account, "tls", tmp_path / "elsewhere"))["INBOX"]
    flags = {re.search(rb"Subject: (.*?)\r?\n", text)[1].decode(): flags for flags, text in elsewhere}
    assert flags == {"here": "", "there 1": "FS"}


# --- fetchmail --------------------------------------------------------------


@SECURITY
@BOTH_ACCOUNTS
def test_fetchmail_fetches_the_same(site: Site, tmp_path: Path, account: Account, security: str) -> None:
    """What fetchmail delivers are the same messages."""

    def fetch(door: Door) -> bytes:
        home = tmp_path / door.way
        home.mkdir()
        delivered = home / "delivered"
        settings = home / "fetchmailrc"
        tls = "ssl" if security == "tls" else "sslproto TLS1.2+"
        settings.write_text(
            f"set invisible\nset no bouncemail\n"
            f"poll {door.host} service {port(door, security)} protocol imap auth password\n"
            f'  user "{account.user}" password "{account.password}" {tls} sslcertck\n'
            f'  sslcertfile "{door.authority.file}" keep fetchall no rewrite mda "cat >> {delivered}"\n'
        )
        settings.chmod(0o600)
        binary = program("fetchmail", "fetchmail")
        run([binary, "--fetchmailrc", settings, "--pidfile", home / "pid", "--nosyslog"], home)
        return delivered.read_bytes()

    seen = site.same(fetch, account)
    assert f"Subject: {account.backend} 1".encode() in seen


# --- offlineimap ------------------------------------------------------------

OFFLINEIMAP = """\
[general]
accounts = it
metadata = {home}/metadata
ui = basic
socktimeout = 30

[Account it]
localrepository = here
remoterepository = there

[Repository here]
type = Maildir
localfolders = {home}/mail

[Repository there]
type = IMAP
remotehost = {door.host}
remoteport = {door.imaps}
remoteuser = {account.user}
remotepass = {account.password}
ssl = yes
sslcacertfile = {door.authority.file}
"""


# Not with STARTTLS: after that, offlineimap's library waits for the network although it has the rest of
# the answer already, whenever two TLS records arrive at once; without mailroute too.
@BOTH_ACCOUNTS
def test_offlineimap_copies_the_same(site: Site, tmp_path: Path, account: Account) -> None:
    """A Maildir that offlineimap makes through mailroute has the messages and flags of one made directly."""

    def copy(door: Door) -> object:
        home = tmp_path / door.way
        home.mkdir()
        settings = home / "offlineimaprc"
        settings.write_text(OFFLINEIMAP.format(door=door, account=account, home=home))
        run([program("offlineimap", "offlineimap3"), "-c", settings, "-o"], home)
        return maildirs(home / "mail")

    seen = site.same(copy, account)
    assert set(seen) == {"INBOX", "Archive"}
    assert f"Subject: {account.backend} 1".encode() in seen["INBOX"][0][1]


# --- neomutt ----------------------------------------------------------------

NEOMUTT = """\
set folder = "{url}/"
set spoolfile = "{url}/INBOX"
set imap_user = "{account.user}"
set imap_pass = "{account.password}"
set imap_authenticators = "{mechanism}"
set ssl_starttls = yes
set ssl_force_tls = yes
set certificate_file = "{door.authority.file}"
set ssl_usesystemcerts = no
set mbox_type = mbox
set confirmappend = no
set confirmcreate = no
set copy_decode_weed = no
set delete = yes
set quit = yes
set wait_key = no
set sleep_time = 0
set header_cache =
set message_cachedir =
set tmpdir = "{home}"
set sort = date
"""


def at_a_terminal(command: list[str], home: Path, seconds: float = 30) -> bytes:
    """Run a program that insists on a screen, and return what it painted there."""
    master, slave = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    options = {"stdin": slave, "stdout": slave, "stderr": slave, "start_new_session": True}
    with subprocess.Popen(command, cwd=home, env=environment, **options) as process:
        os.close(slave)
        painted, deadline = b"", time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                if select.select([master], [], [], 0.1)[0]:
                    painted += os.read(master, 65536)
        except OSError:
            pass  # a terminal ends with an error once the program is gone
        else:
            process.kill()
            raise AssertionError(f"{command[0]} does not end by itself: {painted!r}")
        finally:
            os.close(master)
    return painted


@SECURITY
@BOTH_ACCOUNTS
@pytest.mark.parametrize("mechanism", ["plain", "login"])
def test_neomutt_shows_the_same(
    site: Site, tmp_path: Path, account: Account, security: str, mechanism: str
) -> None:
    """A person at neomutt opens the mailbox and copies all messages to a file: the same ones."""

    def copy(door: Door) -> list[bytes]:
        home = tmp_path / door.way
        home.mkdir()
        scheme = "imaps" if security == "tls" else "imap"
        url = f"{scheme}://{door.host}:{port(door, security)}"
        settings = home / "neomuttrc"
        settings.write_text(
            NEOMUTT.format(door=door, account=account, url=url, mechanism=mechanism, home=home)
        )
        copied = home / "copied"
        keys = f"push '<tag-pattern>~A<enter><tag-prefix><copy-message><kill-line>{copied}<enter><exit>'"
        painted = at_a_terminal([program("neomutt", "neomutt"), "-n", "-F", str(settings), "-e", keys], home)
        assert copied.exists(), painted.decode("utf-8", "replace")
        with contextlib.closing(mailbox.mbox(copied)) as box:
            return [each.as_bytes() for each in box]

    seen = site.same(copy, account)
    assert len(seen) == (3 if account is ALICE else 2)
    assert f"Subject: {account.backend} 1".encode() in seen[0]


def test_neomutt_files_a_message(site: Site, tmp_path: Path, way: str) -> None:
    """What a person deletes at neomutt is gone from the server, and what is flagged there is flagged."""
    account = site.account("east")
    server = site.servers["east"]
    for number in (1, 2):
        server.deliver(account, message(f"filed {number}", number=number))
    door = site.door(way, account)
    settings = tmp_path / "neomuttrc"
    url = f"imap://{door.host}:{door.imap}"
    settings.write_text(NEOMUTT.format(door=door, account=account, url=url, mechanism="plain", home=tmp_path))
    keys = "push '<first-entry><flag-message><last-entry><delete-message><sync-mailbox><exit>'"
    painted = at_a_terminal([program("neomutt", "neomutt"), "-n", "-F", str(settings), "-e", keys], tmp_path)
    left = maildirs(mbsync(site.door(DIRECT, account), account, "tls", tmp_path / "seen"))["INBOX"]
    assert [flags for flags, _ in left] == ["FS"], painted
    assert b"Subject: filed 1" in left[0][1]


def test_every_client_has_been_through_mailroute(site: Site) -> None:
    """What these tests compare is not the same server twice: mailroute has its own ports."""
    for account in (ALICE, BOB):
        assert site.door(PROXIED, account).imap != site.door(DIRECT, account).imap
