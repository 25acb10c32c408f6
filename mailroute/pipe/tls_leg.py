"""An end that is a socket with TLS on top."""

from __future__ import annotations

import os
import socket
from typing import Any

from OpenSSL import SSL
from twisted.python.failure import Failure

from mailroute.pipe.hub_leg import HubLeg
from mailroute.pipe.leg import Owner
from mailroute.sockets import openssl
from mailroute.sockets.hub import WRITE, Hub

CUT_SHORT = "the TLS stream was cut short"


class TLSLeg(HubLeg):
    """One end; ``tls`` keeps OpenSSL's own object alive, which is ``ssl``."""

    __slots__ = ("said_goodbye", "ssl", "tls")

    half_closes = False

    def __init__(self, sock: socket.socket, tls: SSL.Connection, ssl: Any, hub: Hub, owner: Owner) -> None:
        super().__init__(sock, hub, owner)
        self.tls = tls
        self.ssl = ssl
        self.said_goodbye = False
        if tls.get_app_data() is not None:
            # Twisted verifies a server's certificate whenever it gets one, and says here if it is not good.
            tls.set_app_data(self)

    # --- reading ---

    def start(self) -> None:
        """Begin to read; a goodbye that has come already is one of which epoll does not tell."""
        super().start()
        if self.tls.get_shutdown() & SSL.RECEIVED_SHUTDOWN:
            self.receive()

    def receive(self) -> None:
        """Read what there is, up to the one buffer, and pass it on."""
        if not self.reading:
            return  # another leg's event has paused this one since
        size, result = 0, openssl.RECORD
        # A full record is likely to be followed by more; behind another one
        # there is nothing that epoll would not tell of.
        while result == openssl.RECORD and size <= openssl.ROOM_SIZE - openssl.RECORD:
            result = openssl.read(self.ssl, openssl.ADDRESS + size, openssl.RECORD)
            size += max(result, 0)
        error = 0 if result > 0 else openssl.get_error(self.ssl, result)
        if size and not self.mute:
            self.heard = self.now()
            self.passed += size
            self.other.take(openssl.ROOM[:size])
        if error and error != openssl.WANT_READ and not self.gone:
            self.end_reading(error)

    def end_reading(self, error: int) -> None:
        """Note why nothing more can be read."""
        if error == openssl.ZERO_RETURN:
            self.ended()
        elif error == openssl.WANT_WRITE:
            # OpenSSL has something of its own to say first (an answer to a KeyUpdate), which the
            # peer does not take.  Until it does, reading on is to no purpose.
            self.block(moved=False)
            self.events = WRITE
            self.hub.modify(self.sock.fileno(), WRITE)
        else:
            self.fail(error)

    def fail(self, error: int) -> None:
        """Close, and say why OpenSSL cannot go on."""
        del error
        openssl.clear_errors()
        reason = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if reason:
            self.lose(os.strerror(reason))
        else:
            self.lose("" if self.finished_writing else CUT_SHORT)

    def last_words(self) -> bool:
        """Read once without minding errors; say whether there was anything."""
        size = openssl.read(self.ssl, openssl.ADDRESS, openssl.RECORD)
        if size > 0:
            self.passed += size
            self.other.take(openssl.ROOM[:size])
        else:
            openssl.clear_errors()
        return bool(size > 0)

    def tell_ended(self) -> None:
        """The peer has said goodbye, after which TLS's implementations take nothing more."""
        self.owner.left(self)

    # --- writing ---

    def give(self, data: Any) -> int:
        """Encrypt and send; return how many bytes of it have gone.

        :raises OSError: the connection is broken.
        """
        return openssl.send(self.ssl, data)

    def end_writing(self) -> None:
        """Say goodbye: close_notify (RFC 8446 section 6.1)."""
        if not self.said_goodbye:
            result = openssl.shutdown(self.ssl)
            if result < 0:
                error = openssl.get_error(self.ssl, result)
                if error == openssl.WANT_WRITE:
                    self.block(moved=False)
                    return
                if error != openssl.WANT_READ:
                    self.fail(error)
                    return
            self.said_goodbye = True
        self.finished_writing = True
        if self.finished_reading:
            self.lose("")
        else:
            self.owner.finished_writing(self)

    # --- ends ---

    def failVerification(self, reason: Failure) -> None:  # noqa: N802 (Twisted's name)
        """Close at once: the peer has shown another certificate, and not a good one."""
        del reason
        self.cut()

    def lose(self, error: str) -> None:
        """Close the socket, and tell the owner."""
        self.tls.set_app_data(None)
        super().lose(error)
