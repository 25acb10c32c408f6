"""The ``http`` source: a web server decides, in the words of nginx's ``auth_http`` or in JSON."""

from __future__ import annotations

from collections.abc import Mapping

from zope.interface import implementer

from mailroute.interfaces import IRouter, IRouteSource
from mailroute.routers.web.in_json import JsonRouter
from mailroute.routers.web.nginx import NginxRouter
from mailroute.routers.web.options import Dialect, HttpOptions
from mailroute.sources import BadOption, SourceContext, read_options

_NGINX_ALONE = {
    "protocols": "in JSON there are our own names",
    "pass_client_cert": "in JSON no certificate is told",
    "envelope": "in JSON no sender is told",
}
"""Keys that mean nothing in JSON, and why."""


@implementer(IRouteSource)
class HttpSource:
    """Makes a `NginxRouter` or a `JsonRouter`."""

    name = "http"

    def router(self, options: Mapping[str, object], context: object) -> IRouter:
        """Make the router; see `IRouteSource.router`."""
        assert isinstance(context, SourceContext)  # noqa: S101 - only the configuration calls it
        read = read_options(HttpOptions, options, context)
        if read.dialect is Dialect.JSON:
            for key, why in _NGINX_ALONE.items():
                if key in read.model_fields_set:
                    raise BadOption(key, f'goes with dialect = "nginx": {why}; remove it')
            return JsonRouter(read, context)
        if "send_password" in read.model_fields_set:
            raise BadOption("send_password", 'goes with dialect = "json": nginx always sends it')
        if read.backend is None:
            raise BadOption("backend", "missing: its settings hold for the addresses that the server names")
        return NginxRouter(read, context)
