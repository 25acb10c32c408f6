"""Where the demo listens."""

from __future__ import annotations

from attrs import astuple, frozen


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

    @property
    def options(self) -> dict[str, int]:
        """The ports by the options that say them on the command line."""
        names = ("starttls", "tls", "pop3", "submission", "smtp")
        return {f"--demo-{name}-port": port for name, port in zip(names, astuple(self), strict=True)}
