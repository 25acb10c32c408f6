"""What a source has answered, field by field, becomes a route; or it makes no sense.

Whoever keeps the accounts is trusted to say where they live, and not to make
no mistakes: nothing of an answer gets further that is not what it should be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import TypeVar

from mailroute.events import (
    Change,
    Identity,
    LoginRefused,
    Method,
    Reason,
    Refusal,
    Route,
    Security,
)
from mailroute.sources.context import CONTROL, BadAnswer

MAX_TEXT = 512
"""Bytes of a name or a password, as of a user's name (`mailroute.names`)."""

MAX_OTHERS = 8
"""Backends in one answer: more than a client would wait for."""

MAX_FORWARD = 400
"""Bytes of all that is forwarded for one account, keys and values: in base64 they have to fit into one
XCLIENT command, beside the rest of it."""

FORWARD = "forward_"
"""What the names of fields to forward begin with."""

FIELDS = (
    "backend",
    "host",
    "port",
    "name",
    "password",
    "master",
    "login",
    "identity",
    "security",
    "refuse",
    "later",
)
"""The fields of a route, in any source's answer; beside them those that begin with `FORWARD`."""

PROVEN = "proven"
"""The field with which a source says that it has checked the password, where it can have done so."""

REFUSALS = {
    "disabled": Reason.CONTACT_ADMIN,
    "expired": Reason.EXPIRED,
    "password": Reason.AUTHENTICATION_FAILED,
    "forbidden": Reason.AUTHORIZATION_FAILED,
    "limit": Reason.LIMIT,
    "unavailable": Reason.UNAVAILABLE,
}
"""What the words that ``refuse`` may have mean; any other text is for the log, and means ``disabled``."""

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252}[A-Za-z0-9_])?\.?|[0-9A-Fa-f:.]{2,45}")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_YES = {"1", "y", "yes", "t", "true", "on"}
_NO = {"0", "n", "no", "f", "false", "off", ""}

_Choice = TypeVar("_Choice", bound=Enum)


class Answers:
    """Makes routes of one source's answers.

    :param backends: the names of the backends that there are.
    :param backend: the one where an answer names none.
    :param proves: whether the source may have checked the password.
    :ivar everywhere: whether one that names no backend means one all the same.
    """

    def __init__(self, backends: Iterable[str], backend: str | None = None, *, proves: bool = False) -> None:
        self._backends = frozenset(backends)
        self._backend = backend
        self.everywhere = backend is not None
        self._fields = (*FIELDS, PROVEN) if proves else FIELDS

    def route(self, answer: Mapping[str, object]) -> Route | None:
        """Return the route that the fields of an answer describe; a field that is None or empty is not there.

        Without any there is no route, unless the block has a backend for that.

        :raises LoginRefused: it says that the user may not log in, or not now.
        :raises BadAnswer: it makes no sense.
        """
        fields = {name: value for name, value in answer.items() if value not in (None, "", b"")}
        for key in fields:
            if key not in self._fields and not key.startswith(FORWARD):
                raise BadAnswer(f"there is no field {{}}; there are {', '.join(self._fields)}", key)
        if not fields and self._backend is None:
            return None
        self._refuse(fields)
        backends = self._named(fields.get("backend"))
        name, master, password = (text(fields, key) for key in ("name", "master", "password"))
        if master is not None and password is None:
            raise BadAnswer("master goes with a password, which is missing")
        return Route(
            backends[0],
            name,
            backends[1:],
            None if password is None else password.encode(),
            master,
            truth(fields, PROVEN),
            _change(fields),
            _forward(fields),
        )

    def _refuse(self, fields: Mapping[str, object]) -> None:
        if truth(fields, "later"):
            raise LoginRefused(Refusal(Reason.UNAVAILABLE, "the source says to try again later"))
        why = text(fields, "refuse")
        if why is not None:
            reason = REFUSALS.get(why, Reason.CONTACT_ADMIN)
            raise LoginRefused(Refusal(reason, f"the source refuses the user: {why}"))

    def _named(self, value: object) -> tuple[str, ...]:
        """Return the backends of an answer: one, several between commas, or a list."""
        if value is None:
            if self._backend is None:
                raise BadAnswer('it names no backend, and the block has no backend = "…" for that')
            return (self._backend,)
        if isinstance(value, bytes):
            value = decoded("backend", value)
        names: object = value
        if isinstance(value, str):
            names = [name.strip(" ") for name in value.split(",")]
        if not isinstance(names, list | tuple) or not 0 < len(names) <= MAX_OTHERS + 1:
            raise BadAnswer(f"backend must be one name, or at most {MAX_OTHERS + 1}, not {{}}", value)
        for each in names:
            if not isinstance(each, str) or each not in self._backends:
                raise BadAnswer("there is no backend {}", each)
        return tuple(names)


