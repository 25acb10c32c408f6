"""The operator's query: its ``:name`` parameters are found, and handed to the driver as parameters.

A colon is no parameter inside a string, a quoted identifier or a comment, nor
in ``::``; what counts as one of these is the database's own to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from attrs import field, frozen

from mailroute.sources import BadOption
from mailroute.wording import did_you_mean

PARAMETERS = ("user", "local", "domain", "protocol", "client")
"""What a query may ask about: the user, the parts of the name before and behind its last @, the protocol and
the client's address."""

_STRING = r"'(?:[^']|'')*'"
_QUOTED = r'"(?:[^"]|"")*"'
_BACKQUOTED = r"`(?:[^`]|``)*`"
_LINE = r"--[^\n]*"
_BLOCK = r"/\*.*?\*/"
_WORD = r"[^\W\d][\w$]*"
_PARAMETER = r":(?P<name>[^\W\d]\w*)"


def _tokens(*opaque: str) -> re.Pattern[str]:
    """Return what matches one token: those that are left alone come first, a word is one as a whole."""
    return re.compile("|".join([*opaque, _WORD, "::", _PARAMETER, "(?P<rest>.)"]), re.DOTALL)


def _pyformat(name: str) -> str:
    return f"%({name})s"


def _doubled(text: str) -> str:
    return text.replace("%", "%%")


@frozen
class Dialect:
    """How one kind of database writes SQL, and how its driver wants parameters.

    ``nested``: a comment may hold comments.
    """

    tokens: re.Pattern[str] = field(repr=False)
    parameter: Callable[[str], str] = _pyformat
    literal: Callable[[str], str] = _doubled
    nested: bool = False


SQLITE = Dialect(
    # A block comment that does not end goes on to the end of the text.
    _tokens(_STRING, _QUOTED, _BACKQUOTED, r"\[[^\]]*\]", _LINE, r"/\*.*?(?:\*/|\Z)"),
    ":{}".format,
    str,
)

POSTGRESQL = Dialect(
    _tokens(
        r"[eE]'(?:[^'\\]|\\.|'')*'",
        _STRING,
        _QUOTED,
        r"\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$",
        _LINE,
    ),
    nested=True,
)

MARIADB = Dialect(
    _tokens(
        r"'(?:[^'\\]|\\.|'')*'",
        r'"(?:[^"\\]|\\.|"")*"',
        _BACKQUOTED,
        r"--(?=\s|\Z)[^\n]*",
        r"#[^\n]*",
        _BLOCK,
    )
)

_NESTED = re.compile(r"/\*|\*/")


def translated(query: str, dialect: Dialect) -> str:
    """Return the query as the driver wants it.

    :raises BadOption: it names a parameter that there is not, or a string or comment does not end.
    """
    return "".join(_parts(query, dialect))


def _parts(query: str, dialect: Dialect) -> Iterator[str]:
    at = 0
    while at < len(query):
        if dialect.nested and query.startswith("/*", at):
            end = _end_of_comment(query, at)
            yield dialect.literal(query[at:end])
            at = end
            continue
        token = dialect.tokens.match(query, at)
        assert token is not None  # noqa: S101 - the last of its choices takes any character
        name = token["name"]
        if name is not None:
            yield dialect.parameter(_known(name))
        else:
            _check(token["rest"], query, at)
            yield dialect.literal(token[0])
        at = token.end()


def _known(name: str) -> str:
    if name not in PARAMETERS:
        hint = did_you_mean(name, PARAMETERS)
        raise BadOption(
            "query",
            f"there is no parameter :{name}{hint}; where none is meant, put a space behind the colon",
        )
    return name


def _check(single: str | None, query: str, at: int) -> None:
    """Refuse what only opens something: had it an end, it would have been one token with it."""
    if single in ("'", '"', "`"):
        raise BadOption("query", f"the {single} at character {at + 1} has no end")
    if single == "/" and query.startswith("/*", at):
        raise BadOption("query", f"the comment at character {at + 1} has no end")


def _end_of_comment(query: str, start: int) -> int:
    depth = 0
    for mark in _NESTED.finditer(query, start):
        depth += 1 if mark[0] == "/*" else -1
        if not depth:
            return mark.end()
    raise BadOption("query", f"the comment at character {start + 1} has no end")
