"""The one log line, and structured event, that a session leaves when it ends."""

from __future__ import annotations

from attrs import define
from twisted.logger import Logger

from mailroute.events import Client, Refusal

_log = Logger(namespace="mailroute.session")

_ENDED = (
    'session {session_id} ended: user={user} client={client} listener="{listener}" backend={backend} '
    "tls={tls} lookup={lookup:.3f}s connect={connect:.3f}s login={login:.3f}s "
    "in={bytes_in} out={bytes_out} duration={duration:.3f}s reason={reason}"
)

_REFUSED = (
    'session {session_id} login refused: user={user} client={client} listener="{listener}" '
    "backend={backend} why={why} detail={detail}"
)


def printable(text: str, also: str = "") -> str:
    """Return a stranger's text so that it cannot begin a line or hide one.

    :param also: further characters that it may have.
    """
    return "".join(c if c in also or (c.isprintable() and c != " ") else f"\\u{ord(c):04x}" for c in text)


@define
class SessionRecord:
    """What is known of one session, for its log line; times are seconds.

    ``bytes_in`` came from the client and ``bytes_out`` went to it, both
    counted from the login on.
    """

    client: Client
    listener: str
    started: float
    user: str = "-"
    backend: str = "-"
    lookup: float = 0.0
    connect: float = 0.0
    login: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0

    def ended(self, reason: str, now: float) -> None:
        """Log the session's end."""
        _log.info(
            _ENDED,
            lookup=self.lookup,
            connect=self.connect,
            login=self.login,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            duration=now - self.started,
            reason=reason,
            **self._common(),
        )

    def refused(self, refusal: Refusal) -> None:
        """Log a login that failed, for whoever watches over guessing."""
        _log.warn(_REFUSED, why=refusal.reason.value, detail=printable(refusal.detail, " "), **self._common())

    def _common(self) -> dict[str, str]:
        return {
            "session_id": self.client.session_id,
            "user": printable(self.user),
            "client": str(self.client.source or "local"),
            "listener": self.listener,
            "backend": self.backend,
            "tls": self.client.tls or "none",
        }
