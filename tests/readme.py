"""README.md and the manual in their parts: fenced blocks, tables, and terminals to type the commands in."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import twistd
from attrs import frozen
from servers.processes import Log, group_is_gone, wait_until

ROOT = Path(__file__).parents[1]

PAGES = (
    "README.md",
    *(
        f"docs/{page}.md"
        for page in ("configuration", "sources", "servers", "protocols", "running", "python", "security")
    ),
)
"""What is written for users, in the order in which it is to be read."""

_TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}

TEXT = "".join(_TEXTS.values())
"""All pages, one behind the other."""


# --- its text ---------------------------------------------------------------


def pages() -> dict[str, str]:
    """Return the pages' texts by their paths."""
    return dict(_TEXTS)


def place(line: int) -> str:
    """Return where a line of `TEXT` is: the page and the line in it."""
    for page, text in _TEXTS.items():
        if line <= (count := text.count("\n")):
            return f"{page}:{line}"
        line -= count
    raise ValueError("it is in none of the pages")


@frozen
class Block:
    """A fenced block: its language, text and line, and the comment above it, which readers do not see."""

    language: str
    text: str
    line: int
    comment: str = ""


def blocks(text: str, language: str = "") -> list[Block]:
    """Return the fenced blocks, all or those of one language."""
    return [block for block in _blocks(text) if language in ("", block.language)]


_FENCED = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(text: str) -> Iterator[Block]:
    for found in _FENCED.finditer(text):
        line = text.count("\n", 0, found.start(2)) + 1
        yield Block(found[2], found[3], line, found[1] or "")


def headings(text: str) -> list[tuple[int, int, str]]:
    """Return where each heading begins, its rank and what it says."""
    # A comment in a fenced block looks like one.
    hidden = re.sub(r"^```.*?^```$", lambda found: "`" * len(found[0]), text, flags=re.MULTILINE | re.DOTALL)
    return [
        (found.start(), len(found[1]), found[2])
        for found in re.finditer(r"^(#+) (.*)$", hidden, re.MULTILINE)
    ]


def section(text: str, heading: str) -> str:
    """Return what stands under a heading, up to the next one of the same rank or a higher one."""
    every = headings(text)
    (place,) = [number for number, (_, _, said) in enumerate(every) if said == heading]
    start, rank, _ = every[place]
    end = next((start for start, other, _ in every[place + 1 :] if other <= rank), len(text))
    return text[text.index("\n", start) + 1 : end]


def tables(text: str) -> list[list[list[str]]]:
    """Return the tables as rows of cells, less their heads."""
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in table.splitlines()
        ]
        found.append(rows[2:])
    return found


def code(cell: str) -> str | None:
    """Return what a cell has in backticks, if that is all that it has."""
    match = re.fullmatch(r"`([^`]*)`", cell)
    return match and match[1]


# --- terminals --------------------------------------------------------------


class Terminal:
    """A shell in which commands are typed; each block's output is kept by itself."""

    def __init__(self, name: str, tree: Path, notes: Path, env: dict[str, str]) -> None:
        self._prefix = str(notes / name)
        self._count = 0
        self.output = Log(notes / f"{name}-0")
        with (notes / f"{name}-shell").open("wb") as sink:
            self._shell = subprocess.Popen(
                ["bash", "--noprofile", "--norc"],
                cwd=tree,
                env=env,
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        # Ctrl-C ends what runs in it, and not the shell.
        self._tell("set -o pipefail; trap : INT\n")

    def type(self, text: str) -> None:
        """Type a block, and do not wait for its end."""
        self._count += 1
        typed = Path(f"{self._prefix}-{self._count}.sh")
        # Every command has to succeed, and not the last one alone.
        typed.write_text(f"trap 'echo \"failed: $BASH_COMMAND\"; status=1' ERR\n{text}")
        self.output = Log(Path(f"{self._prefix}-{self._count}"))
        self._end = Path(f"{self._prefix}-{self._count}.status")
        self._tell(
            f"status=0; source {typed} </dev/null >{self.output.path} 2>&1; trap - ERR\n"
            f"echo $status >{self._end}.new; mv {self._end}.new {self._end}\n"
        )

    def run(self, text: str) -> int:
        """Type a block, and return its status: 0 if each of its commands was successful."""
        self.type(text)
        wait_until(f"the end of\n{text}", self._ended, patience=300)
        return int(self._end.read_text())

    def interrupt(self) -> None:
        """Press Ctrl-C once what runs here has got ready for it, and wait until that has ended."""
        # A program of Twisted's says that it listens before it does: until the reactor runs, a
        # KeyboardInterrupt can come in the middle of a callback, where it is taken for a failure.
        for child in Path(f"/proc/{self._shell.pid}/task/{self._shell.pid}/children").read_text().split():
            wait_until("the reactor's start", lambda child=child: twistd.catches_signals(int(child)))
        os.killpg(self._shell.pid, signal.SIGINT)
        wait_until("the end after Ctrl-C", self._ended)

    def close(self) -> None:
        """End the shell, and all that it has started in the foreground."""
        os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.stdin.close()
        self._shell.wait()
        wait_until("the end of the shell", lambda: group_is_gone(self._shell.pid))

    def shows(self, text: str) -> bool:
        """Tell whether the last block's output has these lines, in this order, `…` standing for anything."""
        lines = iter(self.output.text().splitlines())
        return all(
            any(re.fullmatch(pattern, line) for line in lines) for pattern in map(_pattern, text.splitlines())
        )

    def _ended(self) -> bool:
        assert self._shell.poll() is None, "the shell itself has ended"
        return self._end.exists()

    def _tell(self, line: str) -> None:
        self._shell.stdin.write(line.encode())
        self._shell.stdin.flush()


def _pattern(line: str) -> str:
    return ".*".join(map(re.escape, line.split("…")))
