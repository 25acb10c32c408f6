"""Service extensions: what mailroute announces, and what a backend has announced (RFC 5321 section 2.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from mailroute.envelope import DeliveryTerms, MailFrom, Obstacle, Outcome, RcptTo
from mailroute.events import DialogTerms, Reason
from mailroute.wire.smtp_syntax import Parameters

Extensions = Mapping[bytes, tuple[bytes, ...]]
"""A backend's, by their keywords in upper case, each with its parameters in upper case."""

ALWAYS = ("PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8", "CHUNKING")
"""What can be kept whatever backends do: where one lacks what a message needs, its recipients are refused."""

OPTIONAL = ("DSN",)
"""What only backends can keep: a listener announces it if it is told to."""

SUBMISSION_ALWAYS = ("PIPELINING", "ENHANCEDSTATUSCODES")
"""What mailroute itself does before a login."""

SUBMISSION_USUALLY = ("8BITMIME", "SIZE")
"""What every backend has (RFC 6409 section 7), unless a listener says what its backends have."""

# RFC 5321 section 4.1.1.1: ehlo-line.
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?: [!-~]+)*")

MAX_LINE = 500
"""Bytes of a line of the EHLO reply: RFC 5321 section 4.5.3.1.5 has 512, its code and its end included."""

# The last two would be an offer to say that one is somebody else.
_OWN = frozenset({*SUBMISSION_ALWAYS, "STARTTLS", "AUTH", "XCLIENT", "XFORWARD"})


_OF_MAIL = {b"SIZE", b"BODY", b"SMTPUTF8"}
_OF_DSN = {b"RET", b"ENVID", b"NOTIFY", b"ORCPT"}


def check_line(line: str) -> None:
    """Check a line of the EHLO reply that a listener is to announce to those who log in.

    :raises ValueError: it is none, or not the listener's to announce.
    """
    found = _LINE.fullmatch(line)
    if found is None or len(line) > MAX_LINE:
        raise ValueError(
            f'"{line}" is no extension: it must be a keyword, and its parameters with single spaces between '
            "(RFC 5321, section 4.1.1.1)"
        )
    if found[1].upper() in _OWN:
        raise ValueError(f'"{line}" is for mailroute itself to announce: take it out')


def check_optional(word: str) -> None:
    """Check a word that a listener is to announce where mail is delivered.

    :raises ValueError: nothing is known of what it promises.
    """
    if word not in OPTIONAL:
        raise ValueError(f'"{word}" is not what mailroute can pass on, which is "{OPTIONAL[0]}": remove it')


def announced(terms: DeliveryTerms, tls: bool) -> list[bytes]:
    """Return the lines of our EHLO reply but for the first."""
    lines = [name.encode("ascii") for name in (*ALWAYS, *terms.extensions)]
    # Not for whom a client says to be, only for how far its connection has come.
    lines.append(b"XCLIENT TTL")
    lines.append(b"SIZE %d" % terms.message_size if terms.message_size else b"SIZE")
    if terms.tls_offered and not tls:
        lines.append(b"STARTTLS")
    return lines


@lru_cache
def announced_before_login(terms: DialogTerms, tls: bool) -> tuple[bytes, ...]:
    """Return the lines of the EHLO reply but for the first, for a client that has not logged in yet.

    :param tls: TLS that it has asked for is on.
    """
    lines = [*SUBMISSION_ALWAYS, *(terms.capabilities or SUBMISSION_USUALLY)]
    if terms.tls_offered and not tls:
        lines.append("STARTTLS")
    if terms.mechanisms and (tls or terms.login_allowed):
        lines.append(" ".join(["AUTH", *terms.mechanisms]))
    return tuple(line.encode("ascii") for line in lines)


def read_extensions(lines: Sequence[bytes]) -> Extensions:
    """Return what a backend's EHLO reply announces; its first line is a greeting."""
    found = {}
    for line in lines[1:]:
        words = line.upper().split()
        if words:
            found[words[0]] = tuple(words[1:])
    return found


def unknown_parameter(parameters: Parameters, terms: DeliveryTerms, *, of_mail: bool) -> bool:
    """Whether a client uses a parameter that was not announced for this command."""
    known = _OF_MAIL if of_mail else set()
    if "DSN" in terms.extensions:
        known = known | (_OF_DSN - {b"NOTIFY", b"ORCPT"} if of_mail else {b"NOTIFY", b"ORCPT"})
    return any(key not in known for key, _ in parameters)


def passed_on(parameters: Parameters, extensions: Extensions) -> bytes:
    """Return the parameters that a backend knows, each with a space before it.

    BODY=7BIT and SIZE say nothing that a backend without these extensions would have to know.
    """
    known = set()
    for keyword, keys in ((b"SIZE", {b"SIZE"}), (b"8BITMIME", {b"BODY"}), (b"SMTPUTF8", {b"SMTPUTF8"})):
        if keyword in extensions:
            known |= keys
    if b"DSN" in extensions:
        known |= _OF_DSN
    return b"".join(
        b" " + key + (b"" if value is None else b"=" + value) for key, value in parameters if key in known
    )


def lacking(mail: MailFrom, recipient: RcptTo, extensions: Extensions) -> Outcome | None:
    """Return why a backend cannot take this message (RFC 6152 section 3, RFC 6531 section 3.5)."""
    parameters = dict(mail.parameters)
    if (parameters.get(b"BODY") or b"").upper() == b"8BITMIME" and b"8BITMIME" not in extensions:
        return Obstacle.NO_8BITMIME
    if b"SMTPUTF8" in parameters:
        if b"SMTPUTF8" not in extensions:
            return Obstacle.NO_SMTPUTF8
    elif not recipient.mailbox.isascii():
        return Reason.MISCONFIGURED  # the client's was ASCII: a route has given this one
    uses_dsn = any(key in _OF_DSN for key, _ in (*mail.parameters, *recipient.parameters))
    if uses_dsn and b"DSN" not in extensions:
        return Obstacle.NO_DSN
    return None
