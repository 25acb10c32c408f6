"""The TLS of a transport in the hub.

Hands are shaken over OpenSSL's memory BIOs, because the contexts of
`mailroute.tls` look at a client's first message before OpenSSL does.  Then
OpenSSL gets the socket itself.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHandshakeListener
from twisted.python.failure import Failure

from mailroute.sockets import openssl


class WithTLS:
    """A transport's half that knows TLS; the other one is `HubTransport`."""

    __slots__ = (
        "client",
        "connected",
        "disconnecting",
        "early",
        "handshaking",
        "protocol",
        "reading",
        "reason",
        "rest",
        "said_goodbye",
        "sock",
        "ssl",
        "tls",
    )

    client: bool
    connected: int
    disconnecting: bool
    early: bytes
    handshaking: bool
    protocol: Any
    reading: bool
    reason: Failure | None
    rest: bytes
    said_goodbye: bool
    sock: socket.socket
    ssl: Any
    tls: SSL.Connection | None

    def startTLS(self, creator: Any) -> None:
        """Begin TLS, as client or server as the connection itself.

        :param creator: makes OpenSSL's connection, with memory BIOs, as those of `mailroute.tls` do.
        """
        if self.client:
            self.tls = tls = creator.clientConnectionForTLS(self)
            tls.set_connect_state()
        else:
            self.tls = tls = creator.serverConnectionForTLS(self)
            tls.set_accept_state()
        self.handshaking = True
        if self.client:
            self._shake_hands()

    def unread(self, data: bytes) -> None:
        """Tell bytes once more that a protocol has had before: as if they had been read now."""
        if not self.connected or self.disconnecting:
            return
        if self.handshaking:
            self._take_handshake(data)
        else:
            self.protocol.dataReceived(data)

    def failVerification(self, reason: Failure) -> None:  # noqa: N802 (Twisted's name)
        """Close: the peer's certificate is not good (Twisted's contexts call this)."""
        self.reason = reason

    def _receive_handshake(self) -> None:
        """Give what comes to OpenSSL's memory, where the contexts of `mailroute.tls` look at it first."""
        assert self.tls is not None  # noqa: S101 (startTLS sets it)
        try:
            size = self.sock.recv_into(openssl.ROOM)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(Failure(ConnectionLost(str(error))))
            return
        if size == 0:
            self._lose(Failure(ConnectionLost("the connection ended in the TLS handshake")))
            return
        self._take_handshake(bytes(openssl.ROOM[:size]))

    def _take_handshake(self, data: bytes) -> None:
        assert self.tls is not None  # noqa: S101 (startTLS sets it)
        self.tls.bio_write(data)
        self._shake_hands()

    def _shake_hands(self) -> None:
        assert self.tls is not None  # noqa: S101 (startTLS sets it)
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            self._flush_handshake()
            return
        except Exception:  # of OpenSSL, or of what verifies certificates
            if self.reason is None:
                self.reason = Failure()
        self._flush_handshake()
        if self.reason is not None:
            # OpenSSL's alert has gone out before.
            self._lose(self.reason, soon=True)
        elif not self.rest:
            self._hands_shaken()

    def _flush_handshake(self) -> None:
        assert self.tls is not None  # noqa: S101 (startTLS sets it)
        with contextlib.suppress(SSL.WantReadError):  # there is nothing
            while True:
                data = self.tls.bio_read(openssl.ROOM_SIZE)
                if self.rest:
                    self.rest += data
                else:
                    self._send(data)

    def _hands_shaken(self) -> None:
        """From now on OpenSSL uses the socket itself; what it has of the peer's first bytes comes before."""
        assert self.tls is not None  # noqa: S101 (startTLS sets it)
        text = b""
        with contextlib.suppress(SSL.Error):  # it is seen again
            while True:
                text += self.tls.recv(openssl.RECORD)
        self.ssl = openssl.attach(self.tls, self.sock.fileno())
        self.handshaking = False
        self._watch()
        # Whoever is told may give the socket away at once, and these bytes with it.
        self.early = text
        if IHandshakeListener.providedBy(self.protocol):
            self.protocol.handshakeCompleted()
        self.early = b""
        if text and self.protocol is not None:
            self.protocol.dataReceived(text)
        if self.connected and self.reading:
            # An end may have come with the handshake.
            self._receive_tls()

    def _receive_tls(self) -> None:
        size = openssl.read(self.ssl, openssl.ADDRESS, openssl.RECORD)
        if size > 0:
            if not self.disconnecting:
                self.protocol.dataReceived(bytes(openssl.ROOM[:size]))
            return
        error = openssl.get_error(self.ssl, size)
        if self.reason is not None:
            self._lose(self.reason)
        elif error == openssl.ZERO_RETURN:
            self.flush()
            self._say_goodbye()
            self._lose(Failure(ConnectionDone()))
        elif error == openssl.WANT_WRITE:
            # It has something of its own to say first.  Until it can, reading on is to no purpose.
            self._wait_to_write()
        elif error != openssl.WANT_READ:
            openssl.clear_errors()
            end = ConnectionDone() if self.said_goodbye else ConnectionLost("TLS was cut short")
            self._lose(Failure(end))

    # --- what the other half does ---

    def flush(self) -> None:
        """Send what has waited for the end of the batch."""
        raise NotImplementedError

    def _send(self, data: Any) -> None:
        raise NotImplementedError

    def _watch(self) -> None:
        raise NotImplementedError

    def _wait_to_write(self) -> None:
        raise NotImplementedError

    def _say_goodbye(self) -> None:
        raise NotImplementedError

    def _lose(self, reason: Failure, *, soon: bool = False) -> None:
        raise NotImplementedError
