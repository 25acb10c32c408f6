"""Service extensions: what mailroute announces, and what a backend has announced (RFC 5321 section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mailroute.envelope import DeliveryTerms, MailFrom, Obstacle, RcptTo
from mailroute.wire.smtp_syntax import Parameters

ALWAYS = ("PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8", "CHUNKING")
"""What can be kept whatever backends do: where one lacks what a message needs, its recipients are refused."""

OPTIONAL = ("DSN",)
"""What only backends can keep: a listener announces it if it is told to."""


def check_optional(word: str) -> None:
    """Check a word that a listener is to announce where mail is delivered.

    :raises ValueError: nothing is known of what it promises.
    """
    if word not in OPTIONAL:
        raise ValueError(f'"{word}" is not what mailroute can pass on, which is "{OPTIONAL[0]}": remove it')


Extensions = Mapping[bytes, Sequence[bytes]]
"""A backend's, by their keywords in upper case, each with its parameters in upper case."""

_OF_MAIL = {b"SIZE", b"BODY", b"SMTPUTF8"}
_OF_DSN = {b"RET", b"ENVID", b"NOTIFY", b"ORCPT"}


def announced(terms: DeliveryTerms, tls: bool) -> list[bytes]:
    """Return the lines of our EHLO reply but for the first."""
    lines = [name.encode("ascii") for name in (*ALWAYS, *terms.extensions)]
    lines.append(b"SIZE %d" % terms.message_size if terms.message_size else b"SIZE")
    if terms.tls_offered and not tls:
        lines.append(b"STARTTLS")
    return lines


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


def lacking(mail: MailFrom, recipient: RcptTo, extensions: Extensions) -> Obstacle | None:
    """Return why a backend cannot take this message (RFC 6152 section 3, RFC 6531 section 3.5)."""
    parameters = dict(mail.parameters)
    if (parameters.get(b"BODY") or b"").upper() == b"8BITMIME" and b"8BITMIME" not in extensions:
        return Obstacle.NO_8BITMIME
    if b"SMTPUTF8" not in extensions and (
        b"SMTPUTF8" in parameters or not (mail.mailbox.isascii() and recipient.mailbox.isascii())
    ):
        return Obstacle.NO_SMTPUTF8
    uses_dsn = any(key in _OF_DSN for key, _ in (*mail.parameters, *recipient.parameters))
    if uses_dsn and b"DSN" not in extensions:
        return Obstacle.NO_DSN
    return None
