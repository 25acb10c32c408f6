"""Maps that other proxies read, for the ``table`` source: popmaps, and what nginx's ``map`` includes.

Perdition's are those of its perditiondb(5): a line ``key:[name@]host[:port]``,
and the one of regular expressions, ``expression: [name@]host[:port]``.  nginx's
are the lines of a ``map`` block: ``key value;``.  A host that is a backend's
name is that backend.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from attrs import frozen
from zope.interface import implementer

from mailroute.events import Lookup, Route
from mailroute.interfaces import IRouter
from mailroute.routers.answers import Answers
from mailroute.sources import CONTROL, BadAnswer, SourceContext, UsersFile
from mailroute.sources.users_file import LineReader, decoded

_PLACE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(:(?P<port>.*))?", re.DOTALL)

_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "lower": "a-z",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\s",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
"""What POSIX's character classes are to Python, inside brackets."""


class Places:
    """Makes routes of what stands for a place in a map; equal ones are the same object."""

    def __init__(self, answers: Answers, backends: frozenset[str]) -> None:
        self._answers = answers
        self._backends = backends
        self._known: dict[str, Route] = {}

    def route(self, text: str, *, names: bool, keep: bool = True) -> Route:
        """Return the route.

        :param names: a user's name there, and an ``@``, may come first.
        :param keep: it will be asked for again.
        :raises BadAnswer: it is no place.
        """
        known = self._known.get(text)
        if known is not None:
            return known
        name, at, place = text.rpartition("@") if names else ("", "", text)
        found = _PLACE.fullmatch(place)
        if found is None or (at and not name):
            raise BadAnswer(f"{text!a} is no place: write {'[name@]' * names}host[:port]")
        host, port = found["host"].strip("[]"), found["port"]
        answer: dict[str, object] = {"name": name or None}
        if host in self._backends and port is None:
            answer["backend"] = host
        else:
            answer |= {"host": host or None, "port": port}
        route = self._answers.route(answer) if host else None
        if route is None:
            raise BadAnswer(f"{text!a} names no host")
        if keep:
            self._known[text] = route
        return route


@frozen
class Rule:
    """An expression for names, and what they have in common: a route, or what makes one of a match."""

    expression: re.Pattern[str]
    answer: Route | Callable[[re.Match[str]], Route]

    def route(self, user: str) -> Route | None:
        """Return the user's route, if its name matches somewhere.

        :raises BadAnswer: what is made of it is no place.
        """
        match = self.expression.search(user)
        if match is None:
            return None
        return self.answer if isinstance(self.answer, Route) else self.answer(match)


class _MapReader(LineReader[Route]):
    """Reads lines; beside users there may be rules, tried in order, and a route for everybody else."""

    def __init__(self, context: SourceContext, places: Places) -> None:
        super().__init__()
        self.rules: list[Rule] = []
        self.default: Route | None = None
        self._context = context
        self._places = places

    def add(self, line: bytes) -> None:
        """Add a line's user or rule (`LineReader.add`)."""
        text = decoded(line)
        if CONTROL.search(text.replace("\t", " ")):
            raise ValueError("a control character")
        try:
            self._add(text)
        except (BadAnswer, re.error) as error:
            raise ValueError(str(error)) from None

    def _add(self, text: str) -> None:
        raise NotImplementedError

    def _user(self, key: str, route: Route) -> None:
        name = self._context.normalise(key)
        if name in self.users:
            raise ValueError(f"{name} is listed twice")
        self.users[name] = route


class _Perdition(_MapReader):
    def _add(self, text: str) -> None:
        text = text.partition("#")[0].strip()
        if not text:
            return
        key, colon, place = text.partition(":")
        if not key or not colon:
            raise ValueError("a line is key:[name@]host[:port]")
        self._user(key, self._places.route(place, names=True))


class _PerditionRegex(_MapReader):
    _begun = ""

    def _add(self, text: str) -> None:
        text, self._begun = self._begun + text, ""
        if text.endswith("\\"):
            self._begun = text[:-1]
            return
        words = list(_perdition_words(text))
        if not words:
            return
        if len(words) != 2:
            raise ValueError("a line is expression: [name@]host[:port]")
        expression = re.compile(_python(words[0].removesuffix(":")))
        template = words[1]
        numbers = [int(number) for number in re.findall(r"\$([1-9])", template)]
        if not numbers:
            self.rules.append(Rule(expression, self._places.route(template, names=True)))
            return
        if max(numbers) > expression.groups:
            raise ValueError(f"${max(numbers)} is no group of the expression")

        def answer(match: re.Match[str]) -> Route:
            text = re.sub(r"\$([1-9])", lambda number: match[int(number[1])] or "", template)
            return self._places.route(text, names=True, keep=False)

        self.rules.append(Rule(expression, answer))


