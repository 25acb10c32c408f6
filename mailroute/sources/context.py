"""What every source is given, and how it says that a block of the configuration is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from attrs import Factory, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from mailroute.wording import did_you_mean

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What no user name holds, as in `mailroute.names`, which this room does not know."""

_Result = TypeVar("_Result")


class InThread(Protocol):
    """Calls a function outside the reactor's thread."""

    def __call__(self, function: Callable[[], _Result], /) -> Deferred[_Result]:
        """Call it; the Deferred fires in the reactor's thread with what it returned or raised."""


class Copies:
    """Copies of the files that a configuration names, as they were when it was read.

    Another process may have to make the same of the configuration later: as
    a user who may not read the files, or after somebody has changed them.

    :param copies: the copies that the first process has kept.
    :param keep: whether to keep a copy of what is read.
    """

    def __init__(self, copies: Mapping[Path, bytes] | None = None, *, keep: bool = False) -> None:
        self._copies = dict(copies or {})
        self._keep = keep

    def read(self, path: Path) -> bytes:
        """Return the copy or, if there is none, what the file holds.

        :raises OSError: it cannot be read.
        """
        content = self._copies.get(path)
        if content is None:
            content = path.read_bytes()
            self.keep(path, content)
        return content

    def of(self, path: Path) -> bytes | None:
        """Return the copy, if there is one."""
        return self._copies.get(path)

    def keep(self, path: Path, content: bytes) -> None:
        """Keep a copy of what a file holds, if copies are to be kept."""
        if self._keep:
            self._copies[path] = content

    def kept(self) -> Mapping[Path, bytes]:
        """Return all copies."""
        return dict(self._copies)


@frozen
class SourceContext:
    """What a source may need to make what its block stands for."""

    folder: Path
    """The folder from which relative paths start."""

    backends: frozenset[str]
    """The names of the backends that there are."""

    normalise: Callable[[str], str]
    """Brings a user's name into the one form in which a `Lookup` carries it."""

    clock: IReactorTime
    """The only clock to use."""

    in_thread: InThread
    """For work that would hold up the reactor: disks, long computations."""

    compute: InThread = field(default=Factory(lambda self: self.in_thread, takes_self=True))
    """For work that takes the processor long, such as a password's hash: threads apart from the others."""

    copies: Copies = field(factory=Copies, repr=False)
    """For files that are read once: another process may not be able to read them itself."""

    label: str = "the source"
    """What the log calls the block, such as ``route[1] (sql)``."""

    def backend(self, options: Mapping[str, object], key: str = "backend") -> str:
        """Return the option that names a backend.

        :raises BadOption: it is missing or there is no such backend.
        """
        name = text(options, key)
        if name not in self.backends:
            raise BadOption(key, unknown_backend(name, self.backends))
        return name


class BadAnswer(Exception):
    """What a source has answered makes no sense; the text is for the log, and holds no secret.

    :param what: what is wrong with it, with ``{}`` where a part of the answer is shown, if any is.
    :param values: those parts.
    :ivar without_values: the same without them, for where what is in the wrong place may be a hash.
    """

    def __init__(self, what: str, *values: object) -> None:
        super().__init__(what.format(*map(shown, values)) if values else what)
        self.without_values = what.format(*["what is there"] * len(values)) if values else what


class Unanswered(Exception):
    """The source did not answer.

    :param why: the reason and the remedy, for the log, without a secret; the kind's own unless given.
    """

    usual = ""

    def __init__(self, why: str = "") -> None:
        super().__init__(why or self.usual)


def shown(value: object) -> str:
    """Return a part of an answer for the log: on one line, and not long."""
    try:
        said = ascii(value)
    except (RecursionError, ValueError):  # lists in lists without end, or a number of thousands of digits
        said = f"a {type(value).__name__} that nobody can read"
    return said if len(said) <= 80 else f"{said[:77]}..."


MAX_SAID = 400
"""Characters of what a source says against a login that the log has."""


def cut(said: str) -> str:
    """Return what a source says against a login for the log: on one line, and not longer than `MAX_SAID`.

    What is in no text of a person's is written as an escape.
    """
    said = said if len(said) <= MAX_SAID else f"{said[: MAX_SAID - 3]}..."
    return said if said.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said)


class BadOption(Exception):
    """A key of a block is wrong.

    :param key: the key, or empty if it is the block as a whole.
    :param message: what is wrong and what to do about it, for the operator.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key
        self.message = message


def text(options: Mapping[str, object], key: str) -> str:
    """Return the option, which must be there and a string with something in it.

    :raises BadOption: it is missing, empty or no string.
    """
    if key not in options:
        raise BadOption(key, "missing: this source needs it")
    value = options[key]
    if not isinstance(value, str) or not value:
        raise BadOption(key, f"must be a string with something in it, not {value!r}")
    return value


def regex(options: Mapping[str, object], key: str) -> re.Pattern[str]:
    """Return the option that is a regular expression.

    :raises BadOption: it is missing or none.
    """
    try:
        return re.compile(text(options, key))
    except re.error as error:
        raise BadOption(key, f"is no regular expression: {error}") from None


def only(options: Mapping[str, object], known: Iterable[str]) -> None:
    """Refuse an option that the source does not know.

    :raises BadOption: names the first such option.
    """
    known = tuple(known)
    for key in options:
        if key not in known:
            raise BadOption(key, f"unknown key{did_you_mean(key, known)}")


def unknown_backend(name: str, backends: Iterable[str]) -> str:
    """Say that there is no such backend, for a person."""
    return f"there is no [backend.{name}]{did_you_mean(name, backends) or ': add it, or name another'}"
