"""What is logged of a source that fails: where, and never what it says."""

from __future__ import annotations

from twisted.python.failure import Failure

MAX_FRAMES = 8
"""Places of a traceback that are logged: the innermost, which are the ones of whoever has failed."""


def fault(failure: Failure) -> str:
    """Return what has been raised and where, for the log.

    The exception's own text is left out, and so is every value: a program that somebody
    wrote against a database or a web server has passwords in both.
    """
    kind = failure.type.__name__ if failure.type is not None else "nothing"
    places = [f"{file}:{line} ({function})" for function, file, line, *_ in failure.frames[-MAX_FRAMES:]]
    return " in ".join([kind, *reversed(places)])
