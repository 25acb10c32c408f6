"""The backend's side of mail submission until the login has succeeded (RFC 6409, 4954, 3207)."""

from __future__ import annotations

import ipaddress
import re

from mailroute.dialogs.common.login import LOGIN
from mailroute.dialogs.common.plan import NoWay, choose, lines
from mailroute.dialogs.common.text import showable
from mailroute.dialogs.common.xclient import forwarded, xclient_lines
from mailroute.dialogs.smtp.dialect import SUBMISSION
from mailroute.dialogs.smtp.extensions import Extensions
from mailroute.dialogs.smtp.login import SmtpLogin
from mailroute.events import LoggedIn, LoginOrder, LoginTerms, Method, Reason
from mailroute.wire.lines import Parts

MAX_COMMAND = 512
"""Bytes in a command line, its end included (RFC 5321 section 4.5.3.1.4): an initial response that does
not fit waits for the 334 (RFC 4954 section 4)."""

# The underscore is in no RFC, but in the names of many a PC.
_LABEL = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_DOMAIN = re.compile(rb"%s(?:\.%s)*" % (_LABEL, _LABEL))
_LITERAL = re.compile(r"\[(IPv6:)?([0-9A-Fa-f:.]+)\]", re.IGNORECASE)

_ENHANCED = re.compile(rb"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: +|\Z)")

_REASONS = {
    500: Reason.MISCONFIGURED,
    501: Reason.MISCONFIGURED,
    502: Reason.MISCONFIGURED,
    503: Reason.MISCONFIGURED,
    504: Reason.MISCONFIGURED,
    # The backend wants TLS from us: the client has no part in that.
    523: Reason.MISCONFIGURED,
    525: Reason.CONTACT_ADMIN,
    530: Reason.MISCONFIGURED,
    538: Reason.MISCONFIGURED,
}
"""What a code means, where it is not that the credentials are wrong (5xx) or that it is to be tried again."""

_OWN_WORDS = frozenset({b"", b"5.7.8", b"5.7.0", b"4.7.0"})
"""The enhanced codes whose texts say no more than our own words, or whether the account exists."""


class SubmissionLogin(SmtpLogin):
    """One connection to a backend, until an account is open on it."""

    __slots__ = ()

    def __init__(self, terms: LoginTerms) -> None:
        super().__init__(SUBMISSION, terms)

    def _hello_name(self) -> bytes:
        """Return the client's own name, or what stands for one that has none (RFC 5321 section 4.1.4)."""
        if _can_be_said(self._seam.hello):
            return self._seam.hello
        source = self._order.client.source if self._order is not None else None
        if source is None:
            return super()._hello_name()
        prefix = "IPv6:" if ":" in source.host else ""
        return f"[{prefix}{source.host}]".encode("ascii")

    def _introduction(self, order: LoginOrder, listed: Parts) -> list[bytes]:
        """Return the XCLIENT commands; with LOGIN only where that is all there is of a login.

        A backend that believes it would ask for no password: so never beside AUTH.
        """
        more = self._told()
        if self._terms.method is Method.NONE:
            more.append((b"LOGIN", order.user.encode("utf-8")))
        if order.forward:
            more.append((b"FORWARD", forwarded(order.forward)))
        return xclient_lines(listed, order.client, more)

    def _ready(self, extensions: Extensions) -> None:
        order = self._order
        assert order is not None  # noqa: S101 (only with one it has come so far)
        if self._terms.method is Method.NONE:
            self._logged_in(b"2.7.0 Logged in")
            return
        try:
            choice = choose(self._terms, order, frozenset(extensions.get(b"AUTH", ())))
            if choice is None:
                raise NoWay("the backend offers no mechanism for a password")
        except NoWay as error:
            self._refuse(Reason.MISCONFIGURED, str(error))
            return
        room = MAX_COMMAND - len(b"AUTH %s \r\n" % choice.mechanism)
        self._said += self._carry_out(lines(choice, b"AUTH", room))

    def _response(self, parts: Parts) -> None:
        if self._state is LOGIN:
            self._auth_answered(int(parts[0]), parts[1:])
        else:
            super()._response(parts)

    def _auth_answered(self, code: int, texts: Parts) -> None:
        text = b" ".join(texts)
        if 300 <= code < 400:
            self._next_chunk(text)
        elif code >= 400:
            reason, reply = read_refusal(code, texts)
            self._login_refused(reason, b"%d %s" % (code, text), reply, goodbye=code == 421)
        elif not self._unfinished():
            self._logged_in(showable(text, self._secrets()))

    def _logged_in(self, text: bytes) -> None:
        self._end(LoggedIn(text, self._reader.rest()))


def read_refusal(code: int, texts: Parts) -> tuple[Reason, bytes | None]:
    """Return what the reply to AUTH means, and what of it the client may see, on one line."""
    reason = _REASONS.get(code, Reason.AUTHENTICATION_FAILED if code >= 500 else Reason.UNAVAILABLE)
    found = _ENHANCED.match(texts[0])
    enhanced = found[1] if found is not None else b""
    # 421 would end the client's connection, which is ours.
    if reason is Reason.MISCONFIGURED or code == 421 or enhanced in _OWN_WORDS:
        return reason, None
    sentences = b" ".join(text.removeprefix(enhanced).strip(b" ") for text in texts)
    return reason, b"%d %s %s" % (code, enhanced, sentences)


def _can_be_said(hello: bytes) -> bool:
    """Whether it is a domain or an address literal: mailroute takes anything, and some backends do not."""
    if _DOMAIN.fullmatch(hello):
        return True
    literal = _LITERAL.fullmatch(hello.decode("latin-1"))
    if literal is None:
        return False
    try:
        address = ipaddress.ip_address(literal[2])
    except ValueError:
        return False
    return (address.version == 6) == (literal[1] is not None)
