"""What comes of asking a router, for the tests of the sources."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from mailroute.events import LoginRefused, Lookup, Reason, Route
from mailroute.interfaces import IRouter
from mailroute.routers import BadAnswer

HOSTILE_NAMES = (
    "a\"b'\\c",
    "' or '1'='1",
    "*()\\",
    "*)(uid=*))(|(uid=*",
    "%s%(user)s%0d%0a",
    "{user}{0.__class__}",
    "$1\\1\\g<0>",
    ":user",
    "a:b:c",
    "a b;$(id)",
    "/../..",
    "# a",
    "[a-z].*",
    "a,b=c+d",
    "Ω\u202e𝄞",
    "\\' or 1=1 -- ",
    'a" or "1"="1',
    '"; return redis.call("KEYS","*") --',
    "*",
    "a*",
    "n*d",
    "n?med",
    "(",
    "&",
    "named\\00",
    "\\6eamed",
    "%",
    "%6eamed",
    "../secret",
    "x" * 512,
)
"""Names that a client may have, and that would be syntax somewhere."""

BROKEN_NAMES = (
    "a\tb",
    "a\r\nb",
    "a\0b",
    "a\x01tb",
    "named\r\nFLUSHALL",
    "x\r\n$4\r\nPING\r\n",
)
"""Names with what no client's can hold; a source that is asked without one in between is none the worse."""

IN_A_QUERY = ("alice'--", "alice; drop table users", "alice\0", "\ud800")
"""Names that would be alice's or nobody's, if a database took them for parts of a query."""


async def answered(router: IRouter, question: Lookup) -> Route | Reason | None:
    """Return the route, or why there is none."""
    try:
        answer = router.route(question)
        return await answer if isinstance(answer, Deferred) else answer
    except LoginRefused as refused:
        return refused.refusal.reason


async def explained(router: IRouter, question: Lookup) -> Route | Reason | str | None:
    """Return the route, or why there is none, also where the answer made no sense."""
    try:
        return await answered(router, question)
    except BadAnswer as error:
        return str(error)
