"""README.md and the manual: every command is typed, every example run, every key that they name there."""

from __future__ import annotations

import base64
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum
from pathlib import Path

import pytest
import twistd
from pydantic import BaseModel
from readme import ROOT, TEXT, Block, Terminal, blocks, code, headings, pages, place, section, tables
from servers.processes import free_port, wait_until
from servers.programs import SEARCH, nginx_module, program
from twisted.logger import eventAsText, globalLogPublisher

from mailroute import authenticators, routers
from mailroute.authenticators import hashes
from mailroute.config import Backend, Certificate, Limits, Listener, Settings, load, sourced
from mailroute.config.metrics import Metrics
from mailroute.config.models import UserNamesTable
from mailroute.config.oauth2 import OAuth2
from mailroute.config.values import MAX_WORKERS
from mailroute.demo.certificate import self_signed
from mailroute.events import Reason, Refusal
from mailroute.networks import Networks
from mailroute.record import SessionRecord
from mailroute.routers.answers import FIELDS, FORWARD, REFUSALS
from mailroute.sources.options import CHECKED, SlowOptions
from mailroute.testing import CLIENT
from mailroute.workers import supervisor

# --- what is typed ----------------------------------------------------------

PORTS = re.compile(r"\b(?:10143|20143|1143|1993|2143|8143|9317)\b")

ELSEWHERE = {
    "make demo\n": "tests/test_demo.py and tests/test_demo_installed.py run what it runs",
    "make test\n": "it is what runs this test",
    "make PYTHON=python3.13 test\n": "it is what runs this test, if there is such a Python",
}
"""The commands that are not run here, and why."""


