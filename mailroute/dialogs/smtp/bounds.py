"""How much a stranger may say."""

from __future__ import annotations

MAX_COMMAND = 4096
"""Bytes in one command line.  RFC 5321 has 512; its extensions add to MAIL and RCPT (SIZE 26, 8BITMIME 17,
SMTPUTF8 10, DSN 500 each); with paths twice as long as RFC 5321's this is beyond what any client sends."""

PIECE = 4096
"""Bytes of a message that are passed on at once: that much may have to wait at each backend."""

MAX_COMMANDS = 2000
"""Commands since the last message, of which bad ones as configured; recipients that are taken are none."""

MAX_BAD_WITHOUT_BOUND = 1000
"""Bad commands where the configuration sets no bound."""

MAX_SIZE_DIGITS = 20
"""Digits of a size: RFC 1870 section 3 has 20."""
