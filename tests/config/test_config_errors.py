"""The configuration file: how its errors are told."""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from config.texts import CONTRACT, SMALL
from twisted.internet.testing import MemoryReactorClock

from mailroute import config
from mailroute.config import ConfigError, Settings

Errors = Callable[[str], list[str]]
Load = Callable[[str], Settings]


def test_every_error_is_told_at_once(errors: Errors) -> None:
    """An operator who made many mistakes reads of all of them, in the file's order, with line and key."""
    text = CONTRACT.lstrip()
    for right, wrong in (
        ('chain = "cert.pem"', 'chain = "nowhere.pem"'),
        ('security = "starttls"\ncleartext', 'security = "ssl"\ncleartext'),
        ('endpoint = "tcp:993', 'endpoints = "tcp:993'),
        ('imap = "tcp:10.0.0.1:143"', 'imap = "tcp:10.0.0.1"'),
        ('login = "replay"', "login = true"),
        ("match = '(", "match = '(("),
        ('source = "default"', 'source = "defualt"'),
        ("login_timeout = 60", 'login_timeout = "1m"'),
        ("connections = 10000", "conections = -1"),
    ):
        assert right in text
        text = text.replace(right, wrong)
    assert errors(text) == [
        "mailroute.toml:2: certificate[1].chain: cannot read nowhere.pem: No such file or directory",
        'mailroute.toml:8: listen[1].security: must be "starttls", "tls" or "none", not "ssl"',
        'mailroute.toml:11: listen[2].endpoint: missing: write for example endpoint = "tcp:143"',
        'mailroute.toml:13: listen[2].endpoints: unknown key; did you mean "endpoint"?',
        'mailroute.toml:17: backend.east.imap: "tcp:10.0.0.1" is no endpoint (the port is missing): '
        'write for example "tcp:10.0.0.1:143"',
        'mailroute.toml:21: backend.east.login: must be "replay", "master", "none" or "oauth2", not true',
        "mailroute.toml:34: route[2].match: is no regular expression: missing ), unterminated subpattern at "
        "position 0",
        'mailroute.toml:39: route[3].source: there is no route source "defualt"; did you mean "default"?',
        'mailroute.toml:43: limits.login_timeout: must be a number of seconds, not "1m"',
        'mailroute.toml:48: limits.conections: unknown key; did you mean "connections"?',
    ]


def test_an_error_carries_its_parts(load: Load) -> None:
    """A program that reads the errors gets line, key and message apart."""
    with pytest.raises(ConfigError) as error:
        load(SMALL.replace('"none"', '"ssl"'))
    (problem,) = error.value.problems
    assert problem == (4, "listen[1].security", 'must be "starttls", "tls" or "none", not "ssl"')


WHOLE = [
    (
        "",
        [
            "listen: nothing to listen on: add",
            "backend: nowhere to route to",
            "route: nobody would be routed",
        ],
    ),
    ("[listen]\n", ["1: listen: must be written with two brackets, [[listen]]"]),
    ("backend = 1\n" + SMALL.replace("[backend.east]\n", "[x]\n"), ["1: backend: must have names"]),
    ("limit = 1\n" + SMALL, ['1: limit: unknown key; did you mean "limits"?']),
    ("limits = 1\n" + SMALL, ["1: limits: must be a table, not 1"]),
    ("listen = [1]\n" + SMALL.partition("\n\n")[2], ["1: listen[1]: must be a table, not 1"]),
    (SMALL + "x = " + "9" * 5000 + "\n", ["mailroute.toml: cannot be read as TOML"]),
    (SMALL + "x = " + "[" * 5000 + "\n", ["mailroute.toml: cannot be read as TOML"]),
    (SMALL + "x = \n", ["12: is no TOML: Invalid value, at column 5"]),
    (
        SMALL + "security = tls\n",
        ["12: is no TOML: Invalid value, at column 12: a text stands in quotes"],
    ),
    (
        SMALL + "[backend.east]\n",
        ["12: is no TOML: Cannot declare [backend.east] twice, at column 14: several blocks of "],
    ),
    (
        "[listen]\n[listen]\n",
        ["2: is no TOML: Cannot declare [listen] twice, at column 8: several blocks of a name"],
    ),
    (
        SMALL + "warm = 1\nwarm = 2\n",
        ["13: is no TOML: Cannot overwrite a value, at column 9: this key or block is there already"],
    ),
    (
        SMALL.replace("[backend.east]", "[[backend.east]]"),
        ["6: backend.east: must be a table, not a list: write [backend.east], with one pair of brackets"],
    ),
    (SMALL + 'x = """\n', ["12: is no TOML: Unterminated string, at the end of the file"]),
]


