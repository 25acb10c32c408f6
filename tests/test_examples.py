"""The examples, each of them run: with other addresses than it has, and nothing else changed."""

from __future__ import annotations

import configparser
import fcntl
import imaplib
import re
import shlex
import shutil
import socket
import sys
import urllib.error
import urllib.request
import xml.etree.ElementTree
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import twistd
from attrs import frozen
from servers.accounts import ALICE, BOB, Account, message
from servers.certificates import Authority, Certificate
from servers.dovecot import Dovecot, Terms
from servers.processes import PATIENCE, free_port

EXAMPLES = Path(__file__).parents[1] / "examples"
CAROL = Account("carol@example.com", "a secret", "west")
CAROL_AT_WEST = Account("carol.old", CAROL.password, "west")

pytestmark = pytest.mark.integration


@frozen
class Servers:
    """Two Dovecots with the names of the examples, and who has signed their certificates."""

    authority: Authority
    certificate: Certificate
    ports: dict[str, int]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    ports = {}
    with ExitStack() as stack:
        for name, accounts in {"east": [ALICE], "west": [BOB, CAROL_AT_WEST]}.items():
            # As mailroute.toml tells Dovecot's administrator to set it up.
            terms = Terms(certificate=authority.issue(f"{name}.example.com"), ssl="yes", cleartext=False)
            dovecot = stack.enter_context(Dovecot(terms, *accounts))
            for account in accounts:
                dovecot.deliver(account, message(f"on {name}"))
            ports[name] = dovecot.imap
        yield Servers(authority, authority.issue("localhost"), ports)


class Example:
    """A copy of the examples, beside what they need, on ports of their own."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self.servers = servers
        self.folder = folder / "examples"
        shutil.copytree(EXAMPLES, self.folder)
        for place in (self.folder, self.folder / "systemd"):
            shutil.copy(servers.certificate.chain, place / "cert.pem")
            shutil.copy(servers.certificate.key, place / "key.pem")
            shutil.copy(servers.authority.file, place / "ca.pem")
        shutil.copy(EXAMPLES / "users.txt", self.folder / "systemd")
        self.imap, self.imaps = free_port(), free_port()

    def change(self, name: str, *changes: tuple[str, str]) -> Path:
        """Put other addresses into one of the files, and insist that each was there."""
        path = self.folder / name
        text = path.read_text()
        for old, new in changes:
            assert old in text, f"{name} has no {old}"
            text = text.replace(old, new)
        path.write_text(text)
        return path

    def configure(self) -> Path:
        """Give ``mailroute.toml`` the ports of this test."""
        return self.change(
            "mailroute.toml",
            ('"tcp:143"', f'"tcp:{self.imap}:interface=127.0.0.1"'),
            ('"tcp:993"', f'"tcp:{self.imaps}:interface=127.0.0.1"'),
            ('"tcp:10.0.0.1:143"', f'"tcp:127.0.0.1:{self.servers.ports["east"]}"'),
            ('"tcp:10.0.0.2:143"', f'"tcp:127.0.0.1:{self.servers.ports["west"]}"'),
        )

    def run(self, *arguments: str, ports: list[int], **env: str) -> twistd.Twistd:
        """Run twistd in the folder that has the examples in it."""
        return twistd.Twistd(
            "--pidfile=", *arguments, folder=self.folder.parent, ports=ports, env=twistd.environment(**env)
        )

    def check(self) -> None:
        """Insist that everybody finds their own mailbox, on both ports."""
        trusted = self.servers.authority.context()
        for account in (ALICE, BOB, CAROL):
            with imaplib.IMAP4("localhost", self.imap, timeout=PATIENCE) as starttls:
                starttls.starttls(trusted)
                found(starttls, account)
            with imaplib.IMAP4_SSL("localhost", self.imaps, ssl_context=trusted, timeout=PATIENCE) as tls:
                found(tls, account)


def found(client: imaplib.IMAP4, account: Account) -> None:
    client.login(account.user, account.password)
    client.select("INBOX", readonly=True)
    _, [(_, subject), _] = client.fetch("1", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
    assert subject.strip() == f"Subject: on {account.backend}".encode()


@pytest.fixture
def example(servers: Servers, tmp_path: Path) -> Example:
    return Example(servers, tmp_path)


def test_the_configuration_serves_two_dovecots(example: Example) -> None:
    """`twistd -n mailroute --config examples/mailroute.toml` brings every user to the right Dovecot."""
    example.configure()
    with example.run(
        "mailroute", "--config", "examples/mailroute.toml", ports=[example.imap, example.imaps]
    ) as running:
        example.check()
        running.stop()


def test_the_tac_file_reads_the_configuration_beside_it(example: Example) -> None:
    """`twistd -ny examples/mailroute.tac` is mailroute as mailroute.toml has it."""
    example.configure()
    with example.run("-y", "examples/mailroute.tac", ports=[example.imap, example.imaps]) as running:
        example.check()
        running.stop()


def test_the_tac_file_reads_another_configuration(example: Example) -> None:
    """MAILROUTE_CONFIG names the configuration for the Tac file."""
    elsewhere = example.configure().rename(example.folder / "elsewhere.toml")
    with example.run(
        "-y", "examples/mailroute.tac", ports=[example.imap], MAILROUTE_CONFIG=str(elsewhere)
    ) as running:
        example.check()
        running.stop()


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
        assert answer.headers["Content-Type"] in ("text/xml", "application/xml")
        return answer.read()


def test_one_process_routes_mail_and_tells_clients_where(example: Example) -> None:
    """autoconfig.tac serves the settings on both well-known paths, and the mail."""
    example.configure()
    web = free_port()
    with example.run(
        "-y",
        "examples/autoconfig.tac",
        ports=[example.imap, web],
        AUTOCONFIG_ENDPOINT=f"tcp:{web}:interface=127.0.0.1",
    ) as running:
        for path in ("/mail/config-v1.1.xml", "/.well-known/autoconfig/mail/config-v1.1.xml"):
            answer = get(web, f"{path}?emailaddress=alice@example.com")
            settings = xml.etree.ElementTree.fromstring(answer)  # noqa: S314 - it is our own
            ports = [server.findtext("port") for server in settings.iter("incomingServer")]
            assert ports == ["993", "143"]
        for path in ("/", "/mail/", "/.well-known/", "/mailroute.toml", "/mail/../../key.pem"):
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                get(web, path)
            refused.value.close()
        example.check()
        running.stop()


# --- systemd ----------------------------------------------------------------

# What systemd does: the sockets are descriptors from 3 on, and LISTEN_PID is
# the process that is to take them.
_LIKE_SYSTEMD = """
import os, sys
descriptors, command = sys.argv[1].split(","), sys.argv[2:]
for number, descriptor in enumerate(descriptors, 3):
    os.dup2(int(descriptor), number)
