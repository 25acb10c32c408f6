"""From a file to the tree of its TOML."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from mailroute.config.errors import ConfigError, Problem


def read_document(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the file's text and its tree.

    :raises ConfigError: says why there is none.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([Problem(None, "", f"cannot be read: {error.strerror or error}")], path) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(line, "", "is not UTF-8: save it as UTF-8")], path) from None
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_problem(str(error), text)], path) from None
    except (RecursionError, ValueError) as error:
        # Brackets without end, numbers of thousands of digits.
        raise ConfigError([Problem(None, "", f"cannot be read as TOML: {error}")], path) from None


def _syntax_problem(message: str, text: str) -> Problem:
    """Take the line out of tomllib's message, which has it only there before Python 3.14."""
    found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    if found is None:
        message = message.removesuffix(" (at end of document)")
        last = text.rstrip("\n").count("\n") + 1
        return Problem(last, "", f"is no TOML: {message}, at the end of the file")
    said = re.sub(r"\('(.*)',?\)", _table, message[: found.start()])
    remedy = next((words for start, words in _REMEDIES.items() if said.startswith(start)), "")
    return Problem(int(found[1]), "", f"is no TOML: {said}, at column {found[2]}{remedy}")


_REMEDIES = {
    "Invalid value": ": a text stands in quotes",
    "Cannot declare": ": several blocks of a name take two pairs of brackets, others come once",
    "Cannot overwrite": ": this key or block is there already",
    "Illegal character '\\n'": ": a quote is missing",
}
"""What to do, by the beginnings of tomllib's messages: one that it words anew is told without."""


def _table(found: re.Match[str]) -> str:
    """Return a table as it is written, for the tuple of its names in tomllib's message."""
    return "[" + found[1].replace("', '", ".") + "]"