@pytest.mark.parametrize(("text", "expected"), WHOLE)
def test_a_file_that_is_wrong_as_a_whole(errors: Errors, text: str, expected: list[str]) -> None:
    """What is missing altogether, in the wrong place or no TOML is told as plainly as the rest."""
    told = errors(text)
    for said in expected:
        assert any(said in line for line in told), told


def changed(old: str, new: str) -> str:
    assert old in SMALL
    return SMALL.replace(old, new, 1)


LISTEN, BACKEND = 'security = "none"\n', 'imap = "tcp:10.0.0.1:143"\n'

ONE = [
    # listeners
    (changed('"imap"', '"imop"'), '2: listen[1].protocol: there is no protocol "imop"; did you mean "imap"?'),
    (changed('"imap"', "5"), "2: listen[1].protocol: must be a protocol's name or an IMailProtocol, not 5"),
    (changed("tcp:143", "tcp:x"), '3: listen[1].endpoint: "tcp:x" is no endpoint (the port must be'),
    (changed("tcp:143", "tcp:65536"), "3: listen[1].endpoint: the port must be from 0 to 65535, not 65536"),
    (
        changed("tcp:143", "tpc:143"),
        '3: listen[1].endpoint: "tpc:143" is no endpoint (there is no type "tpc"; did you mean "tcp"?): '
        'write for example "tcp:143"',
    ),
    (changed("tcp:143", "port=143"), '3: listen[1].endpoint: "port=143" is no endpoint'),
    (changed("tcp:143", "tcp:143\\\\"), "3: listen[1].endpoint: "),
    (changed("10.0.0.1:143", "10.0.0.1:143\\\\"), "7: backend.east.imap: "),
    (
        changed("tcp:143", "haproxy:tcp:143"),
        '3: listen[1].endpoint: would take a PROXY header from anybody: remove "haproxy:", and say from '
        'where to take one, as in proxy_from = ["10.0.0.0/8"]',
    ),
    (
        changed(BACKEND, 'imap = "tcp:mail_host:143"\n'),
        '7: backend.east.imap: a certificate cannot be verified for the name "mail_host"',
    ),
    (
        changed(BACKEND, BACKEND + 'verify = "*"\n'),
        '8: backend.east.verify: a certificate cannot be verified for the name "*"',
    ),
    (
        changed(BACKEND, BACKEND + "ca = 2020-01-01\n"),
        "8: backend.east.ca: must be the name of a file",
    ),
    (changed('"tcp:143"', "143"), "3: listen[1].endpoint: must be a Twisted endpoint string or"),
    (changed("tcp:143", "systemd:domain=INET"), "3: listen[1].endpoint: must say either an index or a name"),
    (changed("tcp:143", "systemd:index=0"), "3: listen[1].endpoint: must say a domain"),
    (changed("tcp:143", "systemd:domain=INET:index=x"), "3: listen[1].endpoint: the index must be a number"),
    (
        changed("tcp:143", "systemd:domain=INET:idx=0"),
        '3: listen[1].endpoint: systemd endpoints have no "idx"',
    ),
    (
        changed(LISTEN, LISTEN + "cleartext_login = 1\n"),
        "5: listen[1].cleartext_login: must be true or false, not 1",
    ),
    (
        changed(LISTEN, LISTEN + 'mechanisms = ["CRAM-MD5"]\n'),
        '5: listen[1].mechanisms: "CRAM-MD5" is not what imap',
    ),
    (
        changed(LISTEN, LISTEN + 'mechanisms = ["PLAIN", "plain"]\n'),
        '5: listen[1].mechanisms: "PLAIN" is listed twice',
    ),
    (
        changed(LISTEN, LISTEN + 'mechanisms = "PLAIN"\n'),
        "5: listen[1].mechanisms: must be a list of strings",
    ),
    (
        changed(LISTEN, LISTEN + 'capabilities = ["A B"]\n'),
        '5: listen[1].capabilities: "A B" is no capability',
    ),
    (changed(LISTEN, LISTEN + 'capabilities = ["a\\r\\nb"]\n'), "5: listen[1].capabilities: "),
    (
        changed(LISTEN, LISTEN + 'capabilities = ["AUTH=X"]\n'),
        '5: listen[1].capabilities: "AUTH=X" is announced by',
    ),
    (
        changed(LISTEN, LISTEN + 'authenticate = "file:none"\n'),
        "5: listen[1].authenticate: cannot read none: No such",
    ),
    (
        changed(LISTEN, LISTEN + 'authenticate = "fiel:x"\n'),
        '5: listen[1].authenticate: there is no checker "fiel"; did',
    ),
    (
        changed(LISTEN, LISTEN + 'authenticate = "anonymous"\n'),
        "5: listen[1].authenticate: cannot check passwords",
    ),
    (
        changed(LISTEN, LISTEN + "authenticate = true\n"),
        '5: listen[1].authenticate: must be a string such as "file:pa',
    ),
    (changed('"none"', '"tls"'), '4: listen[1].security: "tls" needs a certificate: add a [[certificate]]'),
    (changed('"none"', '"starttls"'), '4: listen[1].security: "starttls" needs a certificate'),
    (changed(LISTEN, ""), '1: listen[1].security: "starttls" needs a certificate'),
    (
        changed(LISTEN, LISTEN + "cleartext_login = false\n"),
        "5: listen[1].cleartext_login: cannot be false with",
    ),
    (
        changed(LISTEN, LISTEN + 'authenticate = "file:passwd"\nmechanisms = ["PLAIN", "XOAUTH2"]\n'),
        '6: listen[1].mechanisms: "XOAUTH2" sends a token, which authenticate cannot check',
    ),
    (
        changed(
            "[backend", '[[listen]]\nprotocol = "imap"\nendpoint = "tcp:143"\nsecurity = "none"\n[backend'
        ),
        '8: listen[2].endpoint: "tcp:143" is taken by listen[1]',
    ),
    # backends
    (changed(BACKEND, ""), "6: backend.east: serves no protocol"),
    (changed(BACKEND, ""), '2: listen[1].protocol: no backend serves "imap": add imap = "tcp:HOST:PORT" to'),
    (changed(BACKEND, 'pop9 = "tcp:1:2"\n'), "7: backend.east.pop9: unknown key"),
    (changed(BACKEND, 'endpoints = { imap = "tcp:a:1" }\n'), "7: backend.east.endpoints: unknown key"),
    (
        changed("10.0.0.1:143", ":143"),
        '7: backend.east.imap: "tcp::143" is no endpoint (the host is missing): write for example "tcp:',
    ),
    (changed("10.0.0.1:143", "10.0.0.1:0"), "7: backend.east.imap: the port must be from 1 to 65535, not 0"),
    (changed('"tcp:10.0.0.1:143"', "143"), "7: backend.east.imap: must be a Twisted endpoint string"),
    (changed("tcp:10.0.0.1:143", "tls:a.example:993"), "7: backend.east.imap: does TLS by itself"),
    (
        changed("tcp:10.0.0.1:143", "unix:/run/imap"),
        "6: backend.east.verify: missing: the endpoint for imap names no",
    ),
    (changed(BACKEND, BACKEND + 'verify = "a b"\n'), "8: backend.east.verify: must be a host name"),
    (
        changed(BACKEND, BACKEND + 'ca = "key.pem"\n'),
        "8: backend.east.ca: key.pem holds no certificate in PEM form",
    ),
    (changed(BACKEND, BACKEND + "ca = 5\n"), "8: backend.east.ca: must be the name of a file, not 5"),
    (
        changed(BACKEND, BACKEND + 'security = "none"\nca = "ca.pem"\n'),
        "9: backend.east.ca: means nothing with security",
    ),
    (
        changed(BACKEND, BACKEND + 'security = "none"\nverify = "a"\n'),
        "9: backend.east.verify: means nothing with",
    ),
    (
        changed(BACKEND, BACKEND + 'master_separator = "*"\n'),
        '8: backend.east.master_separator: means nothing with login = "repl',
    ),
    *(
        (
            changed(BACKEND, f'{BACKEND}master_separator = "{separator}"\n'),
            '8: backend.east.master_separator: must be a character such as "*", and neither letter nor di',
        )
        for separator in ("", "**", "a", "5", " ", "é")
    ),
    (
        changed(
            BACKEND,
            BACKEND + 'login = "master"\nmaster_user = "a+b"\nmaster_password_file = "master.txt"\n'
            'master_separator = "+"\n',
        ),
        '11: backend.east.master_separator: must not be in master_user, which is "a+b"',
    ),
    (
        changed(BACKEND, BACKEND + 'master_user = "a"\n'),
        '8: backend.east.master_user: means nothing with login = "repl',
    ),
    (
        changed(BACKEND, BACKEND + 'login = "master"\n'),
        '6: backend.east.master_password_file: missing: login = "master" needs it',
    ),
    (
        changed(BACKEND, BACKEND + 'login = "master"\n'),
        '6: backend.east.master_user: missing: login = "master" needs',
    ),
    (
        changed(BACKEND, BACKEND + 'master_password_file = "/dev/null"\n'),
        "8: backend.east.master_password_file: /dev/null: the first line is empty",
    ),
    (
        changed(BACKEND, BACKEND + 'master_password = "x"\n'),
        "8: backend.east.master_password: unknown key; did you",
    ),
    (
        changed(BACKEND, BACKEND + 'identity = "xclient"\n'),
        '8: backend.east.identity: must be "native", "proxy-v1", "',
    ),
    (changed("[backend.east]", '[backend."e t"]'), "6: backend.e t: a backend's name must be a word"),
    (
        "backend.east = 1\n" + SMALL.replace("[backend.east]\n" + BACKEND, ""),
        "1: backend.east: must be a table, not 1",
    ),
    # routes
    (
        changed('source = "default"\n', ""),
        '9: route[1].source: missing: write one of "table", "pattern", ',
    ),
    (changed('"default"', "1"), "10: route[1].source: must be a string, not 1"),
    (
        changed('backend = "east"', 'backend = "esat"'),
        "11: route[1].backend: there is no [backend.esat]; did you mean",
    ),
    (changed('backend = "east"', ""), "9: route[1].backend: missing: this source needs it"),
    (
        SMALL + '[[route]]\nsource = "table"\nfile = "passwd"\n',
        "14: route[2].file: passwd:1: the backend is missing",
    ),
    # the rest
    (SMALL + "[limits]\nconnections = -1\n", "13: limits.connections: must be 0 or more, not -1"),
    (SMALL + "[limits]\nconnections = 1.0\n", "13: limits.connections: must be a whole number, not 1.0"),
    (
        SMALL + "[limits]\nidle_timeout = true\n",
        "13: limits.idle_timeout: must be a number of seconds, not true",
    ),
    (SMALL + "[limits]\nidle_timeout = nan\n", "13: limits.idle_timeout: must be a finite number, not nan"),
    (SMALL + "[limits]\nidle_timeout = inf\n", "13: limits.idle_timeout: must be a finite number, not inf"),
    (SMALL + '[user_names]\ndefault_domain = "@x"\n', "13: user_names.default_domain: must be a domain"),
    (
        SMALL + "[user_names]\ndefault_domain = 1\n",
        "13: user_names.default_domain: must be a string in quotes, not 1",
    ),
    (SMALL + "[user_names]\nlower = 1\n", "13: user_names.lower: unknown key"),
    (
        SMALL + '[[certificate]]\nchain = "cert.pem"\n',
        '12: certificate[1].key: missing: write for example key = "key',
    ),
    (
        SMALL + '[[certificate]]\nchain = "key.pem"\nkey = "key.pem"\n',
        "13: certificate[1].chain: key.pem holds no ce",
    ),
    (
        SMALL + '[[certificate]]\nchain = "cert.pem"\nkey = "ca.pem"\n',
        "14: certificate[1].key: ca.pem holds no private",
    ),
    (
        SMALL + '[[certificate]]\nchain = "ca.pem"\nkey = "key.pem"\n',
        "14: certificate[1].key: key.pem does not belong",
    ),
]


