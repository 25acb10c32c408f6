"""``mailroute probe``: its words, its status, and backends that do not behave."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
import pytest_twisted
from probing import (
    SCHEMA,
    Serve,
    as_json,
    endless,
    of_backend,
    only,
    probe,
    resetting,
    said,
    saying,
    server,
    silent,
)
from servers.processes import free_port
from twisted.internet import reactor

from mailroute.probe import Report, certificate, examine, find, lines
from mailroute.probe import report as make_report

CLEAR = {"security": "none", "identity": "none"}
GREETING = b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hello\r\n"


def test_the_schema_is_that_of_the_report() -> None:
    """docs/probe.schema.json describes the report that there is, with every field and what it means."""
    assert Report.model_json_schema(mode="serialization") == SCHEMA


# --- what is typed --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["east"], ["there is no [backend.east] in mailroute.toml", "--protocol"]),
        (["west", "--protocol", "pop3"], ["backend west does not serve pop3: it serves imap"]),
        (
            ["west", "--protocol", "gopher"],
            ["there is no 'gopher': it can be imap, lmtp, managesieve"],
        ),
        (["127.0.0.1", "--protocol", "tcp"], ["tcp has no usual port: say HOST:PORT"]),
        (["a:b:c", "--protocol", "imap"], ['"a:b:c" is no endpoint']),
        (["a:99999", "--protocol", "imap"], ["the port must be from 1 to 65535, not 99999"]),
        (["tcp:x", "--protocol", "imap"], ['"tcp:x" is no endpoint']),
        (["west", "--timeout", "0"], ["argument --timeout: '0' is no number of seconds"]),
        (["west", "--timeout", "nan"], ["argument --timeout: 'nan' is no number of seconds"]),
        (["west", "--timeout", "soon"], ["argument --timeout: 'soon' is no number of seconds, more than 0"]),
        ([], ["the following arguments are required: BACKEND"]),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    """A command line that asks for what there is not gets the status 2, and is told what to write."""
    (tmp_path / "mailroute.toml").write_text('[backend.west]\nimap = "tcp:127.0.0.1:1"\n')
    ended = probe(tmp_path, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert all(word in ended.stderr for word in words), ended.stderr


def test_without_a_configuration(tmp_path: Path) -> None:
    """Where there is no file, a name alone is not enough, and the file can be named."""
    ended = probe(tmp_path, "east")
    assert ended.returncode == 2
    assert "name its file with --config" in ended.stderr


def test_a_block_that_is_wrong(tmp_path: Path) -> None:
    """An error in the block is told with its line, and the status is 1; other blocks may be anything."""
    file = tmp_path / "other.toml"
    file.write_text('[[listen]]\nnonsense = 1\n[backend.east]\nimap = "tcp:127.0.0.1:1"\nsecurity = "ssl"\n')
    ended = probe(tmp_path, "east", "--config", "other.toml")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("other.toml:5: backend.east.security: must be")
    file.unlink()
    missing = probe(tmp_path, "east", "--config", "other.toml")
    assert missing.stderr == "other.toml: cannot be read: No such file or directory\n"


def test_no_password_is_read(tmp_path: Path) -> None:
    """The master password's file need not be there; its name stays in what is to be written."""
    with server(saying(GREETING)) as port:
        status, report = of_backend(
            tmp_path,
            "--timeout",
            "1",
            imap=f"tcp:127.0.0.1:{port}",
            login="master",
            master_user="root",
            master_password_file="nowhere",
            warm=2,
            **CLEAR,
        )
    block = tomllib.loads(report["configuration"])["backend"]["east"]
    assert (block["master_user"], block["master_password_file"], block["warm"]) == ("root", "nowhere", 2)
    assert status == 0


# --- what is said where something is wrong ---------------------------------------


def test_a_refused_connection(tmp_path: Path) -> None:
    """The thing, the reason and the remedy."""
    port = free_port()
    status, report = of_backend(tmp_path, imap=f"tcp:127.0.0.1:{port}", **CLEAR)
    assert said(report) == [
        f"imap at tcp:127.0.0.1:{port}: connection refused: nobody listens there: "
        "start the server, or correct the endpoint"
    ]
    assert (status, only(report)["connected_in"]) == (1, None)


@pytest.mark.parametrize("greeting", [b"* BYE too busy\r\n", b"* PREAUTH hi\r\n"])
def test_a_backend_that_lets_nobody_log_in(tmp_path: Path, greeting: bytes) -> None:
    """It does speak the protocol: its log may have the reason."""
    with server(saying(greeting)) as port:
        _, report = of_backend(tmp_path, "--timeout", "1", imap=f"tcp:127.0.0.1:{port}", **CLEAR)
    (finding,) = said(report)
    assert "the backend greeted with" in finding
    assert finding.endswith(
        "see that it speaks imap on this port, or in its log why it does not let this host in"
    )


