"""What routers that ask web servers have in common."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from mailroute.events import Lookup, Route
from mailroute.routers.guard import GuardedRouter
from mailroute.routers.web.options import HttpOptions, headers_of, urls_of
from mailroute.sources import BadAnswer, SourceContext
from mailroute.sources.trust import tls_for
from mailroute.sources.web import WebServers
from mailroute.sources.web_client import WebAnswer, WebServerFails

_NOT_TAKEN = {400, 413, 414, 422, 431}
"""What a server says of a question that it finds wrong, or too long (RFC 9110 section 15.5, RFC 6585)."""


class WebRouter(GuardedRouter):
    """What both dialects have in common."""

    def __init__(self, options: HttpOptions, context: SourceContext, *, proves: bool) -> None:
        super().__init__(self._find, options, context, by_password=proves, by_client=proves)
        self.proves = proves
        self.urls = urls_of(options)
        self._servers: WebServers[Any] = WebServers(
            self.urls,
            context.clock,
            tls_for(context, options.ca),
            self._read,
            headers=headers_of(options, context),
            patience=options.timeout,
            connections=options.connections,
            label=context.label,
        )

    async def _find(self, lookup: Lookup) -> Route | None:
        raise NotImplementedError

    def _read(self, answer: WebAnswer) -> Any:
        raise NotImplementedError

    def stopService(self) -> Deferred[None]:
        """Close the connections."""
        super().stopService()
        return self._servers.close()


def unanswered(answer: WebAnswer, what: str) -> Exception:
    """Return what is wrong: with the question, which is somebody's own, or with the server."""
    said = f"status {answer.status}, {what}"
    if answer.status in _NOT_TAKEN:
        return BadAnswer(f"{said}: it does not take the question")
    return WebServerFails(said)
