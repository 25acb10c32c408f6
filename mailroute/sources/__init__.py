"""What the kinds of ``[[route]]`` and ``[[authenticate]]`` blocks have in common."""

from mailroute.sources.context import (
    CONTROL,
    BadOption,
    Copies,
    InThread,
    SourceContext,
    did_you_mean,
    only,
    regex,
    text,
    unknown_backend,
)
from mailroute.sources.registry import Registry, UnknownSource
from mailroute.sources.users_file import UsersFile

__all__ = [
    "CONTROL",
    "BadOption",
    "Copies",
    "InThread",
    "Registry",
    "SourceContext",
    "UnknownSource",
    "UsersFile",
    "did_you_mean",
    "only",
    "regex",
    "text",
    "unknown_backend",
]