def test_a_backend_that_stops_behind_its_greeting(tmp_path: Path) -> None:
    """Whoever greets without a PROXY header does not wait for one, whatever it does with one."""
    greeting = b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN ID] hi\r\n"
    with server(saying(greeting)) as port:
        keys = {**CLEAR, "identity": "native"}
        _, report = of_backend(tmp_path, "--timeout", "1", imap=f"tcp:127.0.0.1:{port}", **keys)
    (finding,) = said(report)
    assert "took over 1 s, at last waiting for the answer to who the client is" in finding
    assert 'identity = "native"' in report["configuration"]


def test_a_master_login_without_plain(tmp_path: Path) -> None:
    """Where only other mechanisms take passwords, both names may go as one; then that is as it should be."""
    keys: dict[str, object] = {"login": "master", "master_user": "root", "master_password_file": "nowhere"}
    with server(saying(b"* OK [CAPABILITY IMAP4rev1 AUTH=LOGIN] hello\r\n")) as port:
        endpoint = f"tcp:127.0.0.1:{port}"
        _, report = of_backend(tmp_path, imap=endpoint, **keys, **CLEAR)
        (finding,) = said(report)
        assert finding.endswith(
            'have the backend offer PLAIN, or write master_separator = "*" if it is a Dovecot'
        )
        status, report = of_backend(tmp_path, imap=endpoint, master_separator="*", **keys, **CLEAR)
    assert (status, said(report)) == (0, [])
    assert 'master_separator = "*"' in report["configuration"]


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (20, "in 20 days"),
        (1, "in 1 day"),
        (0, "within a day"),
        (-1, "less than a day ago"),
        (-2, "1 day ago"),
        (-3, "2 days ago"),
    ],
)
def test_days_as_people_count_them(days: int, words: str) -> None:
    """The whole days that are left, or that have passed since."""
    assert certificate.when(days) == words


def test_a_name_without_an_address(tmp_path: Path) -> None:
    """A host that nobody knows is told by its name."""
    status, report = as_json(tmp_path, "no-such-host.invalid", "--protocol", "imap")
    assert status == 1
    assert "no-such-host.invalid" in said(report)[0]
    assert "resolver" in said(report)[0]


@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
def test_a_port_that_resets(tmp_path: Path, security: str) -> None:
    """The connection's end is told, and where to look for its reason."""
    with server(resetting) as port:
        status, report = of_backend(tmp_path, imap=f"tcp:127.0.0.1:{port}", security=security)
    assert status == 1
    (finding,) = said(report)
    # The reset may come before Twisted has seen that there is a connection.
    assert "connection ended" in finding or "the connection is reset at once" in finding
    assert "log" in finding


@pytest.mark.parametrize("security", ["none", "starttls", "tls"])
def test_a_port_that_says_nothing(tmp_path: Path, security: str) -> None:
    """It is given the time that was asked for, once for the first try and once for all others together."""
    with server(silent) as port:
        status, report = of_backend(
            tmp_path, "--timeout", "0.5", imap=f"tcp:127.0.0.1:{port}", security=security
        )
    assert status == 1
    (finding,) = said(report)
    assert "took over 0.5 s, at last " in finding


GARBAGE = b"\x00\xff\x1b[2J\x1b]0;owned\x07\xc2\x9b31m\xe2\x80\xae\r\n" * 3


