"""Commands, and what stands behind MAIL, RCPT and BDAT, with what is wrong with it.

RFC 5321, 1870, 3030, 6152, 6531.
"""

from __future__ import annotations

import re

from mailroute.dialogs.smtp.bounds import MAX_SIZE_DIGITS
from mailroute.dialogs.smtp.extensions import unknown_parameter
from mailroute.envelope import Chunk, DeliveryTerms, MailFrom, RcptTo
from mailroute.wire.smtp_syntax import BadSyntax, Parameters, account_of, read_path

MAX_HELLO = 255
"""Bytes of the name that a client gives itself: a domain's (RFC 5321 section 4.5.3.1.2)."""

_BDAT = re.compile(rb"([0-9]{1,%d})(?: +(LAST))?" % MAX_SIZE_DIGITS, re.IGNORECASE)
_TTL = re.compile(rb"TTL=([0-9]{1,9})", re.IGNORECASE)
_XTEXT = rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+"
_WHEN = rb"(?:SUCCESS|FAILURE|DELAY)"

# RFC 1870, 6152, 6531, and RFC 3461 section 4 with RFC 6533 for addresses that are not ASCII.
_VALUES = {
    b"SIZE": re.compile(rb"[0-9]{1,%d}" % MAX_SIZE_DIGITS),
    b"BODY": re.compile(rb"7BIT|8BITMIME", re.IGNORECASE),
    b"RET": re.compile(rb"FULL|HDRS", re.IGNORECASE),
    b"ENVID": re.compile(_XTEXT),
    b"NOTIFY": re.compile(rb"NEVER|%s(?:,%s)*" % (_WHEN, _WHEN), re.IGNORECASE),
    b"ORCPT": re.compile(rb"[A-Za-z0-9-]+;(?:%s|[\x80-\xff])+" % _XTEXT),
}
"""What parameters may say; the others have no value."""

_NOT_UNDERSTOOD = b"501 5.5.4 Parameter not understood"
_NO_SMTPUTF8 = b"553 5.6.7 Use SMTPUTF8 for such an address"


def read_command(line: bytes) -> tuple[bytes, bytes]:
    """Return a command's verb in upper case, and what stands behind it.

    The verb of what can be no command is empty: an end of line of another kind
    would be one command here and two elsewhere.
    """
    if b"\r" in line or b"\n" in line or b"\0" in line:
        return b"", b""
    verb, _, rest = line.partition(b" ")
    return verb.upper(), rest.strip(b" ")


def read_mail(rest: bytes, terms: DeliveryTerms) -> MailFrom | bytes:
    """Return the sender, or the reply that says what is wrong."""
    if rest[:5].upper() != b"FROM:":
        return b"501 5.5.4 Write MAIL FROM:<address>"
    try:
        mailbox, parameters = read_path(rest[5:])
    except BadSyntax:
        return b"501 5.1.7 Not a sender's address"
    if unknown_parameter(parameters, terms, of_mail=True):
        return b"555 5.5.4 Parameter not known"
    given = dict(parameters)
    if not _are_sound(parameters):
        return _NOT_UNDERSTOOD
    if terms.message_size and int(given.get(b"SIZE") or 0) > terms.message_size:
        return b"552 5.3.4 Message too large"
    if not rest.isascii() and b"SMTPUTF8" not in given:
        return _NO_SMTPUTF8
    return MailFrom(mailbox, parameters)


def _are_sound(parameters: Parameters) -> bool:
    """Whether they say what they may; what a backend finds wrong with them would be taken for our fault."""
    for key, value in parameters:
        allowed = _VALUES.get(key)
        if value is not None if allowed is None else not allowed.fullmatch(value or b""):
            return False
    return True


def read_rcpt(rest: bytes, terms: DeliveryTerms, mail: MailFrom) -> RcptTo | bytes:
    """Return the recipient, or the reply that says what is wrong."""
    if rest[:3].upper() != b"TO:":
        return b"501 5.5.4 Write RCPT TO:<address>"
    try:
        mailbox, parameters = read_path(rest[3:])
        account = account_of(mailbox)
    except BadSyntax:
        return b"501 5.1.3 Not a recipient's address"
    if not account:
        return b"501 5.1.3 Not a recipient's address"
    if unknown_parameter(parameters, terms, of_mail=False):
        return b"555 5.5.4 Parameter not known"
    if not _are_sound(parameters):
        return _NOT_UNDERSTOOD
    if not rest.isascii() and not _has(mail.parameters, b"SMTPUTF8"):
        return _NO_SMTPUTF8
    return RcptTo(mailbox, account, parameters)


def _has(parameters: Parameters, key: bytes) -> bool:
    return any(name == key for name, _ in parameters)


def read_bdat(rest: bytes) -> Chunk | None:
    """Return the chunk that follows, ``None`` if that is not known."""
    found = _BDAT.fullmatch(rest)
    return None if found is None else Chunk(int(found[1]), found[2] is not None)


def read_ttl(rest: bytes) -> int | None:
    """Return the TTL that XCLIENT gives, ``None`` if it gives anything else."""
    found = _TTL.fullmatch(rest)
    return None if found is None else int(found[1])
