"""README.md in its parts: fenced blocks, tables, and the terminals in which its commands are typed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen
from servers.processes import Log, group_is_gone, wait_until

README = Path(__file__).parents[1] / "README.md"


# --- its text ---------------------------------------------------------------


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


def section(text: str, heading: str) -> str:
    """Return what stands under a heading, up to the next one of the same rank or a higher one."""
    level = heading.split()[0]
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, f"no heading {heading!r}"
    return re.split(rf"^#{{2,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


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
        """Press Ctrl-C, and wait until what runs here has ended."""
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