class Reader:
    """Somebody who types all that stands there, in a copy of the tree and on ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "mailroute"
        self.trial = self.tree / "trial"
        unwanted = (
            ".git",
            ".*cache",
            ".venv*",
            ".hypothesis",
            "__pycache__",
            "dropin.cache",
            "trial",
            "build",
        )
        shutil.copytree(ROOT, self.tree, ignore=shutil.ignore_patterns(*unwanted))
        ports = {port: str(free_port()) for port in set(PORTS.findall(TEXT))}
        self.text = PORTS.sub(lambda found: ports[found[0]], TEXT)
        notes = folder / "notes"
        notes.mkdir()
        known = ("HOME", "LANG", "LC_", "PATH", "PIP_", "SSL_", "TMPDIR")
        env = {name: os.environ[name] for name in os.environ if name.startswith(known)}
        # The shell finds its python3 by name; for make it is the one that runs this test.
        env["PYTHON"] = sys.executable
        self.first = Terminal("first", self.tree, notes, env)
        self.second = Terminal("second", self.tree, notes, env)

    def do(self, block: Block) -> None:
        """Do what a block asks for."""
        if block.comment.startswith("Ctrl-C"):
            self.second.interrupt()
        terminal = self.second if block.comment == "second terminal" else self.first
        match block.language:
            case "sh" if block.text not in ELSEWHERE:
                self._type(terminal, block)
            case "text":
                self._see(terminal, block)
            case "python":
                self._save(block)

    def _type(self, terminal: Terminal, block: Block) -> None:
        if terminal is self.second:
            terminal.type(block.text)
            return
        status = terminal.run(block.text)
        said = terminal.output.text()
        assert status == 0, f"{place(block.line)}:\n{block.text}\nsays:\n{said}\n{self._logs()}"
        self._wait_for_daemon(ends="kill " in block.text)

    def _see(self, terminal: Terminal, block: Block) -> None:
        def logged() -> bool:
            return terminal.shows(block.text)

        with suppress(AssertionError):
            wait_until("what is shown", logged, 20 if terminal is self.second else 0)
        where = place(block.line)
        assert logged(), (
            f"{where} shows\n{block.text}\nand there is\n{terminal.output.text()}\n{self._logs()}"
        )

    def _save(self, block: Block) -> None:
        """Save an example under the name in its first line; run it here if nobody else does."""
        name = re.match(r"# (\S+)\n", block.text)[1]
        path = self.trial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        if name.startswith("test_"):
            self._type(self.first, Block("sh", f"python3 -W error {name}\n", block.line))

    def _wait_for_daemon(self, ends: bool) -> None:
        """People type slowly enough for a daemon to get ready, or to end."""
        pid_file = self.trial / "twistd.pid"
        if ends:
            wait_until("the daemon's end", lambda: not pid_file.exists())
        elif pid_file.exists():
            pid = int(pid_file.read_text())
            wait_until("twistd's start", lambda: twistd.catches_signals(pid))

    def _logs(self) -> str:
        return "\n".join(
            f"--- {path}\n{path.read_text()}"
            for path in [*self.trial.glob("*.log"), *self.trial.glob("*/log"), self.second.output.path]
            if path.is_file()
        )

    def leave(self) -> None:
        """End whatever may still run."""
        self.first.close()
        self.second.close()
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.trial / "twistd.pid").read_text()), signal.SIGTERM)
        for private in self.trial.glob("*/private"):
            subprocess.run([self.tree / "examples" / "dovecot" / "stop", private.parent], check=True)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    for name, package in (("bash", "bash"), ("make", "make"), ("curl", "curl"), ("openssl", "openssl")):
        program(name, package)
    program("dovecot", "dovecot-imapd")
    reader = Reader(tmp_path)
    try:
        yield reader
    finally:
        reader.leave()


@pytest.mark.integration
def test_every_command_works_as_it_stands(reader: Reader) -> None:
    """Whoever types all of it from beginning to end sees what is shown, and leaves nothing behind."""
    before = {path.name for path in reader.tree.iterdir()}
    for block in blocks(reader.text):
        reader.do(block)
    assert {path.name for path in reader.tree.iterdir()} - before == {".venv"}


def test_what_is_not_run_here_is_there() -> None:
    """The commands that this test leaves to others are there."""
    assert set(ELSEWHERE) <= {block.text for block in blocks(TEXT, "sh")}


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    """A block is typed, compared, run or read by one of these tests; what needs root is marked console."""
    assert {block.language for block in blocks(TEXT)} == {
        *(
            "sh",
            "text",
            "python",
            "toml",
            "conf",
            "log",
            "ini",
            "mermaid",
            "console",
            "haproxy",
            "nginx",
            "redis",
            "sql",
            "yaml",
        )
    }
    assert TEXT.count("\n```") == 2 * len(blocks(TEXT))
    assert len(blocks(TEXT, "console")) == 4


def anchors(text: str) -> list[str]:
    """Return by what the headings of a page can be linked to."""
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for _, _, heading in headings(text)]


@pytest.mark.parametrize(
    ("page", "target"),
    [
        (page, target)
        for page, text in pages().items()
        for target in dict.fromkeys(re.findall(r"\]\((?!https:)([^)]+)\)", text))
    ],
)
def test_every_link_leads_somewhere(page: str, target: str) -> None:
    """Links into the tree and to headings are right, on whatever page."""
    path, _, anchor = target.partition("#")
    there = (ROOT / page).parent / path if path else ROOT / page
    assert there.exists()
    if anchor:
        assert anchors(there.read_text(encoding="utf-8")).count(anchor) == 1


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:examples|tests|tools)/[\w./-]+)`", TEXT))))
def test_every_file_named_is_there(path: str) -> None:
    """Files of the tree are called by their names."""
    assert (ROOT / path).exists()


# --- configurations ---------------------------------------------------------

BASE = {
    "certificate": '[[certificate]]\nchain = "cert.pem"\nkey = "key.pem"\n',
    "listen": '[[listen]]\nprotocol = "imap"\nendpoint = "tcp:143"\n',
    "backend": '[backend.east]\nimap = "tcp:east.example.com:143"\n',
    "route": '[[route]]\nsource = "default"\nbackend = "east"\n',
}
"""What an example that is a part of a configuration goes with."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files that the examples name."""
    chain, key = self_signed()
    for name in ("cert.pem", "ca.pem"):
        (tmp_path / name).write_bytes(chain)
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "users.txt").write_text("alice@example.com east\n")
    (tmp_path / "passwd").write_text("alice@example.com:wonderland\n")
    (tmp_path / "master-password").write_text("hush\n")
    (tmp_path / "oauth-secret").write_text("hush\n")
    (tmp_path / "token-key").write_bytes(base64.b64encode(bytes(32)))
    (tmp_path / "tokens").mkdir()
    (tmp_path / "hashes").write_text("alice@example.com:{PLAIN}wonderland\n")
    (tmp_path / "users.db").touch()
    (tmp_path / "popmap").write_text("alice:a.smith@10.0.0.5:1143\n")
    (tmp_path / "where.py").touch(0o755)
    (tmp_path / "database.secret").write_text("secret\n")
    (tmp_path / "searcher.secret").write_text("secret\n")
    (tmp_path / "redis-password").write_text("a secret\n")
    (tmp_path / "users.passwd").write_text("alice:x:::::: proxy=y host=10.0.0.5 destuser=a.smith\n")
    return tmp_path