def _perdition_words(text: str) -> Iterator[str]:
    """Yield the expression and what it stands for, without quotes, escapes and comment.

    In the expression an escape stays as it is: it means something there too.
    """
    words, quote, index, begun = [""], "", 0, False
    while index < len(text):
        char = text[index]
        index += 1
        if quote:
            if char == quote:
                quote = ""
            else:
                words[-1] += char
        elif char == "\\":
            following, index = text[index : index + 1], index + 1
            words[-1] += following if following in " \t#'\"" else char + following
        elif char in "'\"":
            quote, begun = char, True
        elif char == "#":
            break
        elif char in " \t" and len(words) == 1:
            if words[0] or begun:
                words.append("")
        elif char not in " \t":
            words[-1] += char
    yield from (word for word in words if word)


def _python(expression: str) -> str:
    """Return an expression of POSIX's as one of Python's."""
    return re.sub(
        r"\[:(\w+):\]",
        lambda found: _CLASSES.get(found[1], found[0]),
        expression,
    )


class _Nginx(_MapReader):
    _LINE = re.compile(
        r"""\s*(?P<key>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s;"'#][^\s;]*)"""
        r"""\s+(?P<value>"[^"]*"|'[^']*'|[^\s;"'#][^\s;]*)\s*;\s*(?:\#.*)?"""
    )

    def _add(self, text: str) -> None:
        if not text.strip() or text.lstrip().startswith("#"):
            return
        found = self._LINE.fullmatch(text)
        if found is None:
            raise ValueError("a line is key value;")
        key, value = _unquoted(found["key"]), _unquoted(found["value"])
        if "$" in value:
            raise ValueError("a value cannot have variables here: write host[:port], or a backend's name")
        if key in ("include", "hostnames", "volatile"):
            raise ValueError(f'"{key}" is not known here')
        route = self._places.route(value, names=False)
        if key == "default":
            if self.default is not None:
                raise ValueError("default is listed twice")
            self.default = route
        elif key.startswith("~"):
            flags = re.IGNORECASE if key.startswith("~*") else 0
            expression = re.sub(r"\(\?<(?=\w)", "(?P<", key.lstrip("~").removeprefix("*"))
            self.rules.append(Rule(re.compile(expression, flags), route))
        else:
            self._user(key.removeprefix("\\"), route)


def _unquoted(word: str) -> str:
    if word[0] in "\"'":
        return re.sub(r"\\([\"'\\])", r"\1", word[1:-1])
    return word


FORMATS: Mapping[str, type[_MapReader]] = {
    "perdition": _Perdition,
    "perdition-regex": _PerditionRegex,
    "nginx": _Nginx,
}


@implementer(IRouter)
class MapRouter(UsersFile[Route]):
    """Knows the users of a map."""

    def __init__(self, path: Path, context: SourceContext, form: str, answers: Answers) -> None:
        self._form = form
        self._answers = answers
        self.rules: tuple[Rule, ...] = ()
        self.default: Route | None = None
        super().__init__(path, context)

    def _reader(self) -> LineReader[Route]:
        return FORMATS[self._form](self._context, Places(self._answers, self._context.backends))

    def _take(self, reader: LineReader[Route]) -> None:
        super()._take(reader)
        assert isinstance(reader, _MapReader)  # noqa: S101 - see _reader
        self.rules, self.default = tuple(reader.rules), reader.default

    def route(self, lookup: Lookup) -> Route | None:
        """Return the route of the user's own line, of the first rule for its name, or of everybody else."""
        found = self.users.get(lookup.user)
        if found is not None:
            return found
        for rule in self.rules:
            found = rule.route(lookup.user)
            if found is not None:
                return found
        return self.default

    def __len__(self) -> int:
        return len(self.users) + len(self.rules)

    def __str__(self) -> str:
        return f"users are looked up in {self.path} ({self._form}), which has {len(self)} entries now"
