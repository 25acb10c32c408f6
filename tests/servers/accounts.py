"""The accounts that the tests open, and the messages in them."""

from __future__ import annotations

import email.message
import email.policy
import zlib

from attrs import field, frozen


@frozen
class Account:
    """Who logs in, with what, and which backend has the mailbox."""

    user: str
    password: str = field(repr=False)
    backend: str


ALICE = Account("alice@example.com", "wonderland", "east")
BOB = Account("bob@example.com", "builder", "west")

SPARE = [
    Account(f"user{n}@{name}.example.org", "a secret", name) for name in ("east", "west") for n in range(50)
]
"""Accounts for the tests that change a mailbox: each test takes others."""


def message(subject: str, text: str = "Hello.\n", number: int = 0) -> bytes:
    """Return a message as it travels, the same one for the same arguments."""
    letter = email.message.EmailMessage(policy=email.policy.SMTP)
    letter["From"] = "The Author <author@example.net>"
    letter["To"] = "The Reader <reader@example.net>"
    letter["Subject"] = subject
    letter["Date"] = f"Fri, 20 Nov 2026 12:00:{number % 60:02} +0000"
    letter["Message-ID"] = f"<{number}.{zlib.crc32(subject.encode())}@example.net>"
    letter.set_content(text)
    return letter.as_bytes()
