"""What the two halves of an IMAP session's beginning tell each other."""

from __future__ import annotations

from typing import NamedTuple

OUR_ID = b'("name" "mailroute")'
"""What mailroute says of itself in answer to ID; no version, which would only help an attacker."""


class Hello(NamedTuple):
    """From the dialog to the login: the pairs of the client's last ID command."""

    id_pairs: tuple[tuple[bytes, bytes], ...] = ()


class Welcome(NamedTuple):
    """From the login to the dialog: what the backend answered.

    ``untagged`` are whole lines without their ends; ``text`` is what stood
    behind OK, less the capabilities, which are ``capabilities``.
    """

    untagged: tuple[bytes, ...]
    text: bytes
    capabilities: bytes
