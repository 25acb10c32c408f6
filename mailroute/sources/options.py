"""The keys of a block whose source has many, and those that every slow source has."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mailroute.sources.context import BadOption, SourceContext, unknown_backend
from mailroute.wording import did_you_mean, message


class Options(BaseModel):
    """The keys of one ``[[route]]`` block, less ``source``."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class GuardOptions(Options):
    """The keys of whatever asks somebody else, and spares them; durations are seconds."""

    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5
    """Seconds for one answer; 5 unless given."""

    cache_ttl: _Seconds = 60
    """Seconds for which a route is known without asking again, 0 for none; 60 unless given, but `CHECKED`'s
    where the source also checks the password, as of the next two."""

    negative_ttl: _Seconds = 10
    """Seconds for which it is known that there is no route, 0 for none; 10 unless given."""

    stale_if_error: _Seconds = 600
    """Seconds beyond ``cache_ttl`` for which a route is used on when the source fails; 600 unless given."""

    cache_size: Annotated[int, Field(ge=1)] = 10000
    """How many answers are kept; 10000 unless given."""

    breaker_failures: Annotated[int, Field(ge=0)] = 5
    """Failures in a row after which the source is left alone for a while, 0 for never; 5 unless given."""

    breaker_pause: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10
    """Seconds for which it is left alone; 10 unless given."""

    def with_defaults(self, defaults: Mapping[str, float]) -> Self:
        """Return a copy with other values for the keys that are not given."""
        fresh = {key: value for key, value in defaults.items() if key not in self.model_fields_set}
        return self.model_copy(update=fresh)


CHECKED: Mapping[str, float] = {"cache_ttl": 30, "negative_ttl": 0, "stale_if_error": 0}
"""What holds unless given where a source says whether a password is right, or keeps what says so.

An account that is disabled, and a password that was changed, are good for so
long; one that has been mended counts at once.
"""


class SlowOptions(GuardOptions):
    """The keys that every source of routes has that asks somebody else."""

    per_client: bool | None = None
    """Whether an answer is kept for clients of the same address alone.  Unless given, it is where the source
    checks the password and knows the address, or a query asks for it."""

    backend: str | None = None
    """The backend where the answer names none, and whose block holds where it names a host;
    unless given, every answer has to name one."""


_LOCAL = ("localhost", "127.0.0.1", "::1")

_Model = TypeVar("_Model", bound=Options)


def read_options(model: type[_Model], options: Mapping[str, object], context: SourceContext) -> _Model:
    """Return the options as a model.

    :raises BadOption: names the first key that is wrong, and says why.
    """
    try:
        read = model.model_validate(dict(options))
    except ValidationError as error:
        # A key that is misspelt is the likeliest reason for one that is missing.
        found = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
        unknown = partial(_unknown, model=model)
        raise BadOption(str(found["loc"][0]), message(found, model, unknown)) from None
    backend = getattr(read, "backend", None)
    if backend is not None and backend not in context.backends:
        raise BadOption("backend", unknown_backend(backend, context.backends))
    return read


def _unknown(key: str, model: type[BaseModel]) -> str:
    return f"unknown key{did_you_mean(key, model.model_fields)}"


def secret(context: SourceContext, key: str, file: str) -> bytes:
    """Return the first line of the file that a key names.

    :raises BadOption: it cannot be read, or there is nothing in it.
    """
    path = context.folder / Path(file)
    try:
        content = context.copies.read(path)
    except OSError as error:
        raise BadOption(key, f"cannot read {path}: {error.strerror or error}") from None
    line = content.split(b"\n", 1)[0].removesuffix(b"\r")
    if not line:
        raise BadOption(key, f"{path} is empty: its first line must be the secret")
    return line


def web_address(url: str) -> str:
    """Return an address that may be asked: its answers are verified, or come from this machine.

    :raises ValueError: it is neither https nor of this machine.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and host in _LOCAL)):
        raise ValueError("must be an https:// address, or an http:// address of this machine")
    return url
