"""Where the keys of a TOML document stand: `tomllib` tells what they say, and not where."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

KeyPath = tuple[str | int, ...]
"""The way to a value: names of tables and keys, and positions in arrays of tables, counted from 0."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_LINE_REST = re.compile(r"[^\n]*")
# One part of a key: bare, in quotes with escapes, or in quotes without.
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'""")
# What a value is made of.  A string may end in one or two quotes of its own
# before the three that close it.
_VALUE_PART = re.compile(
    r'''"""(?:[^\\]|\\.)*?"""(?P<quotes>"{0,2})|\'\'\'.*?\'\'\'\'{0,2}'''
    r"""|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\#[^\n]*|(?P<open>[\[{])|(?P<close>[\]}])|(?P<end>\n)|[^"'\#\[\]{}\n]+""",
    re.DOTALL,
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line, counted from 1, of each table header and each key of a valid TOML document.

    A table that only its children's headers mention has the first such line.
    What is inside a value (inline tables, arrays) is not listed: `line_of`
    finds the line of the key whose value it is.
    """
    return _Scanner(text).scan()


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """Return the line of the key, or of the nearest thing around it that has one; ``None`` if nothing has."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


class _Scanner:
    """Goes through a document once.  It may rely on `tomllib` having found it valid."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._lines: dict[KeyPath, int] = {}
        self._lengths: dict[KeyPath, int] = {}  # of the arrays of tables so far

    def scan(self) -> dict[KeyPath, int]:
        """Return the lines."""
        table: KeyPath = ()
        self._take(_BLANK)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._take(_BLANK)
        return self._lines

    def _take(self, what: re.Pattern[str]) -> re.Match[str]:
        match = what.match(self._text, self._at)
        if match is None:
            raise ValueError(f"no valid TOML at line {self._line}")
        self._line += match.group().count("\n")
        self._at = match.end()
        return match

    def _header(self) -> KeyPath:
        line = self._line
        array = self._text.startswith("[[", self._at)
        self._at += 2 if array else 1
        *parents, name = self._key()
        self._take(_LINE_REST)
        path: KeyPath = ()
        for parent in parents:
            path = (*path, parent)
            self._lines.setdefault(path, line)
            if path in self._lengths:  # what follows belongs to the last table of the array
                path = (*path, self._lengths[path] - 1)
        path = (*path, name)
        if array:
            self._lines.setdefault(path, line)
            position = self._lengths.get(path, 0)
            self._lengths[path] = position + 1
            path = (*path, position)
        self._lines[path] = line
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line
        path = table
        for part in self._key():
            path = (*path, part)
            self._lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._value()

    def _key(self) -> list[str]:
        """Take a key, dotted or not, and the space around it."""
        parts = []
        while True:
            self._take(_SPACE)
            part = self._take(_KEY_PART).group()
            parts.append(_unquoted(part))
            self._take(_SPACE)
            if self._text[self._at] != ".":
                return parts
            self._at += 1

    def _value(self) -> None:
        """Pass over a value and what else is on its last line."""
        depth = 0
        while self._at < len(self._text):
            part = self._take(_VALUE_PART)
            if part["end"] and not depth:
                return
            depth += bool(part["open"]) - bool(part["close"])


def _unquoted(part: str) -> str:
    if part[0] == '"':
        # The escapes are many: let tomllib read them.
        return str(tomllib.loads(f"key = {part}")["key"])
    return part.strip("'")
