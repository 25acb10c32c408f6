"""What settings were read from, in a form that can be sent to another process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, time
from enum import Enum
from pathlib import Path, PurePath
from types import NoneType
from typing import Any

from attrs import field, frozen

from mailroute.toml_lines import KeyPath
from mailroute.wording import shown

_PLAIN = (str, bytes, int, float, date, time, PurePath, Enum, NoneType)  # a datetime is a date


@frozen
class Source:
    """What settings were read from: with it another process makes the same ones (`mailroute.config.reread`).

    ``document`` is the tree of the configuration, ``files`` holds copies of the
    files that it names.  Its repr shows neither: both may hold secrets.
    """

    folder: Path
    document: Mapping[str, Any] = field(repr=False)
    files: Mapping[Path, bytes] = field(repr=False)


def plain(value: Any, fault: Callable[[KeyPath, str], None], path: KeyPath = ()) -> Any:
    """Return a copy of a tree that can be sent; whatever in it cannot is a fault."""
    if isinstance(value, Mapping):
        return {key: plain(found, fault, (*path, key)) for key, found in value.items()}
    if isinstance(value, list | tuple):
        return [plain(found, fault, (*path, position)) for position, found in enumerate(value)]
    if not isinstance(value, _PLAIN):
        message = f"{shown(value)} of this program cannot be handed to workers: let them load a plugin for it"
        fault(path, f"{message}, or use workers = 1")
    return value