def _change(fields: Mapping[str, object]) -> Change | None:
    change = Change(
        _host(fields),
        _port(fields),
        _choice(fields, "login", Method),
        _choice(fields, "identity", Identity),
        _choice(fields, "security", Security),
    )
    return None if change == Change() else change


def _host(fields: Mapping[str, object]) -> str | None:
    host = text(fields, "host")
    if host is not None and not _HOST.fullmatch(host):
        raise BadAnswer("host must be a host's name or an address, not {}", host)
    return host


def _port(fields: Mapping[str, object]) -> int | None:
    value = fields.get("port")
    if value is None:
        return None
    if isinstance(value, bytes):
        value = decoded("port", value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 5:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise BadAnswer("port must be from 1 to 65535, not {}", value)
    return value


def _choice(fields: Mapping[str, object], key: str, choices: type[_Choice]) -> _Choice | None:
    word = text(fields, key)
    if word is None:
        return None
    try:
        return choices(word)
    except ValueError:
        known = ", ".join(str(choice.value) for choice in choices)
        raise BadAnswer(f"{key} must be one of {known}, not {{}}", word) from None


def _forward(fields: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    found = []
    for name in sorted(fields):
        if not name.startswith(FORWARD):
            continue
        key = name.removeprefix(FORWARD)
        if not _KEY.fullmatch(key):
            raise BadAnswer("{} is no name to forward: letters, digits, - and _, at most 64", name)
        found.append((key, str(text(fields, name))))
    if sum(len(key) + len(value.encode()) + 2 for key, value in found) > MAX_FORWARD:
        raise BadAnswer(f"what it forwards is longer than {MAX_FORWARD} bytes")
    return tuple(found)


def text(fields: Mapping[str, object], key: str) -> str | None:
    """Return a field that is a text, or None if it is not there.

    :raises BadAnswer: it is none that can be passed on.
    """
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, bytes):
        value = decoded(key, value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        value = str(value)
    said, values = ("it is", ()) if key == "password" else ("{} is", (value,))
    if not isinstance(value, str):
        raise BadAnswer(f"{key} must be a text, and {said} none", *values)
    if CONTROL.search(value):
        raise BadAnswer(f"{key} must not hold control characters, and {said} a text with some", *values)
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise BadAnswer(f"{key} must be Unicode, and {said} not", *values) from None
    if not 0 < length <= MAX_TEXT:
        raise BadAnswer(f"{key} must be from 1 to {MAX_TEXT} bytes long, not {length}")
    return value


def truth(fields: Mapping[str, object], key: str) -> bool:
    """Return a field that is yes or no; no if it is not there.

    :raises BadAnswer: it is neither.
    """
    value = fields.get(key)
    if value is None:
        return False
    if isinstance(value, bytes):
        value = decoded(key, value)
    word = str(value).lower() if isinstance(value, str) or value in (0, 1) else None
    if word not in _YES | _NO:
        raise BadAnswer(f"{key} must be true or false, not {{}}", value)
    return word in _YES


def decoded(key: str, value: bytes) -> str:
    """Return bytes as the text that they are.

    :raises BadAnswer: they are none.
    """
    if len(value) > MAX_TEXT:
        raise BadAnswer(f"{key} must be from 1 to {MAX_TEXT} bytes long, not {len(value)}")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise BadAnswer(f"{key} must be UTF-8, which it is not") from None