@pytest.mark.parametrize(("text", "expected"), ONE, ids=[expected[:45] for _, expected in ONE])
def test_one_mistake(errors: Errors, text: str, expected: str) -> None:
    """Each mistake is told with its line, its key, what is wrong and what to do."""
    assert any(line.startswith(f"mailroute.toml:{expected}") for line in errors(text)), errors(text)


TLS = SMALL.replace('"none"', '"tls"') + '[[certificate]]\nchain = "cert.pem"\nkey = "key.pem"\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            TLS.replace('"tls"\n', '"tls"\ncleartext_login = true\n'),
            "5: listen[1].cleartext_login: means nothing",
        ),
        (
            TLS.replace("tcp:143", "ssl:993:privateKey=key.pem:certKey=cert.pem"),
            "3: listen[1].endpoint: does TLS by itself",
        ),
    ],
)
def test_what_makes_no_sense_with_tls(errors: Errors, text: str, expected: str) -> None:
    """A key that TLS makes void is an error, and so is TLS inside TLS."""
    assert errors(text) == [error for error in errors(text) if f"mailroute.toml:{expected}" in error]


@pytest.mark.parametrize("login", ["master", "none"])
def test_nobody_gets_in_unchecked(errors: Errors, load: Load, login: str) -> None:
    """A backend that lets mailroute in without the user's password needs somebody who checks it before."""
    master = 'master_user = "root"\nmaster_password_file = "master.txt"\n' if login == "master" else ""
    text = SMALL.replace(BACKEND, f'{BACKEND}login = "{login}"\n{master}')
    (error,) = errors(text)
    assert error.startswith(
        f'mailroute.toml:1: listen[1].authenticate: missing, and [backend.east] has login = "{login}"'
    )
    assert "anybody would get in unchecked" in error
    assert load(text.replace(LISTEN, LISTEN + 'authenticate = "file:passwd"\n'))


