"""Where a dialog can be."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """What the next bytes from the client are."""

    COMMAND = "a command"
    SASL = "a line of a SASL exchange"
    CHALLENGED = "the client's answer to an OAuth error"
    BUSY = "whatever it pipelines behind a login that is under way"
    HANDSHAKE = "TLS; nothing in the clear"
    OVER = "of no interest"
