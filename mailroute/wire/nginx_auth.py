"""The words between nginx's mail proxy and its auth server (``auth_http``): all of them are HTTP headers.

nginx's documentation has no more than an example; what is written here is
what ngx_mail_auth_http_module.c (1.22 to 1.31) does, and a test asks both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mailroute.wire.smtp_syntax import Parameters

NAMES = (
    b"Auth-Method",
    b"Auth-User",
    b"Auth-Pass",
    b"Auth-Protocol",
    b"Auth-Login-Attempt",
    b"Client-IP",
    b"Client-Host",
    b"Proxy-Protocol-Addr",
    b"Proxy-Protocol-Port",
    b"Proxy-Protocol-Server-Addr",
    b"Proxy-Protocol-Server-Port",
    b"Auth-SMTP-Helo",
    b"Auth-SMTP-From",
    b"Auth-SMTP-To",
    b"Auth-SSL",
    b"Auth-SSL-Protocol",
    b"Auth-SSL-Cipher",
    b"Auth-SSL-Verify",
    b"Auth-SSL-Subject",
    b"Auth-SSL-Issuer",
    b"Auth-SSL-Serial",
    b"Auth-SSL-Fingerprint",
    b"Auth-SSL-Cert",
)
"""The headers of a question, capitalised as nginx has them."""

MAX_WAIT = 60
"""Seconds of an ``Auth-Wait``; a longer one counts as this.

A client that has to wait holds a connection meanwhile, and gives up after a minute or so.
"""

MAX_PASSWORD = 4096
"""Bytes of a password as it stands in its header.

What nginx reads of a client at once is as long; and web servers refuse a header that is twice as long, which
nobody could tell from a server that fails.
"""

NO_HOST = b"[UNAVAILABLE]"
"""The ``Client-Host`` of a client whose name nobody has looked up; nginx has the header for SMTP alone."""

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_ESCAPED = re.compile(rb"[\x00-\x20%]")


class BadAuthAnswer(ValueError):
    """The server's answer makes no sense; the text holds no secret."""


def escape(text: bytes) -> bytes:
    """Return a name or a password as nginx writes it into a header.

    A control character, a space and a ``%`` become ``%XX``; DEL and all above it stay as they are.
    """
    return _ESCAPED.sub(lambda found: b"%%%02X" % ord(found[0]), text)


def path(command: bytes, mailbox: bytes, parameters: Parameters) -> bytes:
    """Return a command of SMTP's that names a mailbox, as nginx tells it: nothing in it is escaped.

    :param command: ``MAIL FROM`` or ``RCPT TO``.
    """
    written = [name if value is None else b"%s=%s" % (name, value) for name, value in parameters]
    return one_line(b" ".join([b"%s:<%s>" % (command, mailbox), *written]))


def one_line(text: bytes) -> bytes:
    """Return what a client has written in one line of SMTP, as nginx tells it: without anything escaped.

    Only what no header can hold is, of which none comes in SMTP.
    """
    return _CONTROL.sub(lambda found: b"%%%02X" % ord(found[0]), text)


class AuthAnswer(NamedTuple):
    """What the server says; its repr does not show the password.

    ``refusal`` is None if the user may come in; ``again``: the server wants to be asked again after ``wait``
    seconds; ``temporary``: it may be otherwise later.  The rest is None where the server says nothing.
    """

    refusal: str | None = None
    again: bool = False
    wait: int = 0
    temporary: bool = False
    server: bytes | None = None
    port: bytes | None = None
    user: bytes | None = None
    password: bytes | None = None

    def __repr__(self) -> str:
        return f"AuthAnswer({self.refusal!r}, server={self.server!r}, port={self.port!r}, password=...)"


def read(values: Callable[[bytes], Sequence[bytes]]) -> AuthAnswer | None:
    """Return what the headers of an answer say; None if they are not an auth server's.

    :param values: returns the values of a header.
    :raises BadAuthAnswer: they make no sense.
    """
    statuses = values(b"Auth-Status")
    if not statuses:
        return None
    waits = values(b"Auth-Wait")[-1:]
    wait = min(int(waits[0]), MAX_WAIT) if waits and re.fullmatch(rb"[0-9]{1,18}", waits[0]) else 0
    refusals = [status for status in statuses if status not in (b"OK", b"WAIT")]
    if refusals:
        # Only SMTP has codes, but what begins with a 4 is no matter of the password there either.
        temporary = any(code.startswith(b"4") for code in values(b"Auth-Error-Code"))
        return AuthAnswer(refusals[-1].decode("utf-8", "replace"), False, wait, temporary)
    if b"WAIT" in statuses:
        return AuthAnswer(again=True, wait=wait)
    server, port, user, password = (
        next((value for value in reversed(values(name)) if value), None)
        for name in (b"Auth-Server", b"Auth-Port", b"Auth-User", b"Auth-Pass")
    )
    if server is None or port is None:
        raise BadAuthAnswer("Auth-Status is OK, and Auth-Server or Auth-Port is missing")
    return AuthAnswer(None, False, wait, False, server, port, user, password)