def test_one_mistake_makes_no_other_look_wrong(errors: Errors) -> None:
    """A backend or a certificate that is wrong in itself is not missing as well."""
    text = TLS.replace('"tcp:10.0.0.1:143"', '"x"').replace('chain = "cert.pem"', 'chain = "x"')
    assert [error.split(": ")[1] for error in errors(text)] == ["backend.east.imap", "certificate[1].chain"]


def test_an_error_is_one_line(errors: Errors) -> None:
    """Whatever the file says is repeated without what would break the line or steer a terminal."""
    assert errors(SMALL.replace('"none"', r'"a\nb\u001bc"')) == [
        'mailroute.toml:4: listen[1].security: must be "starttls", "tls" or "none", not "a\ufffdb\ufffdc"'
    ]


def test_a_checkers_password_is_not_told(errors: Errors) -> None:
    """A strcred string may hold a password: an error about it does not."""
    (error,) = errors(SMALL.replace(LISTEN, LISTEN + 'authenticate = "memory:hunter2"\n'))
    assert "hunter2" not in error
    assert 'the checker "memory" does not take what follows it' in error


# --- files that cannot be read ----------------------------------------------------------


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """No file, no traceback: the error names it."""
    with pytest.raises(ConfigError) as error:
        config.load(tmp_path / "mailroute.toml", MemoryReactorClock())
    assert str(error.value) == f"{tmp_path}/mailroute.toml: cannot be read: No such file or directory"


