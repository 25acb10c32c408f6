"""The ``pattern`` source: users whose names match a regular expression live at one backend."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import frozen
from zope.interface import implementer

from mailroute.events import LoginRefused, Lookup, Reason, Refusal, Route
from mailroute.interfaces import IRouter, IRouteSource
from mailroute.sources import CONTROL, BadOption, SourceContext, only, regex, text


@implementer(IRouter)
@frozen
class PatternRouter:
    """Knows the users whose whole normalised name matches.

    ``template`` makes the name at the backend from the match, as
    `re.Match.expand` does; ``None`` leaves the name as it is.
    """

    match: re.Pattern[str]
    answer: Route
    template: str | None = None

    def route(self, lookup: Lookup) -> Route | None:
        """Return the route if the name matches.

        :raises LoginRefused: the name made for the backend cannot be one.
        """
        match = self.match.fullmatch(lookup.user)
        if match is None:
            return None
        if self.template is None:
            return self.answer
        name = match.expand(self.template)
        if not name or CONTROL.search(name):
            detail = f"{self.template!r} makes a name that is empty or holds control characters"
            raise LoginRefused(Refusal(Reason.MISCONFIGURED, detail))
        return Route(self.answer.backend, name)

    def __str__(self) -> str:
        renamed = f", there named {self.template}" if self.template is not None else ""
        return f"users who match {self.match.pattern} live at {self.answer.backend}{renamed}"


@implementer(IRouteSource)
class PatternSource:
    """Makes a `PatternRouter` from the keys ``match``, ``backend`` and, if the name differs, ``as``."""

    name = "pattern"

    def router(self, options: Mapping[str, object], context: object) -> IRouter:
        """Make the router; see `IRouteSource.router`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        only(options, ("match", "backend", "as"))
        match = regex(options, "match")
        template = text(options, "as") if "as" in options else None
        if template is not None:
            _check_template(match, template)
        return PatternRouter(match, Route(context.backend(options)), template)


def _check_template(match: re.Pattern[str], template: str) -> None:
    """Refuse a template that could not be filled in from a match.

    :raises BadOption: it is malformed or names a group that the pattern does not have.
    """
    try:
        # "sub" reads the whole template before it looks for the first match, so
        # an empty text is enough; a test holds Python to it.
        match.sub(template, "")
    except (re.error, IndexError) as error:
        raise BadOption("as", f"does not go with match: {error}") from None
