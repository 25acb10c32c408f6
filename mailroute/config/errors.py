"""What is wrong with a configuration, told to the person who wrote it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mailroute.names import CONTROL
from mailroute.toml_lines import KeyPath


class Problem(NamedTuple):
    """One thing that is wrong.

    ``line`` counts from 1 and is ``None`` where there is no file.  ``key`` is
    such as ``listen[1].security`` or ``backend.east.imap``: blocks count from
    1, in the order of the file; it is empty if it is the file as a whole.
    """

    line: int | None
    key: str
    message: str


class Fault(NamedTuple):
    """A `Problem` before it is known where it stands."""

    path: KeyPath
    message: str


class ConfigError(Exception):
    """A configuration cannot be used.

    ``problems`` has everything that was found; as a string, one a line.
    """

    def __init__(self, problems: Iterable[Problem], file: Path | None = None) -> None:
        self.file = file
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        super().__init__(str(self))

    def __str__(self) -> str:
        return "\n".join(self._said(problem) for problem in self.problems)

    def _said(self, problem: Problem) -> str:
        place = "" if self.file is None else str(self.file)
        if problem.line is not None:
            place = f"{place}:{problem.line}"
        said = ": ".join(part for part in (place, problem.key, problem.message) if part)
        # What the file says is repeated here: it must not break the line or steer a terminal.
        return CONTROL.sub("\N{REPLACEMENT CHARACTER}", said)


def written(path: KeyPath) -> str:
    """Return a key path as people write it."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            text += f".{part}" if text else part
    return text
