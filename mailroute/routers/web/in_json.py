"""Asking servers in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

from twisted.web.http_headers import Headers

from mailroute.events import Lookup, Route
from mailroute.routers.answers import Answers
from mailroute.routers.questions import question
from mailroute.routers.web.options import HttpOptions
from mailroute.routers.web.router import WebRouter, unanswered
from mailroute.sources import BadAnswer, SourceContext
from mailroute.sources.context import shown
from mailroute.sources.web_client import WebAnswer


class JsonRouter(WebRouter):
    """Asks servers in JSON."""

    def __init__(self, options: HttpOptions, context: SourceContext) -> None:
        super().__init__(options, context, proves=options.send_password)
        self._answers = Answers(context.backends, options.backend, proves=self.proves)

    async def _find(self, lookup: Lookup) -> Route | None:
        asked = json.dumps(question(lookup, with_password=self.proves)).encode("ascii")
        headers = Headers({b"Content-Type": [b"application/json"], b"Accept": [b"application/json"]})
        answer: Mapping[str, object] | None = await self._servers.ask(b"POST", headers, asked)
        return None if answer is None else self._answers.route(answer)

    def _read(self, answer: WebAnswer) -> Mapping[str, object] | None:
        if answer.status in (204, 404):
            return None
        kind = b"".join(answer.values(b"Content-Type")).split(b";")[0].strip().lower()
        if answer.status != 200 or kind != b"application/json":
            raise unanswered(answer, f"Content-Type {shown(kind)}")
        try:
            said = json.loads(answer.body)
        except (ValueError, RecursionError):
            raise BadAnswer("its answer is no JSON") from None
        if said is not None and not isinstance(said, dict):
            raise BadAnswer("its answer must be an object or null, not {}", said)
        return said

    def __str__(self) -> str:
        return f"{' or '.join(self.urls)} {'checks passwords and ' * self.proves}knows where users live"
