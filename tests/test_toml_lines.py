"""Every key of a TOML document is found on its line."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailroute.toml_lines import KeyPath, key_lines, line_of

# --- documents whose lines are known ------------------------------------------

VALUES = st.sampled_from(
    [
        "1",
        "-0.5e3",
        "true",
        "1979-05-27T07:32:00-08:00",
        "07:32:00",
        '""',
        "''",
        '"# no comment"',
        '"a \\" quote, a [bracket] and a \\\\"',
        "'C:\\path\\'",
        "'\"'",
        '"""one line"""',
        '"""\ntwo\n[not a header]\nkey = "no key"\n"""',
        '"""ends in quotes"""""',
        '"""a \\""" b\n"""',
        "'''\nraw \\\n[[no]]\n'''",
        "'''a''b'''''",
        "[]",
        "[1, 2]",
        '[\n  "a", # ] no end\n  "b",\n]',
        '[[1, "]"], [\n[]]]',
        "{ a = 1, b.c = '}' }",
        '[{ a = "]" },\n { a = [\n1] }]',
    ]
)
KEYS = st.sampled_from(
    [
        ("{}", "{}"),
        ("{}-x_1", "{}-x_1"),
        ('"{}"', "{}"),
        ("'{}'", "{}"),
        ('"{} [a.b] # = \\" \\u00e9"', '{} [a.b] # = " é'),
        ("'{} \\ \"'", '{} \\ "'),
    ]
)
GAPS = st.sampled_from(["", " ", "\t ", "  "])
ENDS = st.sampled_from(["", "  ", " # a [comment] = '", '\t# """'])
FILLERS = st.lists(st.sampled_from(["", "# a = 1", "  # [x]", "\t"]), max_size=2)


class Document:
    """A document that grows, and the lines at which its keys are."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[KeyPath, int] = {}
        self.names = 0

    def name(self) -> tuple[str, str]:
        """Return a key that is not there yet, as it is written and as it is meant."""
        written, meant = self.draw(KEYS)
        self.names += 1
        return written.format(f"k{self.names}"), meant.format(f"k{self.names}")

    def dotted(self) -> tuple[str, list[str]]:
        names = [self.name() for _ in range(self.draw(st.integers(1, 3)))]
        gap = self.draw(GAPS)
        return f"{gap}.{gap}".join(written for written, _ in names), [meant for _, meant in names]

    def put(self, statement: str) -> int:
        """Append a statement between some noise, and return its line."""
        for filler in self.draw(FILLERS):
            self.text += f"{filler}\n"
        line = self.text.count("\n") + 1
        self.text += f"{self.draw(GAPS)}{statement}{self.draw(ENDS)}\n"
        return line

    def note(self, base: KeyPath, names: list[str], line: int) -> KeyPath:
        for name in names:
            base = (*base, name)
            self.lines[base] = line
        return base

    def pairs(self, table: KeyPath) -> None:
        for _ in range(self.draw(st.integers(0, 3))):
            written, names = self.dotted()
            gap = self.draw(GAPS)
            line = self.put(f"{written}{gap}={gap}{self.draw(VALUES)}")
            self.note(table, names, line)

    def table(self, prefix: str = "", base: KeyPath = ()) -> None:
        written, names = self.dotted()
        gap = self.draw(GAPS)
        line = self.put(f"[{gap}{prefix}{written}{gap}]")
        self.pairs(self.note(base, names, line))

    def array(self) -> None:
        written, names = self.dotted()
        array: KeyPath = ()
        for position in range(self.draw(st.integers(1, 3))):
            line = self.put(f"[[{written}]]")
            if position == 0:
                array = self.note((), names, line)
            self.lines[*array, position] = line
            self.pairs((*array, position))
            if self.draw(st.booleans()):
                self.table(f"{written}.", (*array, position))


@st.composite
def documents(draw: Any) -> tuple[str, dict[KeyPath, int]]:
    document = Document(draw)
    document.pairs(())
    for _ in range(draw(st.integers(0, 4))):
        draw(st.sampled_from([document.table, document.array]))()
    text = document.text
    if draw(st.booleans()):
        text = text.removesuffix("\n")
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return text, document.lines


@given(documents())
@settings(max_examples=300)
def test_every_key_is_on_its_line(made: tuple[str, dict[KeyPath, int]]) -> None:
    """However a document is written, each header and each key has the line on which it stands."""
    text, lines = made
    tomllib.loads(text)  # or else the test itself is wrong
    assert key_lines(text) == lines


# --- documents that hypothesis invents ------------------------------------------

PIECES = ["[", "]", "=", "\n", '"', "'", '"""', "'''", "#", ".", "{", "}", ",", "a", "1", " ", "\\"]


def valid(value: str) -> bool:
    try:
        return list(tomllib.loads(f"key = {value}\n")) == ["key"]
    except tomllib.TOMLDecodeError:
        return False


def wrapped(inner: str) -> list[str]:
    """What an inner text may be part of, so that most of it is valid."""
    return [
        f"[{inner}]",
        f"[{inner}\n]",
        f'"{inner}"',
        f"'{inner}'",
        f'"""{inner}"""',
        f"'''{inner}'''",
        inner,
    ]


INVENTED = st.lists(st.sampled_from(PIECES), max_size=8).map("".join).map(wrapped)
INVENTED_VALUES = INVENTED.map(lambda ways: [value for value in ways if valid(value)])


@given(st.lists(INVENTED_VALUES, max_size=3))
@settings(max_examples=500)
def test_the_end_of_any_value_is_found(values: list[list[str]]) -> None:
    """Whatever tomllib takes for a value, the key behind it is found on its own line."""
    text, lines = "", {}
    for number, value in enumerate(value for ways in values for value in ways):
        lines[(f"key{number}",)] = text.count("\n") + 1
        text += f"key{number} = {value}\n"
    assert key_lines(text) == lines


# --- by hand ----------------------------------------------------------------------


DOCUMENT = """\
# first
[[listen]]
security = 1
[[listen]]
security = 2
[backend.west]
[backend.east]
pop = { deep = 1 }
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ((), None),
        (("nothing",), None),
        (("listen", 0), 2),
        (("listen", 0, "security"), 3),
        (("listen", 0, "missing"), 2),
        (("listen", 1, "security"), 5),
        (("backend",), 6),
        (("backend", "west"), 6),
        (("backend", "east", "missing"), 7),
        (("backend", "east", "pop", "deep", "er"), 8),
    ],
)
def test_what_has_no_line_has_that_of_what_is_around_it(path: KeyPath, line: int | None) -> None:
    """A missing key is reported where its table begins, and what is inside a value where its key is."""
    assert line_of(key_lines(DOCUMENT), path) == line


def test_a_header_that_comes_after_its_children_counts() -> None:
    """A table has the line of its own header, wherever its children's are."""
    assert key_lines("[a.b]\n[a]\nc = 1\n") == {("a",): 2, ("a", "b"): 1, ("a", "c"): 3}
