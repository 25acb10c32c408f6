"""The arguments of MAIL and RCPT (RFC 5321 section 4.1.2, RFC 6531 section 3.3)."""

from __future__ import annotations

import re

MAX_PATH = 512
"""Bytes of a path: twice what RFC 5321 section 4.5.3.1.3 asks for."""

MAX_PARAMETERS = 16
"""Parameters of one command: all that are registered are fewer."""

Parameters = tuple[tuple[bytes, bytes | None], ...]
"""Keywords in upper case, each with its value as it stood."""


class BadSyntax(ValueError):
    """A command's arguments cannot be read; the text says which."""


# Dots may stand anywhere: some hosts have had such mailboxes for decades.
_DOTTED = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\x80-\xff-]+"
_QUOTED = rb'"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])*"'
_DOMAIN = rb"(?:[A-Za-z0-9._\x80-\xff-]+|\[[!-Z^-~]{1,100}\])"
_PATH = re.compile(
    rb" ?<(?:@[^<>: ]+:)?(?P<mailbox>(?P<local>%s|%s)?(?:@(?P<domain>%s))?)>" % (_DOTTED, _QUOTED, _DOMAIN)
)
_DOT_ATOM = re.compile(_DOTTED)
_WHOLE_DOMAIN = re.compile(_DOMAIN)
_PARAMETER = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-~\x80-\xff]+))?")
_UNQUOTE = re.compile(rb"\\(.)", re.DOTALL)
_TO_QUOTE = re.compile(rb'(["\\])')


def read_path(text: bytes) -> tuple[bytes, Parameters]:
    """Read what follows ``FROM:`` or ``TO:``, and return the mailbox as it is spelled and the parameters.

    A source route is left out, as RFC 5321 section 4.1.1.3 wants it; the
    null path's mailbox is empty.

    :raises BadSyntax: it is no path, or no parameters follow.
    """
    found = _PATH.match(text)
    if found is None:
        raise BadSyntax("no path")
    mailbox: bytes = found["mailbox"]
    if (found["local"] is None) != (mailbox == b""):
        raise BadSyntax("no local part")
    if len(mailbox) > MAX_PATH:
        raise BadSyntax("too long a path")
    if not is_utf8(mailbox):
        raise BadSyntax("a path that is not UTF-8")
    return mailbox, _read_parameters(text[found.end() :])


def _read_parameters(text: bytes) -> Parameters:
    if text.strip(b" ") and not text.startswith(b" "):
        raise BadSyntax("no space behind the path")
    words = [word for word in text.split(b" ") if word]
    if len(words) > MAX_PARAMETERS or not is_utf8(text):
        raise BadSyntax("too many parameters, or not UTF-8")
    found: dict[bytes, bytes | None] = {}
    for word in words:
        match = _PARAMETER.fullmatch(word)
        if match is None or match[1].upper() in found:
            raise BadSyntax("no such parameter")
        found[match[1].upper()] = match[2]
    return tuple(found.items())


def is_utf8(text: bytes) -> bool:
    """Whether the bytes are UTF-8, as ASCII is."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _split(mailbox: bytes) -> tuple[bytes, bytes]:
    """Return the local part as it is spelled, and the domain, empty if there is none."""
    local, at, domain = mailbox.rpartition(b"@")
    if not at or domain.endswith(b'"'):
        return mailbox, b""
    return local, domain


def account_of(mailbox: bytes) -> bytes:
    """Return the mailbox as a user's name: without the quotes, which are a matter of spelling.

    :raises BadSyntax: the local part is quoted and there is no domain; what stands in quotes
        could then be taken for an address.
    """
    local, domain = _split(mailbox)
    if local.startswith(b'"'):
        if not domain:
            raise BadSyntax("a quoted local part without a domain")
        local = _UNQUOTE.sub(rb"\1", local[1:-1])
    return local + b"@" + domain if domain else local


def spell(name: bytes, mailbox: bytes) -> bytes:
    """Return a user's name as a mailbox; a name without a domain replaces another mailbox's local part.

    :raises BadSyntax: it cannot be written as a mailbox.
    """
    local, domain = _split_name(name)
    domain = domain or _split(mailbox)[1]
    if not _DOT_ATOM.fullmatch(local):
        if not local or re.search(rb"[\x00-\x1f\x7f]", local):
            raise BadSyntax("no local part")
        local = b'"' + _TO_QUOTE.sub(rb"\\\1", local) + b'"'
    spelled = local + b"@" + domain if domain else local
    if (domain and not _WHOLE_DOMAIN.fullmatch(domain)) or len(spelled) > MAX_PATH or not is_utf8(spelled):
        raise BadSyntax("no domain")
    return spelled


def _split_name(name: bytes) -> tuple[bytes, bytes]:
    local, at, domain = name.rpartition(b"@")
    return (local, domain) if at else (name, b"")
