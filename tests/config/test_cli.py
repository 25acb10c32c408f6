"""The command ``mailroute``."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import jsonschema
import pytest
from config.texts import CONTRACT, SMALL

import mailroute
from mailroute.cli import main


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the mailroute that is tested, wherever it is."""
    environment = os.environ | {"PYTHONPATH": str(Path(mailroute.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def check(file: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run("-W", "error", "-m", "mailroute.cli", "check", file, folder=folder)


def test_check_says_what_a_file_will_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is right is described on standard output, and the status is 0."""
    (folder / "mailroute.toml").write_text(CONTRACT)
    assert main(["check", str(folder / "mailroute.toml")]) == 0
    out, err = capsys.readouterr()
    assert "Listens for imap on tcp:143" in out
    assert "Route 3: everybody lives at east." in out
    assert not err


def test_check_says_every_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is wrong gives a line an error on standard error, and the status is 1."""
    (folder / "mailroute.toml").write_text(SMALL.replace("tcp:143", "tcp:x").replace('"none"', '"ssl"'))
    assert main(["check", str(folder / "mailroute.toml")]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert [line.partition("mailroute.toml:")[2][:22] for line in err.splitlines()] == [
        "3: listen[1].endpoint:",
        "4: listen[1].security:",
    ]


def test_the_command_as_a_program(folder: Path) -> None:
    """Run by itself it says the same, names the file as it was named, and shows no traceback or warning."""
    (folder / "mailroute.toml").write_text(SMALL)
    right = check("mailroute.toml", folder)
    assert (right.returncode, right.stderr) == (0, "")
    (folder / "mailroute.toml").write_text(SMALL.replace("none", "ssl"))
    wrong = check("mailroute.toml", folder)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert (
        wrong.stderr
        == 'mailroute.toml:4: listen[1].security: must be "starttls", "tls" or "none", not "ssl"\n'
    )
    missing = check("nowhere.toml", folder)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "nowhere.toml: cannot be read: No such file or directory\n"


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """It tells its version."""
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("mailroute ")


def test_the_usual_file_is_looked_at_by_all(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command takes --config, and mailroute.toml without; where that is not there, it says so."""
    monkeypatch.chdir(folder)
    (folder / "mailroute.toml").write_text(SMALL)
    (folder / "other.toml").write_text(SMALL.replace("tcp:143", "tcp:1143"))
    for line, port in (
        ([], 143),
        (["mailroute.toml"], 143),
        (["other.toml"], 1143),
        (["--config", "other.toml"], 1143),
    ):
        assert main(["check", *line]) == 0
        assert f"Listens for imap on tcp:{port}:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["check", "mailroute.toml", "--config", "other.toml"])
    capsys.readouterr()
    (folder / "mailroute.toml").unlink()
    for line in (["check"], ["route", "alice"], ["token", "alice"]):
        assert main(line) == 1
        said = capsys.readouterr().err
        assert said == "mailroute.toml: there is none in this folder: name it, with --config FILE\n"


@pytest.mark.parametrize("line", [[], ["mailroute.toml"], ["run"]])
def test_who_wants_to_run_it_is_told_how(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Who gives no command is told that, and what runs mailroute."""
    with pytest.raises(SystemExit) as end:
        main(line)
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith("\nTo run mailroute: twistd -n mailroute --config FILE\n")


def test_a_wrong_command_line_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command there is a usage message, and how mailroute is run."""
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert "usage: mailroute" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "twistd -n mailroute --config FILE" in capsys.readouterr().out


def test_reading_settings_takes_no_reactor(folder: Path) -> None:
    """Importing the configuration installs no reactor: a host program still chooses its own."""
    code = "import sys, mailroute.config, mailroute.cli; sys.exit('twisted.internet.reactor' in sys.modules)"
    ended = run("-c", code, folder=folder)
    assert (ended.returncode, ended.stderr) == (0, "")


def routed(folder: Path) -> Path:
    """Write a configuration with a table before everybody else, and return its file."""
    file = folder / "mailroute.toml"
    file.write_text(
        SMALL.replace("[[route]]", '[[route]]\nsource = "table"\nfile = "bob.txt"\n\n[[route]]', 1)
    )
    (folder / "bob.txt").write_text("bob east b.smith\n")
    return file


def test_route_says_where_an_account_lives(folder: Path) -> None:
    """As text: who was asked, what they said, and how one would be logged in; the status is 0."""
    routed(folder)
    said = run("-W", "error", "-m", "mailroute.cli", "route", "alice", folder=folder)
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0] == "alice (imap)"
    assert re.fullmatch(r"  route\[1\] \(table\): unknown in [\d.]+ ms", lines[1])
    assert re.fullmatch(r"  route\[2\] \(default\): route in [\d.]+ ms", lines[2])
    assert lines[3].startswith(
        "lives at east: tcp:10.0.0.1:143, security starttls, identity native, login replay"
    )
    assert lines[3].endswith("as alice")
    assert not said.stderr


def test_route_as_json(folder: Path) -> None:
    """The same as JSON, for programs."""
    file = routed(folder)
    said = run("-m", "mailroute.cli", "route", "bob", "--json", "--config", str(file), folder=folder.parent)
    answer = json.loads(said.stdout)
    schema = Path(__file__).parents[2] / "docs" / "route.schema.json"
    jsonschema.validate(answer, json.loads(schema.read_text(encoding="utf-8")))
    assert answer["asked"][0]["outcome"] == "route"
    assert answer["places"][0]["user"] == "b.smith"
    assert answer["refused"] is None


def test_route_asks_a_database(folder: Path) -> None:
    """A source that asks in threads of its own answers here as it does in a running mailroute."""
    with closing(sqlite3.connect(folder / "users.db")) as users, users:
        users.execute("create table users (name text, host text)")
        users.execute("insert into users values ('bob', 'east')")
    database = 'database = "sqlite:users.db"\ntimeout = 10\n'
    query = 'query = "select host as backend from users where name = :user"\n'
    route = f'[[route]]\nsource = "sql"\n{database}{query}\n[[route]]'
    (folder / "mailroute.toml").write_text(SMALL.replace("[[route]]", route, 1))
    said = run("-W", "error", "-m", "mailroute.cli", "route", "bob", folder=folder)
    assert "route[1] (sql): route in" in said.stdout
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["bob\n"], 2, "not a user name"),
        (["bob", "--protocol", "lmtp"], 2, 'no listener speaks "lmtp"'),
        (["bob", "--config", "missing.toml"], 1, "missing.toml: cannot be read"),
        (["bob", "--client", "nowhere"], 2, "'nowhere' is no IP address, such as 192.0.2.1"),
        (["bob", "--password-file", "missing"], 2, "cannot read missing: No such file"),
    ],
)
def test_route_says_what_is_wrong(folder: Path, arguments: list[str], status: int, says: str) -> None:
    """A question that makes no sense, and a configuration that is wrong, are told without a traceback."""
    routed(folder)
    said = run("-m", "mailroute.cli", "route", *arguments, folder=folder)
    assert said.returncode == status
    assert says in said.stderr
    assert "Traceback" not in said.stderr
    assert not said.stdout
