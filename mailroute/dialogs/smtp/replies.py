"""What a client is told, in mailroute's own words or a backend's (RFC 5321 section 4.2, RFC 3463)."""

from __future__ import annotations

from collections.abc import Iterable

from mailroute.dialogs.common.text import showable
from mailroute.dialogs.smtp.dialect import TOKEN
from mailroute.envelope import Obstacle, Outcome, Reply
from mailroute.events import Farewell, Reason
from mailroute.wire.lines import Parts

# Whatever is wrong on our side of the mailbox is a reason to try again: mail that
# somebody's mistake in a configuration sends back is lost to its reader.
REPLIES: dict[Obstacle | Reason, Reply] = {
    Obstacle.UNKNOWN: Reply(550, (b"5.1.1 No such mailbox here",)),
    Obstacle.BAD_ADDRESS: Reply(553, (b"5.1.3 Not an address that a mailbox here can have",)),
    Obstacle.LOOKUP_FAILED: Reply(451, (b"4.3.0 The mailbox cannot be looked up, try again later",)),
    Obstacle.ELSEWHERE: Reply(451, (b"4.5.3 Not in one message with the recipients before, try again",)),
    Obstacle.TOO_MANY_BACKENDS: Reply(451, (b"4.5.3 Too many recipients of one message, try again",)),
    Obstacle.NO_8BITMIME: Reply(550, (b"5.6.3 The mailbox takes no 8-bit messages",)),
    Obstacle.NO_SMTPUTF8: Reply(553, (b"5.6.7 The mailbox takes no internationalised addresses",)),
    Obstacle.NO_DSN: Reply(451, (b"4.3.5 The mailbox sends no notifications",)),
    Obstacle.WITHHELD: Reply(451, (b"4.5.0 The message was not taken, try again later",)),
    Obstacle.LOST: Reply(451, (b"4.4.2 The connection to the mail server was lost, try again later",)),
    Obstacle.TIMEOUT: Reply(451, (b"4.4.2 The mail server took too long, try again later",)),
    Obstacle.PROTOCOL: Reply(451, (b"4.5.0 The mail server is not understood, try again later",)),
    Obstacle.TOO_LARGE: Reply(552, (b"5.3.4 The message is too large",)),
    Obstacle.BAD_LINE_ENDS: Reply(550, (b"5.6.0 The message has lines that do not end with CR LF",)),
    Reason.AUTHENTICATION_FAILED: Reply(550, (b"5.1.1 No such mailbox here",)),
    Reason.AUTHORIZATION_FAILED: Reply(550, (b"5.7.1 The mailbox may not be delivered to",)),
    Reason.UNAVAILABLE: Reply(451, (b"4.4.1 The mail server cannot be reached, try again later",)),
    Reason.MISCONFIGURED: Reply(451, (b"4.3.5 The mail service is not set up correctly",)),
    Reason.LIMIT: Reply(451, (b"4.3.2 A limit is reached, try again later",)),
    Reason.EXPIRED: Reply(550, (b"5.2.1 The mailbox is disabled",)),
    Reason.CONTACT_ADMIN: Reply(550, (b"5.2.1 The mailbox is disabled",)),
    Reason.PRIVACY_REQUIRED: Reply(451, (b"4.7.0 The mail server wants TLS",)),
}

