"""The ``table`` source: a file with a line a user, read again when it changes.

A line is ``name backend [name-at-the-backend]``, fields apart by spaces or
tabs; a field that starts with ``#`` begins a comment; the file is UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping

from zope.interface import implementer

from mailroute.events import Lookup, Route
from mailroute.interfaces import IRouter, IRouteSource
from mailroute.routers.answers import Answers
from mailroute.routers.maps import FORMATS, MapRouter
from mailroute.sources import CONTROL, BadOption, SourceContext, UsersFile, only, text, unknown_backend
from mailroute.sources.users_file import LineReader, decoded
from mailroute.wording import did_you_mean

_OWN = "mailroute"
"""The format of our own tables, in words of the configuration."""

Entry = Route | str
"""What a table holds for a user.

All users of one backend who keep their name share one `Route`.  One who has
another name there is the string ``backend name``: a `Route` each would cost
twice the memory, and Python's garbage collector would visit each of them.
"""


class _TableReader(LineReader[Entry]):
    """Reads lines; one thing for all, so that they share what is the same in all."""

    def __init__(self, context: SourceContext) -> None:
        super().__init__()
        self._context = context
        self._routes = {name: Route(name) for name in context.backends}

    def add(self, line: bytes) -> None:
        """Add a line's user (`LineReader.add`)."""
        said = decoded(line).replace("\t", " ")
        if CONTROL.search(said):
            raise ValueError("a control character")
        # Only the space parts fields: str.split() would take every Unicode blank.
        fields = [part for part in said.split(" ") if part]
        if "#" in said:
            fields = _without_comment(fields)
        if not fields:
            return
        if len(fields) not in (2, 3):
            fault = "the backend is missing" if len(fields) == 1 else f"{len(fields)} fields"
            raise ValueError(f"{fault}: a line is name backend [name-at-the-backend]")
        route = self._routes.get(fields[1])
        if route is None:
            raise ValueError(unknown_backend(fields[1], self._routes))
        name = self._context.normalise(fields[0])
        if name in self.users:
            raise ValueError(f"{name} is listed twice")
        self.users[name] = route if len(fields) == 2 else f"{fields[1]} {fields[2]}"


def _without_comment(fields: list[str]) -> list[str]:
    for index, part in enumerate(fields):
        if part.startswith("#"):
            return fields[:index]
    return fields


@implementer(IRouter)
class TableRouter(UsersFile[Entry]):
    """Knows the users of a file."""

    def _reader(self) -> LineReader[Entry]:
        return _TableReader(self._context)

    def route(self, lookup: Lookup) -> Route | None:
        """Return the user's route, if the table has one."""
        found = self.users.get(lookup.user)
        if isinstance(found, str):
            backend, _, name = found.partition(" ")
            return Route(backend, name)
        return found

    def __str__(self) -> str:
        return f"users are looked up in {self.path}, which has {len(self)} now"


@implementer(IRouteSource)
class TableSource:
    """Makes a `TableRouter` from the key ``file``, or a router for the ``format`` of another proxy's map."""

    name = "table"

    def router(self, options: Mapping[str, object], context: object) -> IRouter:
        """Make the router; see `IRouteSource.router`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        only(options, ("file", "format", "backend"))
        form = text(options, "format") if "format" in options else _OWN
        if form == _OWN:
            if "backend" in options:
                raise BadOption("backend", f'means nothing with format = "{_OWN}": each line names one')
            return TableRouter.of(options, context)
        if form not in FORMATS:
            raise BadOption("format", f'there is no format "{form}"{did_you_mean(form, (_OWN, *FORMATS))}')
        answers = Answers(context.backends, context.backend(options) if "backend" in options else None)
        return MapRouter.of(options, context, form, answers)