@pytest.mark.parametrize("protocol", ["imap", "pop3", "smtp", "lmtp", "managesieve", "submission"])
@pytest.mark.parametrize(
    "serve",
    [
        saying(GARBAGE),
        saying(b"* OK \x1b[2J\x07\xc2\x9b\xe2\x80\xae hi\r\n+OK \x1b[2J\r\n220 \x1b[2J\r\n"),
        saying(b"+OK \x1b[2J [XCLIENT]\r\n" + b"+OK\r\n\x1b[2J\xc2\x9b\r\n.\r\n-ERR \x1b\r\n"),
        saying(b"220 \x1b[2J\r\n250-x\r\n250-\x1b[2J\xe2\x80\xae\r\n250 XCLIENT ADDR \x1b\r\n550 \x1b\r\n"),
        endless(b"* OK ", b"x"),
        endless(b"", b"220-x\r\n"),
        endless(b"", b"* OK\r\n"),
        endless(b"+OK\r\n+OK\r\n", b"X\r\n"),
        saying(b'"\x1b[2J" {4}\r\n\xe2\x80\xae\x07\r\n"XCLIENT"\r\nOK\r\nNO "\x1b[2J"\r\n'),
        endless(b"", b'"X" "y"\r\n'),
        endless(b"", GARBAGE),
    ],
    ids=["garbage", "escapes", "pop3", "mail", "line", "reply", "lines", "list", "sieve", "strings", "flood"],
)
@pytest_twisted.ensureDeferred
async def test_a_hostile_backend(tmp_path: Path, protocol: str, serve: Serve) -> None:
    """Garbage, escape sequences and floods end in a finding or a report: in time, bounded and harmless."""
    with server(serve) as port:
        (tmp_path / "mailroute.toml").write_text(
            f'[backend.east]\n{protocol} = "tcp:127.0.0.1:{port}"\nsecurity = "none"\n'
        )
        target = find("east", tmp_path / "mailroute.toml", None, reactor)
        report = make_report(target, await examine(target, reactor, 0.5), datetime.now(UTC))
    shown = "\n".join(lines(report))
    assert ("finding" in shown) is not report.ok
    assert len(shown) < 20_000
    assert all(letter.isprintable() for letter in shown.replace("\n", ""))
    written = json.loads(report.model_dump_json())
    jsonschema.validate(written, SCHEMA)
    assert len(json.dumps(written)) < 40_000
    assert list(tomllib.loads(report.configuration)["backend"]) == ["east"]


@pytest.mark.parametrize("serve", [saying(GARBAGE), endless(b"", b"* OK\r\n")], ids=["garbage", "lines"])
def test_the_command_and_a_hostile_backend(tmp_path: Path, serve: Serve) -> None:
    """The program says what it found, and leaves its connections in good order."""
    with server(serve) as port:
        status, report = of_backend(tmp_path, "--timeout", "0.5", imap=f"tcp:127.0.0.1:{port}", **CLEAR)
    assert status == 1
    assert len(said(report)) == 1


def test_another_protocol(tmp_path: Path) -> None:
    """A greeting of another protocol is recognised."""
    with server(saying(b"+OK hello\r\n")) as port:
        _, report = of_backend(tmp_path, "--timeout", "1", imap=f"tcp:127.0.0.1:{port}", **CLEAR)
    assert said(report)[0].endswith("it greets as pop3 does: correct the port, or the key of the endpoint")
    assert only(report)["greeting"] == "+OK hello"


def test_what_nobody_speaks(tmp_path: Path) -> None:
    """Of a protocol that has no probe the connection is seen, and that is said."""
    with server(silent) as port:
        status, report = of_backend(tmp_path, tcp=f"tcp:127.0.0.1:{port}")
    assert status == 0
    assert only(report)["connected_in"] >= 0
    assert "cannot be asked anything in tcp" in only(report)["notes"][0]
    assert report["configuration"] == (
        f'[backend.east]\ntcp = "tcp:127.0.0.1:{port}"\nsecurity = "none"  # there is no TLS to be had\n'
        'identity = "native"\n'
    )


def test_a_socket_in_the_file_system(tmp_path: Path) -> None:
    """An endpoint of any kind can be looked at; one that is not there is told by its path."""
    status, report = as_json(tmp_path, f"unix:{tmp_path}/imap.sock", "--protocol", "imap")
    assert status == 1
    assert "imap.sock" in said(report)[0]


def test_names_that_have_to_be_quoted(tmp_path: Path) -> None:
    """What is to be written is TOML, whatever the backend is called."""
    file = tmp_path / "mailroute.toml"
    endpoint = f"tcp:127.0.0.1:{free_port()}"
    file.write_text(f"""[backend.'a.b"c']\nimap = "{endpoint}"\nsecurity = "none"\n""")
    _, report = as_json(tmp_path, 'a.b"c')
    assert tomllib.loads(report["configuration"])["backend"]['a.b"c']["security"] == "none"


HANGS = """\
import socket, threading
_look = socket.getaddrinfo
def getaddrinfo(host, *more, **options):
    if host == "hangs.example":
        threading.Event().wait()
    return _look(host, *more, **options)
socket.getaddrinfo = getaddrinfo
"""


@pytest.mark.parametrize("where", ["hangs.example:143", "tls:hangs.example:993", "tcp:hangs.example:143"])
def test_a_name_server_that_hangs_does_not_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It says that there is no connection, and ends, whatever the system's look-up does."""
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    status, report = as_json(tmp_path, where, "--protocol", "imap", "--timeout", "0.5")
    assert status == 1
    assert only(report)["connected_in"] is None
