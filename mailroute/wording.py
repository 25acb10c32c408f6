"""The words in which the person who wrote a configuration is told what is wrong with a key."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that proposes the nearest known word, or names them all."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, 1)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known: {', '.join(known)}" if known else ""


def shown(value: object) -> str:
    """Return a value roughly as it stands in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, int | float):
        return str(value)
    return f"a {type(value).__name__}"


def listed(words: Iterable[str]) -> str:
    """Return the words in quotes, as a choice."""
    quoted = [f'"{word}"' for word in words]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


_KINDS = {
    "string_type": "a string in quotes",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number of seconds",
    "finite_number": "a finite number",
    "list_type": "a list",
    "dict_type": "a table",
}


_BOUNDS = {
    "greater_than_equal": "must be {ge:g} or more, not {}",
    "greater_than": "must be greater than {gt:g}, not {}",
    "less_than_equal": "must be {le:g} or less, not {}",
    "too_short": "is empty: there has to be something in it",
    "string_too_short": "is empty: there has to be something in it",
    "too_long": "must have at most {max_length} items, not {actual_length}",
}


def message(found: Any, model: type[BaseModel], unknown: Callable[[str], str]) -> str:
    """Say a pydantic error in our words; ``unknown`` has those for a key that the model does not have."""
    key, sort, value = found["loc"][-1], found["type"], found["input"]
    if sort == "extra_forbidden":
        return unknown(str(key))
    if sort == "missing":
        examples: Any = model.model_fields[str(key)].examples or [""]
        return f"missing: write for example {key} = {json.dumps(examples[0], ensure_ascii=False)}"
    if sort == "value_error":
        return str(found["ctx"]["error"])
    if sort == "enum":
        annotation: Any = model.model_fields[str(key)].annotation
        return f"must be {listed(choice.value for choice in annotation)}, not {shown(value)}"
    if sort in _BOUNDS:
        return _BOUNDS[sort].format(shown(value), **found["ctx"])
    if sort in _KINDS:
        return f"must be {_KINDS[sort]}, not {shown(value)}"
    return f"{found['msg']}, not {shown(value)}"
