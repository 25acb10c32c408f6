"""Where the demo listens."""

from __future__ import annotations

from attrs import frozen


@frozen
class Ports:
    """Ports of the loopback interface.

    They offer STARTTLS, but for ``imaps``, which is TLS from the first byte, and
    ``smtp``, where the servers bring mail to each other: it has no TLS.
    """

    imap: int = 1143
    imaps: int = 1993
    pop3: int = 1110
    submission: int = 1587
    smtp: int = 1025