@pytest.mark.parametrize("block", blocks(TEXT, "toml"), ids=lambda block: f"line {block.line}")
def test_every_configuration_is_right(block: Block, folder: Path) -> None:
    """A configuration, or a part of one, is taken without a complaint."""
    from twisted.internet import reactor

    there = tomllib.loads(block.text)
    rest = "".join(text for key, text in BASE.items() if key not in there)
    (folder / "mailroute.toml").write_text(f"{block.text}\n{rest}")
    load(folder / "mailroute.toml", reactor)


@pytest.mark.integration
def test_every_setting_of_dovecot_is_one(tmp_path: Path) -> None:
    """Dovecot takes the settings that are for every version or for the one that is here."""
    doveconf = program("doveconf", "dovecot-core")
    version = subprocess.run(
        [program("dovecot", "dovecot-imapd"), "--version"], capture_output=True, text=True, check=True
    )
    release = re.match(r"(\d+\.\d+)\.\d+", version.stdout)
    versions = f"dovecot_config_version = {release[0]}\ndovecot_storage_version = {release[0]}\n"
    path = tmp_path / "dovecot.conf"
    for block in blocks(TEXT, "conf"):
        wanted = re.match(r"# Dovecot (\d+\.\d+)\n", block.text)
        if wanted is None or wanted[1] == release[1]:
            path.write_text((versions if release[1] != "2.3" else "") + f"ssl = no\n{block.text}")
            read = subprocess.run(
                [doveconf, "-n", "-c", path],
                capture_output=True,
                text=True,
                env={"PATH": SEARCH},
                check=False,
            )
            assert read.returncode == 0, read.stderr
            settings = re.findall(r"^ *([a-z_0-9]+) = (.*)$", block.text, re.MULTILINE)
            assert settings
            for key, value in settings:
                assert re.search(rf"^ *{key} = {re.escape(value)}", read.stdout, re.MULTILINE), read.stdout