os.environ |= {
    "LISTEN_PID": str(os.getpid()),
    "LISTEN_FDS": str(len(descriptors)),
    "LISTEN_FDNAMES": ":".join(["mailroute.socket"] * len(descriptors)),
}
os.execv(command[0], command)
"""


class Unit(configparser.RawConfigParser):
    """A unit file, as far as a test has to understand one: a key given twice has two lines."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, interpolation=None, dict_type=_Gathering)
        self.optionxform = str
        self.read(path)


class _Gathering(dict):
    def __setitem__(self, key: str, value: object) -> None:
        if isinstance(value, list) and key in self:
            value = [*self[key], *value]
        super().__setitem__(key, value)


def high(listening: socket.socket) -> int:
    """Return a copy of the socket's descriptor that is in the way of no other."""
    return fcntl.fcntl(listening.fileno(), fcntl.F_DUPFD, 100)


def test_systemd_hands_over_the_sockets(example: Example) -> None:
    """The units and the configuration beside them fit: as many sockets, in this order, and this command."""
    sockets = Unit(example.folder / "systemd" / "mailroute.socket")["Socket"]["ListenStream"].split("\n")
    assert sockets == ["0.0.0.0:143", "0.0.0.0:993"]
    service = Unit(example.folder / "systemd" / "mailroute.service")["Service"]
    credential = re.fullmatch(r"(\S+):/etc/mailroute/(\S+)", service["LoadCredential"])
    example.change(
        "systemd/mailroute.toml",
        (f"/run/credentials/mailroute.service/{credential[1]}", credential[2]),
        ('"tcp:10.0.0.1:143"', f'"tcp:127.0.0.1:{example.servers.ports["east"]}"'),
        ('"tcp:10.0.0.2:143"', f'"tcp:127.0.0.1:{example.servers.ports["west"]}"'),
        ('verify = "east.example.com"', 'verify = "east.example.com"\nca = "ca.pem"'),
        ('verify = "west.example.com"', 'verify = "west.example.com"\nca = "ca.pem"'),
    )
    program, *arguments = shlex.split(
        service["ExecStart"].replace("/etc/mailroute", str(example.folder / "systemd"))
    )
    assert program == "/opt/mailroute/bin/twistd"
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        example.imap, example.imaps = first.getsockname()[1], second.getsockname()[1]
        descriptors = [high(first), high(second)]
        with twistd.Twistd(
            *arguments,
            folder=example.folder.parent,
            ports=[],
            command=[
                sys.executable,
                "-c",
                _LIKE_SYSTEMD,
                ",".join(map(str, descriptors)),
                twistd.program("twistd"),
            ],
            pass_fds=descriptors,
        ) as running:
            example.check()
            running.stop()


@pytest.mark.parametrize("name", ["mailroute.tac", "autoconfig.tac"])
def test_a_tac_file_says_what_is_wrong_with_the_configuration(tmp_path: Path, name: str) -> None:
    """A wrong configuration ends a Tac file with its errors and status 1, not with a traceback."""
    (tmp_path / "wrong.toml").write_text("listn = 1\n")
    wrong = str(tmp_path / "wrong.toml")
    tac = str(EXAMPLES / name)
    ended = twistd.run("--pidfile=", "-ny", tac, folder=tmp_path, MAILROUTE_CONFIG=wrong)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1
    assert 'wrong.toml:1: listn: unknown key; did you mean "listen"?' in said
    assert "Traceback" not in said
