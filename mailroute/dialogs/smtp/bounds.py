"""How much a stranger may say."""

from __future__ import annotations

PIECE = 4096
"""Bytes of a message that are passed on at once: that much may have to wait at each backend."""

MAX_COMMANDS = 2000
"""Commands since the last message, of which bad ones as configured; recipients that are taken are none."""

MAX_BAD_WITHOUT_BOUND = 1000
"""Bad commands where the configuration sets no bound."""

MAX_SIZE_DIGITS = 20
"""Digits of a size: RFC 1870 section 3 has 20."""