def test_a_file_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    """A file in another encoding is named with the line where that shows."""
    (tmp_path / "mailroute.toml").write_bytes(b"# one\n# caf\xe9\n")
    with pytest.raises(ConfigError) as error:
        config.load(tmp_path / "mailroute.toml", MemoryReactorClock())
    assert str(error.value) == f"{tmp_path}/mailroute.toml:2: is not UTF-8: save it as UTF-8"


@contextlib.contextmanager
def not_as_root() -> Iterator[None]:
    """Root may read everything, so be nobody for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_unreadable_key_is_told(folder: Path) -> None:
    """A key that this user may not read is named, with the system's reason."""
    with tempfile.TemporaryDirectory() as open_to_all:
        here = shutil.copytree(folder, Path(open_to_all) / "there")
        here.parent.chmod(0o755)
        (here / "mailroute.toml").write_text(CONTRACT)
        for path in (here, *here.iterdir()):
            path.chmod(0o755)
        (here / "key.pem").chmod(0)
        with (
            not_as_root(),
            pytest.raises(ConfigError, match=r"certificate\[1\]\.key: cannot read .*Permission denied"),
        ):
            config.load(here / "mailroute.toml", MemoryReactorClock())


TOKENS = """\
[[listen]]
protocol = "imap"
endpoint = "tcp:143"
security = "none"
authenticate = "file:users"
[backend.east]
imap = "tcp:10.0.0.1:143"
login = "oauth2"
[backend.east.oauth2]
token_url = "https://login.example.com/token"
client_id = "mailroute"
grant = "refresh_token"
token_folder = "shut/tokens"
token_key_file = "token-key"
[[route]]
source = "default"
backend = "east"
"""