@pytest.mark.integration
def test_haproxy_takes_its_settings(tmp_path: Path) -> None:
    """What is to be written into HAProxy's configuration is right, and complete enough for no warning."""
    haproxy = program("haproxy", "haproxy")
    for block in blocks(TEXT, "haproxy"):
        (tmp_path / "haproxy.cfg").write_text(block.text)
        checked = subprocess.run(
            [haproxy, "-c", "-f", tmp_path / "haproxy.cfg"], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr
        assert "WARNING" not in checked.stdout + checked.stderr


@pytest.mark.integration
def test_nginx_takes_its_settings(tmp_path: Path) -> None:
    """What is to be written into nginx's configuration is right."""
    nginx = program("nginx", "nginx-light")
    module = f"load_module {nginx_module('stream', 'libnginx-mod-stream')};\nevents {{}}\n"
    for block in blocks(TEXT, "nginx"):
        # It tries whether it may listen.
        text = re.sub(r"listen \d+", f"listen 127.0.0.1:{free_port()}", block.text)
        (tmp_path / "nginx.conf").write_text(f"{module}pid {tmp_path}/pid;\n{text}")
        checked = subprocess.run(
            [nginx, "-t", "-c", tmp_path / "nginx.conf", "-e", tmp_path / "log"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr


MODELS = {
    "`[[certificate]]`": Certificate,
    "`[[listen]]`": Listener,
    "`[backend.NAME]`": Backend,
    "`[backend.NAME.oauth2]`": OAuth2,
    "`[limits]`": Limits,
    "`[user_names]`": UserNamesTable,
    "`[metrics]`": Metrics,
}

NEW = {
    Listener: Listener(protocol="imap", endpoint="tcp:143"),
    Backend: Backend(endpoints={"imap": "tcp:10.0.0.1:143"}),
}
"""Blocks that say as little as possible: some defaults depend on the protocol."""


def rows(heading: str) -> dict[str, list[str]]:
    """Return the rows of the only table under a heading, by the keys that they describe."""
    [table] = tables(section(TEXT, heading))
    return {code(row[0]): row[1:] for row in table}


def fields(model: type[BaseModel]) -> dict[str, str]:
    """Return a model's fields by the keys that stand for them in the file."""
    return {"imap" if name == "endpoints" else name: name for name in model.model_fields}


@pytest.mark.parametrize(
    ("heading", "model"), MODELS.items(), ids=[model.__name__ for model in MODELS.values()]
)
def test_the_reference_has_every_key(heading: str, model: type[BaseModel]) -> None:
    """The tables name the keys that the configuration has, and no others."""
    assert list(rows(heading)) == list(fields(model))


@pytest.mark.parametrize(
    ("heading", "model", "key"),
    [(heading, model, key) for heading, model in MODELS.items() for key in fields(model)],
    ids=[f"{model.__name__}-{key}" for model in MODELS.values() for key in fields(model)],
)
def test_the_reference_has_every_default(heading: str, model: type[BaseModel], key: str) -> None:
    """The tables say of each key whether it is required, or what it is if it is not given."""
    *_, said = rows(heading)[key]
    field = model.model_fields[fields(model)[key]]
    if field.is_required() or key == "imap":
        assert said == "required"
        return
    default = getattr(NEW[model], key) if model in NEW else field.default
    if default is None or default == "":
        assert code(said) is None
        assert said not in ("", "required")
        return
    default = default.value if isinstance(default, Enum) else () if default == Networks() else default
    assert tomllib.loads(f"key = {code(said)}")["key"] == (
        list(default) if isinstance(default, tuple) else default
    )


@pytest.mark.parametrize(
    ("heading", "key", "choices"),
    [
        (heading, key, [choice.value for choice in model.model_fields[key].annotation])
        for heading, model in MODELS.items()
        for key in model.model_fields
        if isinstance(model.model_fields[key].annotation, type)
        and issubclass(model.model_fields[key].annotation, Enum)
    ]
    + [("`[[listen]]`", "mechanisms", list(NEW[Listener].protocol.mechanisms))],
)
def test_the_reference_has_every_choice(heading: str, key: str, choices: list[str]) -> None:
    """Where a key takes one of some words, the tables name them all."""
    _, values, _ = rows(heading)[key]
    assert re.findall(r'`"([^"]*)"`', values) == choices


def test_the_reference_has_every_table() -> None:
    """There is a section for each table that the file may have; the tables in tables are among `MODELS`."""
    said = re.findall(r"^## `\[+(\w+)(?:\.NAME)?\]", section(TEXT, "Configuration"), re.MULTILINE)
    from mailroute.config.reading import _TABLES

    # A table may have one of its own inside it.
    assert list(dict.fromkeys(said)) == list(_TABLES)


def test_the_reference_has_every_key_of_the_top_level() -> None:
    """What may stand above the first table is listed, with its bound and its default."""
    from mailroute.config.reading import _KEYS

    [table] = tables(section(TEXT, "Top level"))
    assert [code(row[0]) for row in table] == list(_KEYS)
    _, _, values, default = table[0]
    assert f"from 1 to {MAX_WORKERS}" in values
    assert int(code(default)) == Settings.model_fields["workers"].default


def test_what_is_said_of_workers_is_so() -> None:
    """The times that the section on workers names are the program's."""
    text = section(TEXT, "Workers")
    assert f"within {supervisor.STOP_TIMEOUT:g} seconds" in text
    assert (supervisor.STEADY, supervisor.FIRST_DELAY) == (60, 1)
    assert f"1 second, 2, 4 and so on, up to {supervisor.LONGEST_DELAY:g}." in text


SLOW = "Sources that ask elsewhere"


def keys_of(source: str) -> list[str]:
    """Return the keys that a kind of route says it has."""
    with pytest.raises(routers.BadOption) as error:
        routers.source(source).router({"0": 0}, routers.SourceContext(Path(), frozenset(), str, None, None))
    return error.value.message.removeprefix("unknown key; known: ").split(", ")


def test_the_reference_has_every_route() -> None:
    """The kinds of routes and their keys are those that there are."""
    text = section(TEXT, "`[[route]]`")
    [kinds, forgiving], *quick = tables(text)
    elsewhere = section(TEXT, SLOW)
    common, *_ = tables(elsewhere)
    built_in = [source.name for source in routers._BUILT_IN]
    assert re.findall(r'`"([\w-]+)"`', kinds[2]) == built_in
    assert code(forgiving[0]) == "on_error"
    said = [re.findall(r'^`source = "([\w-]+)"`', each, re.MULTILINE) for each in (text, elsewhere)]
    assert [*said[0], *said[1]] == built_in
    for name, table in zip(said[0], quick, strict=True):
        assert keys_of(name) == sorted(code(row[0]) for row in table)
    for name in said[1]:
        (table,) = tables(section(TEXT, f"`{name}`"))
        assert keys_of(name) == sorted(code(row[0]) for row in (*common, *table))


def at_a_glance() -> dict[str, str]:
    """Return the examples of the table of sources."""
    (table,) = tables(section(TEXT, "Where accounts are"))
    return {
        row[0].split("`")[1]: "".join(f"{line[1:-1]}\n" for line in row[2].split("<br>")) for row in table
    }


def test_all_sources_are_shown_at_a_glance() -> None:
    """The table of sources has all that there are."""
    assert list(at_a_glance()) == [source.name for source in routers._BUILT_IN]


@pytest.mark.parametrize("source", at_a_glance())
def test_every_source_at_a_glance_works(source: str, folder: Path) -> None:
    """Its example is a route: with a line that says which source it is, nothing is missing."""
    from twisted.internet import reactor

    backends = BASE["backend"] + BASE["backend"].replace("east", "west")
    route = f'[[route]]\nsource = "{source}"\n{at_a_glance()[source]}'
    (folder / "mailroute.toml").write_text(BASE["certificate"] + BASE["listen"] + backends + route)
    load(folder / "mailroute.toml", reactor)


def test_the_reference_has_what_slow_sources_have() -> None:
    """The keys of all slow sources, their defaults, and the fields of an answer are those that there are."""
    common, answer, *_ = tables(section(TEXT, SLOW))
    models = SlowOptions.model_fields
    assert [code(row[0]) for row in common] == list(models)
    numbers = [row for row in common if code(row[0]) not in ("per_client", "backend")]
    assert [row[3].split("`")[1] for row in numbers] == [
        f"{models[code(row[0])].default:g}" for row in numbers
    ]
    checked = {code(row[0]): row[3].split("`")[3] for row in numbers if "checked" in row[3]}
    assert checked == {key: f"{value:g}" for key, value in CHECKED.items()}
    named = re.findall(r"`(\w+)`", " ".join(row[0] for row in answer))
    assert sorted(named) == sorted([*FIELDS, f"{FORWARD}NAME"])
    refusals = next(row[1] for row in answer if row[0] == "`refuse`")
    assert set(re.findall(r"`(\w+)`", refusals)) == REFUSALS.keys() - {"unavailable"}


def test_the_reference_has_every_authenticator() -> None:
    """The kinds of authenticators, their keys and the schemes of hashes are those that there are."""
    text = section(TEXT, "`[[authenticate]]`")
    [kinds, on_error], *keys = tables(text)
    built_in = [source.name for source in authenticators._BUILT_IN]
    assert re.findall(r'`"([\w-]+)"`', kinds[2]) == built_in
    assert re.findall(r'`"(\w+)"`', on_error[2]) == list(sourced._ON_ERROR)
    assert re.findall(r'^`source = "([\w-]+)"`', text, re.MULTILINE) == built_in
    (schemes,) = [table for table in keys if code(table[0][0]).startswith("{")]
    keys.remove(schemes)
    assert [code(row[0]).strip("{}") for row in schemes] == list(hashes._SCHEMES)
    beginnings = {
        word: code(row[0]).strip("{}") for row in schemes for word in re.findall(r"`([^`]+)`", row[1])
    }
    for word, scheme in beginnings.items():
        assert hashes._BEGINNINGS[word if word in hashes._BEGINNINGS else "$pbkdf2"] == scheme
    assert {*beginnings, "$pbkdf2"} >= set(hashes._BEGINNINGS)
    context = routers.SourceContext(Path(), frozenset(), str, None, None)
    # Those that are asked like routes have the keys of these, which are listed there.
    own = [name for name in built_in if name not in routers.known() or name == "passwd-file"]
    for name, table in zip(own, keys, strict=True):
        with pytest.raises(routers.BadOption) as error:
            authenticators.source(name).authenticator({"0": 0}, context)
        listed = ", ".join(sorted(code(row[0]) for row in table))
        assert error.value.message == f"unknown key; known: {listed}"


# --- bounds and the log -----------------------------------------------------


@pytest.mark.parametrize("row", tables(section(TEXT, "Security"))[0], ids=lambda row: row[2])
def test_every_bound_is_what_it_says(row: list[str]) -> None:
    """The bounds are the program's."""
    _, said, constant = row
    module, _, name = code(constant).rpartition(".")
    assert float(said) == getattr(importlib.import_module(module), name)


@pytest.fixture
def events() -> Iterator[list[dict[str, object]]]:
    caught: list[dict[str, object]] = []
    globalLogPublisher.addObserver(caught.append)
    yield caught
    globalLogPublisher.removeObserver(caught.append)


LOG = section(TEXT, "The log")


def names(line: str) -> list[str]:
    return re.findall(r"(\w+)=", line)


def test_the_line_of_a_session_is_as_shown(events: list[dict[str, object]]) -> None:
    """The line that a session leaves has the fields that are shown, explained and listed."""
    SessionRecord(CLIENT, "imap tcp:143", 0.0).ended("the client closed the connection", 1.0)
    [event] = events
    assert event["log_namespace"] == "mailroute.session"
    shown, _ = blocks(LOG, "log")
    assert names(shown.text) == names(eventAsText(event))
    assert [code(row[0]) for row in tables(LOG)[0]] == ["session", *names(shown.text)]
    listed = re.search(r"a key for each field:\n(.*)\.\n", LOG)
    assert all(key in event for key in re.findall(r"`(\w+)`", listed[1]))
    assert len(re.findall(r"`(\w+)`", listed[1])) == len(names(shown.text)) + 1


def test_the_line_of_a_failed_login_is_as_shown(events: list[dict[str, object]]) -> None:
    """The line that a failed login leaves has the fields that are shown, and fail2ban can find it."""
    SessionRecord(CLIENT, "imap tcp:143", 0.0, user="a b").refused(
        Refusal(Reason.AUTHENTICATION_FAILED, "the backend said: NO")
    )
    [event] = events
    line = eventAsText(event)
    _, shown = blocks(LOG, "log")
    assert names(shown.text) == names(line)
    [expression] = re.findall(r"^failregex = (.*)$", blocks(LOG, "ini")[0].text, re.MULTILINE)
    found = re.search(expression.replace("<HOST>", r"\[?(?P<host>[0-9a-fA-F:.]+)\]?"), line)
    assert found["host"] == CLIENT.source.host


def test_the_reasons_of_a_failed_login_are_all_there() -> None:
    """What may stand behind "why=" is listed."""
    [listed] = re.findall(r"^`why` is one of .*$", LOG, re.MULTILINE)
    assert re.findall(r"`([^`]+)`", listed)[1:] == [reason.value for reason in Reason]
