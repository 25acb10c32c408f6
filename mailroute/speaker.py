"""Protocols whose words leave at once."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection


class Speaker(Protocol):
    """Hands what it says to the socket itself, as long as the socket takes it whole.

    A transport waits for the reactor's next turn to send what it is given,
    and has to be told to watch for that and then not to: system calls that the
    few short lines before a login do not need.  With the first line that the
    socket does not take, and with TLS, saying goes through the transport.
    """

    _socket: socket.socket | None = None

    def may_speak_directly(self) -> None:
        """Note that nothing has been written yet, and the connection is in the clear."""
        transport: object = self.transport
        if isinstance(transport, Connection):
            self._socket = transport.getHandle()

    def must_not_speak_directly(self) -> None:
        """Note that from here on only the transport knows what its peer may be sent."""
        self._socket = None

    def say(self, data: bytes) -> None:
        """Send these bytes."""
        if self._socket is not None:
            try:
                sent = self._socket.send(data)
            except OSError:
                sent = 0  # if it is more than a full buffer, the transport meets it again
            if sent == len(data):
                return
            self._socket = None
            data = data[sent:]
        transport: Any = self.transport
        transport.write(data)
