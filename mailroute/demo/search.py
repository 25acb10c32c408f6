"""Which messages an IMAP SEARCH finds.

twisted.mail's server can search by itself, but on Python 3 it looks for bytes
in text as soon as a query names a header or a date; a mailbox may do it in its
place (`twisted.mail.imap4.ISearchableMailbox`).
"""

from __future__ import annotations

import datetime
import email.utils
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.mail.imap4 import IllegalQueryError, parseIdList

if TYPE_CHECKING:
    from mailroute.demo.mailbox import Message

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def matches(query: list[object], message: Message, place: int, last_place: int, last_uid: int) -> bool:
    """Say whether a message meets every term of a query."""
    return _Matcher(message, place, last_place, last_uid).every(query)


class _Matcher:
    """Holds a query against one message."""

    def __init__(self, message: Message, place: int, last_place: int, last_uid: int) -> None:
        self._message = message
        self._place = place
        self._last_place = last_place
        self._last_uid = last_uid

    def every(self, query: list[object]) -> bool:
        terms = list(query)
        found = True
        while terms:
            # Every term is taken, even behind one that failed: a query that
            # makes no sense is refused whatever the messages are.
            found = self._next(terms) and found
        return found

    def _next(self, terms: list[object]) -> bool:
        """Take the next term and what belongs to it, and try it."""
        if not terms:
            raise IllegalQueryError("something is missing at the end")
        term = terms.pop(0)
        if isinstance(term, list):
            return self.every(term)
        word = _text(term).upper()
        if not word[:1].isalpha():
            return self._place in parseIdList(word.encode("ascii"), self._last_place)
        if word == "NOT":
            return not self._next(terms)
        if word == "OR":
            # Not "or": both have to be taken off the list.
            return any([self._next(terms), self._next(terms)])
        if word in _PLAIN:
            return _PLAIN[word](self)
        if word in _WITH_ARGUMENT:
            return _WITH_ARGUMENT[word](self, _argument(terms))
        if word == "HEADER":
            return self._header(_argument(terms), _argument(terms))
        raise IllegalQueryError(f"unknown search key {word}")

    def _has(self, flag: str) -> bool:
        return flag.lower() in {each.lower() for each in self._message.flags}

    def _header(self, name: str, wanted: str) -> bool:
        value = self._message.getHeaders(False, name).get(name.lower())
        return value is not None and wanted.lower() in value.lower()

    def _contains(self, content: bytes, wanted: str) -> bool:
        return wanted.lower() in content.decode("utf-8", "replace").lower()

    def _uid(self, numbers: str) -> bool:
        return self._message.uid in parseIdList(numbers.encode("ascii"), self._last_uid)

    def _arrived(self) -> datetime.date:
        return email.utils.parsedate_to_datetime(self._message.getInternalDate()).date()

    def _sent(self) -> datetime.date:
        try:
            return email.utils.parsedate_to_datetime(
                self._message.getHeaders(False, "date").get("date", "")
            ).date()
        except ValueError:
            return self._arrived()


_PLAIN: dict[str, Callable[[_Matcher], bool]] = {
    "ALL": lambda _: True,
    "ANSWERED": lambda m: m._has("\\Answered"),
    "DELETED": lambda m: m._has("\\Deleted"),
    "DRAFT": lambda m: m._has("\\Draft"),
    "FLAGGED": lambda m: m._has("\\Flagged"),
    "NEW": lambda m: m._has("\\Recent") and not m._has("\\Seen"),
    "OLD": lambda m: not m._has("\\Recent"),
    "RECENT": lambda m: m._has("\\Recent"),
    "SEEN": lambda m: m._has("\\Seen"),
    "UNANSWERED": lambda m: not m._has("\\Answered"),
    "UNDELETED": lambda m: not m._has("\\Deleted"),
    "UNDRAFT": lambda m: not m._has("\\Draft"),
    "UNFLAGGED": lambda m: not m._has("\\Flagged"),
    "UNSEEN": lambda m: not m._has("\\Seen"),
}

_WITH_ARGUMENT: dict[str, Callable[[_Matcher, str], bool]] = {
    "BCC": lambda m, text: m._header("bcc", text),
    "BEFORE": lambda m, text: m._arrived() < _date(text),
    "BODY": lambda m, text: m._contains(m._message.body, text),
    "CC": lambda m, text: m._header("cc", text),
    "FROM": lambda m, text: m._header("from", text),
    "KEYWORD": lambda m, text: m._has(text),
    "LARGER": lambda m, text: m._message.getSize() > _number(text),
    "ON": lambda m, text: m._arrived() == _date(text),
    "SENTBEFORE": lambda m, text: m._sent() < _date(text),
    "SENTON": lambda m, text: m._sent() == _date(text),
    "SENTSINCE": lambda m, text: m._sent() >= _date(text),
    "SINCE": lambda m, text: m._arrived() >= _date(text),
    "SMALLER": lambda m, text: m._message.getSize() < _number(text),
    "SUBJECT": lambda m, text: m._header("subject", text),
    "TEXT": lambda m, text: m._contains(m._message.content, text),
    "TO": lambda m, text: m._header("to", text),
    "UID": lambda m, text: m._uid(text),
    "UNKEYWORD": lambda m, text: not m._has(text),
}


def _text(term: object) -> str:
    return term.decode("utf-8", "replace") if isinstance(term, bytes) else str(term)


def _argument(terms: list[object]) -> str:
    if not terms:
        raise IllegalQueryError("something is missing at the end")
    return _text(terms.pop(0))


def _number(text: str) -> int:
    if not text.isdecimal():
        raise IllegalQueryError(f"not a number: {text}")
    return int(text)


def _date(text: str) -> datetime.date:
    try:
        day, month, year = text.split("-")
        return datetime.date(int(year), _MONTHS.index(month.lower()) + 1, int(day))
    except ValueError:
        raise IllegalQueryError(f"not a date: {text}") from None
