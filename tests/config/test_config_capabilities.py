"""What a listener may announce is its protocol's to say: its ``capabilities``."""

from __future__ import annotations

import pytest

from mailroute import dialogs

GOOD = [
    ("imap", "IDLE"),
    ("imap", "THREAD=REFERENCES"),
    ("imap", "[x"),
    ("pop3", "EXPIRE 60"),
    ("pop3", "LOGIN-DELAY 900 USER"),
    ("pop3", "IMPLEMENTATION Dovecot-2.3.19."),
    ("lmtp", "DSN"),
    ("smtp", "DSN"),
    *(("submission", line) for line in ("8BITMIME", "SIZE", "SIZE 52428800", "DELIVERBY 240", "BURL imap")),
    ("managesieve", "SIEVE fileinto reject comparator-i;ascii-numeric"),
    ("managesieve", 'IMPLEMENTATION the "best" \N{LATIN SMALL LETTER E WITH ACUTE}'),
    ("managesieve", "RENAME"),
]

BAD = [
    *(("imap", word) for word in ("", "A B", "a\r\nb", 'a"b', "\N{LATIN SMALL LETTER E WITH ACUTE}")),
    *(("imap", word) for word in ("AUTH=X", "starttls", "LOGINDISABLED")),
    *(("pop3", word) for word in ("", ".", "A.B", "EXPIRE  60", "EXPIRE 60 ", " EXPIRE", "a\r\nb", "A\0")),
    *(("pop3", word) for word in ("stls", "SASL CRAM-MD5", "USER", "TOP", "X" * 511)),
    *(("smtp", word) for word in ("", "dsn", "DSN\n", "SIZE 100", "BINARYMIME")),
    ("lmtp", "AUTH PLAIN"),
    *(("submission", line) for line in ("", "SIZE  1", "SIZE 1 ", "A.B", "-A", "DSN\r\n", "X" * 501)),
    *(("submission", line) for line in ("AUTH PLAIN", "starttls", "PIPELINING", "XCLIENT ADDR")),
    ("tcp", "IDLE"),
    *(("managesieve", word) for word in ("", " SIEVE", "SIEVE ", '"SIEVE" x', "SIEVE a\r\nb", "a\0")),
    *(("managesieve", word) for word in ("SIEVE " + "x" * 1024, "NOTIFY \ud800")),
    *(("managesieve", word) for word in ("sasl PLAIN", "STARTTLS", "VERSION 2.0", "XCLIENT", "OWNER bob")),
]


@pytest.mark.parametrize(("protocol", "word"), GOOD)
def test_what_can_be_announced_is_taken(protocol: str, word: str) -> None:
    """Each protocol takes words in its own syntax."""
    dialogs.protocol(protocol).check_capability(word)


@pytest.mark.parametrize(("protocol", "word"), BAD)
def test_what_cannot_be_announced_is_refused(protocol: str, word: str) -> None:
    """What would break the answer, or say what mailroute has to say itself, is refused with a remedy."""
    with pytest.raises(ValueError, match=r"must be|take it out|remove it"):
        dialogs.protocol(protocol).check_capability(word)
