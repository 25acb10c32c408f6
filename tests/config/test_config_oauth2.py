"""The table ``[backend.NAME.oauth2]``: what is taken, what is refused with which words, and what is told."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from mailroute.config import Settings, describe
from mailroute.config.oauth2 import GrantType
from mailroute.config.reading import load_backend, reread
from mailroute.events import Change, Method

Load = Callable[[str], Settings]
Errors = Callable[[str], list[str]]

TEXT = """\
[[listen]]
protocol = "imap"
endpoint = "tcp:143"
security = "none"
authenticate = "file:passwd"
[backend.east]
imap = "tcp:10.0.0.1:143"
login = "oauth2"
[backend.east.oauth2]
token_url = "https://login.example.com/token"
client_id = "mailroute"
client_secret_file = "master.txt"
[[route]]
source = "default"
backend = "east"
"""

PERSONAL = TEXT.replace(
    "[[route]]", 'grant = "refresh_token"\ntoken_folder = "tokens"\ntoken_key_file = "key"\n[[route]]'
)


@pytest.fixture
def folder(folder: Path) -> Path:
    (folder / "tokens").mkdir()
    (folder / "key").write_bytes(base64.b64encode(b"\xff" * 32) + b"\n")
    return folder


def test_tokens_come_from_a_table(load: Load, folder: Path) -> None:
    """The files are read from the configuration's folder, and no secret is in a repr."""
    settings = load(PERSONAL)
    block = settings.backends["east"]
    assert block.login is Method.OAUTH2
    assert block.oauth2 is not None
    assert (block.oauth2.grant, block.oauth2.token_folder) == (GrantType.REFRESH_TOKEN, folder / "tokens")
    assert block.oauth2.client_secret_file is not None
    assert block.oauth2.client_secret_file.value == b"hunter2"
    assert "hunter2" not in f"{settings!r} {settings}"


def test_what_it_does_is_told(load: Load, folder: Path) -> None:
    """A person reads where tokens come from and where they are kept."""
    told = "\n".join(describe(load(PERSONAL)))
    assert (
        f"logs in with a token of each user's from https://login.example.com/token, kept in {folder}/tokens"
    ) in told
    assert "hunter2" not in told
    assert "logs in with a token of its own" in "\n".join(describe(load(TEXT)))


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("https:", "http:", "10: backend.east.oauth2.token_url: must be an https:// address, or an http://"),
        (
            '"https://login.example.com/token"',
            '"https://[::1/"',
            "10: backend.east.oauth2.token_url: must be",
        ),
        (
            'client_id = "mailroute"',
            "",
            "9: backend.east.oauth2.client_id: missing: write for example client",
        ),
        ("[[route]]", 'scop = "x"\n[[route]]', "13: backend.east.oauth2.scop: unknown key; did you mean"),
        (
            "client_id =",
            'grant = "x"\nclient_id =',
            '11: backend.east.oauth2.grant: must be "client_credentia',
        ),
        ('client_secret_file = "master.txt"', "", "9: backend.east.oauth2.client_secret_file: missing: gr"),
        ("[[route]]", "timeout = 0\n[[route]]", "13: backend.east.oauth2.timeout: "),
        (
            "[[route]]",
            'grant = "refresh_token"\n[[route]]',
            "9: backend.east.oauth2.token_folder: missing: g",
        ),
        ("[[route]]", 'token_folder = "tokens"\n[[route]]', "9: backend.east.oauth2.token_key_file: missing"),
        (
            "[[route]]",
            'token_key_file = "key"\n[[route]]',
            "13: backend.east.oauth2.token_key_file: means not",
        ),
        (
            "[[route]]",
            'token_folder = "x"\n[[route]]',
            "13: backend.east.oauth2.token_folder: there is no folder",
        ),
        (
            "[[route]]",
            'token_folder = "tokens"\ntoken_key_file = "master.txt"\n[[route]]',
            "14: backend.east.oauth2.token_key_file: master.txt: the first line must be 32 bytes in base64",
        ),
        (
            "[[route]]",
            'token_folder = "tokens"\ntoken_key_file = "/dev/null"\n[[route]]',
            "14: backend.east.oauth2.token_key_file: /dev/null: the first line must be 32 bytes in base64",
        ),
        (
            "[[route]]",
            'token_folder = "tokens"\ntoken_key_file = "/none"\n[[route]]',
            "14: backend.east.oauth2.token_key_file: cannot read /none: No such file",
        ),
        ('login = "oauth2"\n', "", '8: backend.east.oauth2: means nothing with login = "replay"'),
        (
            TEXT[TEXT.index("[backend.east.oauth2]") : TEXT.index("[[route]]")],
            "",
            '6: backend.east.oauth2: missing: login = "oauth2" needs [backend.NAME.oauth2]',
        ),
        (
            'authenticate = "file:passwd"\n',
            "",
            '1: listen[1].authenticate: missing, and [backend.east] has login = "oauth2"',
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_does_not_go_is_told(errors: Errors, old: str, new: str, error: str) -> None:
    """Each mistake is told once, with its line, its key and what to do."""
    assert old in TEXT
    (said,) = errors(TEXT.replace(old, new, 1))
    assert said.startswith(f"mailroute.toml:{error}")
    assert "hunter2" not in said


def test_a_loopback_server_may_be_in_the_clear(load: Load) -> None:
    """What does not leave the machine needs no TLS."""
    assert load(TEXT.replace("https://login.example.com", "http://127.0.0.1:8080"))


def test_workers_get_the_same(load: Load, folder: Path) -> None:
    """What was read is enough when the files of secrets are gone."""
    first = load(f"workers = 2\n{PERSONAL}")
    source = pickle.loads(pickle.dumps(first.source))  # noqa: S301
    for name in ("master.txt", "key"):
        (folder / name).unlink()
    one, other = reread(source, None).backends["east"].oauth2, first.backends["east"].oauth2
    assert one is not None
    assert other is not None
    assert one.client_secret_file == other.client_secret_file
    assert one.token_key_file is not None
    assert other.token_key_file is not None
    assert one.token_key_file.decrypt(other.token_key_file.encrypt(b"x")) == b"x"


def test_a_route_may_want_it_otherwise(load: Load) -> None:
    """A route may replay at such a backend, and cannot want tokens where none come from."""
    block = load(TEXT).backends["east"]
    assert block.changed(Change(login=Method.REPLAY)).login is Method.REPLAY
    plain = load(TEXT[: TEXT.index("login")] + TEXT[TEXT.index("[[route]]") :]).backends["east"]
    with pytest.raises(ValueError, match="oauth2"):
        plain.changed(Change(login=Method.OAUTH2))


def test_a_look_at_a_backend_reads_no_secret(load: Load, folder: Path) -> None:
    """Whoever only looks at the server needs neither password nor key."""
    load(PERSONAL)
    for name in ("master.txt", "key"):
        (folder / name).unlink()
    found = load_backend(folder / "mailroute.toml", "east", None)
    assert found is not None
    assert found.login is Method.OAUTH2
