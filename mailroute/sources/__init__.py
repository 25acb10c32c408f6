"""What the kinds of ``[[route]]`` and ``[[authenticate]]`` blocks have in common."""

from mailroute.sources.context import (
    CONTROL,
    BadAnswer,
    BadOption,
    Copies,
    InThread,
    SourceContext,
    only,
    regex,
    text,
    unknown_backend,
)
from mailroute.sources.options import (
    CHECKED,
    GuardOptions,
    Options,
    SlowOptions,
    read_options,
    secret,
    web_address,
)
from mailroute.sources.registry import Registry, UnknownSource
from mailroute.sources.users_file import UsersFile

__all__ = [
    "CHECKED",
    "CONTROL",
    "BadAnswer",
    "BadOption",
    "Copies",
    "GuardOptions",
    "InThread",
    "Options",
    "Registry",
    "SlowOptions",
    "SourceContext",
    "UnknownSource",
    "UsersFile",
    "only",
    "read_options",
    "regex",
    "secret",
    "text",
    "unknown_backend",
    "web_address",
]
