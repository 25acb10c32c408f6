"""An end that is a socket with TLS on top: OpenSSL's connection over memory BIOs."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from OpenSSL import SSL
from twisted.python.failure import Failure

from mailroute.pipe.hub import Hub
from mailroute.pipe.hub_leg import BUFFER, HubLeg
from mailroute.pipe.leg import Owner

RECORD = 16 * 1024
"""Plaintext in one TLS record at the most (RFC 8446 section 5.1)."""

AROUND = 512
"""More than a record has around its text, together with a post-handshake message or an alert."""

# Any: pyOpenSSL takes every buffer, and its annotations say bytes.
READ_BUFFER: Any = BUFFER[: 2 * RECORD]
"""What is read at once.  OpenSSL's buffer grows to this size, and never shrinks."""

CUT_SHORT = "the TLS stream was cut short"


class TLSLeg(HubLeg):
    """One end; ``tls`` en- and decrypts."""

    __slots__ = ("said_goodbye", "tls")

    half_closes = False
    pipe = None

    def __init__(self, sock: socket.socket, tls: SSL.Connection, hub: Hub, owner: Owner) -> None:
        super().__init__(sock, hub, owner)
        self.tls = tls
        self.said_goodbye = False
        if tls.get_app_data() is not None:
            # Twisted verifies a server's certificate whenever it gets one, and says here if it is not good.
            tls.set_app_data(self)

    # --- reading ---

    def receive(self) -> None:
        """Read once, and pass on what there is."""
        try:
            size = self.sock.recv_into(READ_BUFFER)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(os.strerror(error.errno or 0))
            return
        if size:
            self.tls.bio_write(READ_BUFFER[:size])
            self.decrypt()
        else:
            self.lose("" if self.finished_writing else CUT_SHORT)

    def decrypt(self) -> None:
        """Pass on all that OpenSSL can make of what it has."""
        texts: list[bytes] = []
        goodbye, error = False, ""
        try:
            while True:
                texts.append(self.tls.recv(RECORD))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            goodbye = True
        except SSL.Error:
            error = "TLS failed"
        if texts and not self.mute:
            self.give_first(texts[0] if len(texts) == 1 else b"".join(texts))
        if self.gone:
            return
        if error:
            self.flush()  # OpenSSL tells the peer why
            self.lose(error)
        elif goodbye:
            self.ended()

    def give_first(self, data: bytes) -> None:
        """Pass these bytes on."""
        self.heard = self.owner.now()
        self.passed += len(data)
        self.other.take(data)

    def last_words(self) -> bool:
        """Read once without minding errors; say whether there was anything."""
        size = self.sock.recv_into(READ_BUFFER)
        if size:
            self.tls.bio_write(READ_BUFFER[:size])
            self.decrypt()
        return size > 0

    def tell_ended(self) -> None:
        """The peer has said goodbye, after which TLS's implementations take nothing more."""
        self.owner.left(self)

    # --- writing ---

    def take(self, data: Any) -> None:
        """Encrypt and send bytes that the other end has read."""
        size = len(data)
        try:
            if size <= RECORD:
                self.tls.send(data)
                self.put(self.tls.bio_read(size + AROUND))
                return
            view = memoryview(data)
            records = []
            for start in range(0, size, RECORD):
                # One by one, so that OpenSSL's buffer does not grow: it would never shrink.
                self.tls.send(view[start : start + RECORD])
                records.append(self.tls.bio_read(RECORD + AROUND))
        except SSL.Error:
            self.lose("TLS failed")
            return
        self.put(b"".join(records))

    def flush(self) -> None:
        """Send what OpenSSL has to say by itself."""
        with contextlib.suppress(SSL.WantReadError):  # it has nothing
            self.put(self.tls.bio_read(AROUND))

    def end_writing(self) -> None:
        """Say goodbye: close_notify (RFC 8446 section 6.1)."""
        if not self.said_goodbye:
            self.said_goodbye = True
            try:
                self.tls.shutdown()
            except SSL.Error:
                self.lose("TLS failed")
                return
            self.flush()
            if self.rest or self.gone:
                return
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
