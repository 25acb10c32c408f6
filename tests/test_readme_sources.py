"""README's examples of sources that need no server, asked about users; integration tests have the others."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import pytest_twisted
from asking import explained
from readme import TEXT, Block, blocks, section, tables
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred

from mailroute.config import load
from mailroute.events import Change, Lookup, Route
from mailroute.routers import Chain
from mailroute.testing import CLIENT

MOVED = Route("old", "a.smith", change=Change("10.0.0.5", 1143))

PROGRAM = """#!{python} -u
import json, sys
asked, answer = map(json.loads, {lines!r})
for line in sys.stdin:
    told = json.loads(line)
    assert told.keys() == asked.keys() and sys.argv[1:] == ["--shards", "2"], (told, sys.argv)
    known = told["user"] == asked["user"]
    print(json.dumps((answer if known else {{}}) | {{"id": told["id"]}}))
"""


def example(line: str) -> Block:
    """Return the only configuration with a route that has this line."""
    [found] = [block for block in blocks(TEXT, "toml") if re.search(rf"(?m)^{re.escape(line)}", block.text)]
    return found


def comment(block: Block, key: str) -> str:
    """Return the comment behind a key: the line of the file that it names."""
    [found] = re.findall(rf"(?m)^{key} = .*  # (.*)$", block.text)
    return found


async def homes(folder: Path, block: Block, *users: str) -> list[object]:
    """Return where users live, as the configuration says."""
    (folder / "mailroute.toml").write_text(block.text)
    settings = load(folder / "mailroute.toml", reactor)
    for _, router in settings.routes:
        getattr(router, "startService", lambda: None)()
    try:
        chain = Chain(settings.routes, frozenset(tomllib.loads(block.text)["backend"]))
        return [await explained(chain, Lookup(user, "imap", CLIENT)) for user in users]
    finally:
        for _, router in settings.routes:
            await maybeDeferred(getattr(router, "stopService", lambda: None))


@pytest_twisted.ensureDeferred
async def test_a_popmap(tmp_path: Path) -> None:
    """The line in the comment sends its user where it says."""
    block = example('format = "perdition"')
    (tmp_path / "popmap").write_text(comment(block, "file") + "\n")
    assert await homes(tmp_path, block, "alice", "bob") == [MOVED, None]


@pytest_twisted.ensureDeferred
async def test_a_passwd_file(tmp_path: Path) -> None:
    """The line in the comment sends its user where it says."""
    block = example('file = "users.passwd"')
    (tmp_path / "users.passwd").write_text(comment(block, "file") + "\n")
    there = Route("old", "a.smith", change=Change("10.0.0.5"))
    assert await homes(tmp_path, block, "alice", "bob") == [there, None]


@pytest_twisted.ensureDeferred
async def test_names_are_spread(tmp_path: Path) -> None:
    """A user's mail goes where the user logs in, and the second backend takes two thirds."""
    users = [f"user{number}" for number in range(300)]
    block = example("backends = { shard1 = 1")
    at_login = await homes(tmp_path, block, *users)
    assert await homes(tmp_path, block, *(f"{user}+lists@example.org" for user in users)) == at_login
    assert 150 < at_login.count(Route("shard2")) < 250
    assert set(at_login) == {Route("shard1"), Route("shard2")}


@pytest_twisted.ensureDeferred
async def test_a_program(tmp_path: Path) -> None:
    """A program that reads and writes the lines that are shown is asked as they say."""
    [said] = [
        block.text.splitlines() for block in blocks(TEXT, "log") if block.text.startswith('{"id": 1, "user"')
    ]
    (tmp_path / "where.py").write_text(PROGRAM.format(python=sys.executable, lines=said))
    (tmp_path / "where.py").chmod(0o755)
    user, block = json.loads(said[0])["user"], example('source = "command"\ncommand')
    assert await homes(tmp_path, block, user, "bob") == [Route("east", "alice"), None]


@pytest_twisted.ensureDeferred
async def test_a_program_of_ones_own(tmp_path: Path) -> None:
    """The program that is shown, made into one as it says, answers as it says."""
    [shown] = [block.text for block in blocks(TEXT, "python") if block.text.startswith("# where.py\n")]
    (tmp_path / "where.py").write_text(f"#!{sys.executable}\n{shown}")
    (tmp_path / "where.py").chmod(0o755)
    block = example('source = "command"\ncommand')
    assert await homes(tmp_path, block, "alice@example.org", "bob") == [Route("east", "alice"), None]


@pytest.mark.parametrize(
    "source", [row[0].split("`")[1] for row in tables(section(TEXT, "Where accounts are"))[0]]
)
def test_every_source_has_an_example(source: str) -> None:
    """Whatever stands in the table of the sources is in a configuration, which another test reads or runs."""
    assert any(f'[[route]]\nsource = "{source}"\n' in block.text for block in blocks(TEXT, "toml"))