FAREWELLS = {
    Farewell.TOO_MANY: b"421 4.3.2 Too many connections, try again later",
    Farewell.NO_DESCRIPTORS: b"421 4.3.2 Too many connections, try again later",
    Farewell.TOO_MANY_FROM_ADDRESS: b"421 4.7.0 Too many connections from your address",
    Farewell.TOO_MANY_COMMANDS: b"421 4.7.0 Too many commands",
    Farewell.TOO_MANY_BAD_COMMANDS: b"421 4.7.0 Too many bad commands",
    Farewell.TOO_MANY_FAILURES: b"421 4.7.0 Too many failures",
    Farewell.TOO_MANY_MESSAGES: b"421 4.7.0 Too many messages, connect again",
    Farewell.TOO_LONG: b"500 5.5.2 Line too long",
    Farewell.LOGIN_TIMEOUT: b"421 4.4.2 Nothing was said for too long",
    Farewell.INJECTION: b"501 5.5.2 Nothing may follow STARTTLS before TLS is on",
    Farewell.NOT_THIS_PROTOCOL: b"500 5.5.2 This is a mail server",
    Farewell.PROXY_HEADER: b"500 5.5.2 No PROXY header is taken from your address",
    Farewell.BAD_LINE_ENDS: b"421 4.7.0 Where such a message ends is uncertain, connect again",
    Farewell.SHUTDOWN: b"421 4.3.2 Shutting down, connect again",
    Farewell.LOGGED_OUT: b"221 2.0.0 Bye",
    Farewell.FAULT: b"421 4.3.0 Internal error",
}

NOTHING_DONE = b"250 2.0.0 Nothing done"
FORGOTTEN = b"250 2.0.0 Forgotten"
BEGIN_TLS = b"220 2.0.0 Begin TLS"
NO_TLS = b"502 5.5.1 STARTTLS is not offered"
STARTTLS_TAKES_NOTHING = b"501 5.5.4 STARTTLS takes nothing behind it"
NO_NAME = b"501 5.5.4 Say who you are"
NOT_UNDERSTOOD = b"500 5.5.2 Command not understood"
NOT_OFFERED = b"502 5.5.1 Command not offered"

CLOSING = 421
"""The code of a server that ends the connection, whatever it was asked."""

_NOT_THE_CLIENTS = frozenset({500, 501, 502, 503, 504, 530, 538})
"""What a backend finds wrong with us: the client has no part in it, and shall not lose its message by it."""


def greeting(host: bytes, name: bytes) -> bytes:
    """Return the first words of a server (RFC 5321 section 4.3.1).

    :param name: the protocol's.
    """
    return b"220 %s %s mailroute %s ready" % (host, name, TOKEN)


def harmless(parts: Parts) -> Reply:
    """Return a backend's reply with nothing in it that could be taken for anything else.

    :param parts: its code, and the text of each line.
    """
    code, *texts = parts
    return Reply(int(code), tuple(map(showable, texts)))


def outcome_of(reply: Reply) -> Outcome:
    """Return what a backend's reply means for a recipient."""
    if reply.code in _NOT_THE_CLIENTS:
        return Reason.MISCONFIGURED
    if reply.code == CLOSING:
        return Obstacle.LOST
    return Obstacle.PROTOCOL if 300 <= reply.code < 400 else reply


def said(reply: Reply) -> str:
    """Return a backend's reply for the log."""
    return f"the backend said: {text_of(reply)}"


def text_of(reply: Reply) -> str:
    """Return a backend's reply as one line of text."""
    return f"{reply.code} " + " ".join(line.decode("utf-8", "backslashreplace") for line in reply.lines)


def reply_to(outcome: Outcome) -> Reply:
    """Return what the client is told of an outcome."""
    return outcome if isinstance(outcome, Reply) else REPLIES[outcome]


def together(outcomes: Iterable[Outcome]) -> Reply:
    """Return the one reply for recipients that fare differently, where there can be only one.

    Only if all have the message it is taken.  If any may still get it, the
    client is to try again: those who have it will get it twice, but nobody loses
    it.  If none may get it by trying again, the client is told for good: trying
    for days would give those who have it a copy each time, and its user no word.
    """
    # Why it was withheld from some is what the others say.
    replies = [reply_to(outcome) for outcome in outcomes if outcome is not Obstacle.WITHHELD]
    for low, high in ((400, 500), (500, 600)):
        for reply in replies:
            if low <= reply.code < high:
                return reply
    return replies[0]


def written(reply: Reply) -> bytes:
    """Return a reply as it goes over the wire."""
    *others, last = reply.lines
    return b"".join(b"%d-%s\r\n" % (reply.code, line) for line in others) + b"%d %s\r\n" % (reply.code, last)