@pytest.mark.parametrize(
    ("shut", "modes", "why"),
    [
        (0o755, 0o500, r"token_folder: cannot write into .*/tokens: give it to the user that runs mailroute"),
        (0, 0o700, r"token_folder: cannot look at .*/tokens: Permission denied"),
    ],
)
def test_a_folder_of_tokens_that_cannot_be_written_is_told(shut: int, modes: int, why: str) -> None:
    """A new refresh token that could not be kept would lock its user out: that is found before the start."""
    with tempfile.TemporaryDirectory() as open_to_all:
        here = Path(open_to_all)
        here.chmod(0o755)
        (here / "mailroute.toml").write_text(TOKENS)
        (here / "token-key").write_bytes(base64.b64encode(b"\xff" * 32) + b"\n")
        (here / "users").write_text("alice:secret\n")
        (here / "shut" / "tokens").mkdir(parents=True)
        if os.geteuid() == 0:
            for path in (here / "users", here / "token-key", here / "shut", here / "shut" / "tokens"):
                os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
        (here / "shut" / "tokens").chmod(modes)
        (here / "shut").chmod(shut)
        try:
            with not_as_root(), pytest.raises(ConfigError, match=why):
                config.load(here / "mailroute.toml", MemoryReactorClock())
        finally:
            (here / "shut").chmod(0o755)


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    """Whatever keeps the file from being read is told as the system says it."""
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.load(tmp_path, MemoryReactorClock())


@pytest.mark.parametrize("number", ["-1", "1001", '"many"', "true"])
def test_how_many_connections_are_kept_ready(errors: Errors, number: str) -> None:
    """A number of connections that cannot be is named with what can."""
    text = SMALL.replace('10.0.0.1:143"\n', f'10.0.0.1:143"\nsecurity = "none"\nwarm = {number}\n')
    assert errors(text) == [
        f"mailroute.toml:9: backend.east.warm: must be a number from 0 to 1000, not {number}"
    ]


def test_connections_kept_ready_can_name_no_client(errors: Errors) -> None:
    """A PROXY header comes first and names the client, so no connection can be made before there is one."""
    text = SMALL.replace(
        '10.0.0.1:143"\n', '10.0.0.1:143"\nsecurity = "none"\nwarm = 1\nidentity = "proxy-v2"\n'
    )
    assert errors(text) == [
        'mailroute.toml:9: backend.east.warm: cannot go with identity = "proxy-v2", whose header names the '
        'client before anything else: remove one, or use identity = "native"'
    ]
