"""A TLS 1.3 client that changes its keys as often as it likes, which Python's ssl cannot do."""

from __future__ import annotations

import ctypes
import ctypes.util
import select
import socket
import threading

from servers.processes import PATIENCE

_KEY_UPDATE_REQUESTED = 1

_TYPES = {
    "TLS_client_method": (ctypes.c_void_p,),
    "SSL_CTX_new": (ctypes.c_void_p, ctypes.c_void_p),
    "SSL_CTX_free": (None, ctypes.c_void_p),
    "SSL_new": (ctypes.c_void_p, ctypes.c_void_p),
    "SSL_free": (None, ctypes.c_void_p),
    "SSL_set_fd": (ctypes.c_int, ctypes.c_void_p, ctypes.c_int),
    "SSL_connect": (ctypes.c_int, ctypes.c_void_p),
    "SSL_do_handshake": (ctypes.c_int, ctypes.c_void_p),
    "SSL_key_update": (ctypes.c_int, ctypes.c_void_p, ctypes.c_int),
    "SSL_read": (ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int),
    "SSL_write": (ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int),
}


class Rekeying:
    """A connection to a port of this machine; what it does blocks, so call it from a thread."""

    def __init__(self, port: int) -> None:
        self.stop = threading.Event()
        self._used = threading.Lock()
        self._socket = socket.socket()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, 4096)  # soon full
        self._socket.connect(("127.0.0.1", port))
        self._socket.setblocking(False)
        self._lib = ctypes.CDLL(ctypes.util.find_library("ssl"))
        for name, (result, *arguments) in _TYPES.items():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments
        self._context = self._lib.SSL_CTX_new(self._lib.TLS_client_method())
        self._ssl = self._lib.SSL_new(self._context)
        self._lib.SSL_set_fd(self._ssl, self._socket.fileno())
        self._heard = b""

    def connect(self) -> None:
        """Shake hands; the certificate is not looked at."""
        with self._used:
            while self._lib.SSL_connect(self._ssl) != 1:
                self._wait()

    def update(self, times: int) -> None:
        """Send so many KeyUpdates, each of which asks for one back, and read nothing.

        ``stop`` ends it when the other side takes no more.
        """
        with self._used:
            for _ in range(times):
                self._lib.SSL_key_update(self._ssl, _KEY_UPDATE_REQUESTED)
                while self._lib.SSL_do_handshake(self._ssl) != 1:
                    if self.stop.is_set():
                        return
                    select.select([], [self._socket], [], 0.01)

    def say(self, data: bytes) -> None:
        """Send bytes."""
        with self._used:
            while self._lib.SSL_write(self._ssl, data, len(data)) <= 0:
                self._wait()

    def until(self, text: bytes) -> bytes:
        """Read up to these bytes."""
        room = ctypes.create_string_buffer(65536)
        with self._used:
            while text not in self._heard:
                size = self._lib.SSL_read(self._ssl, room, len(room))
                self._heard += room.raw[: max(size, 0)]
                if size <= 0:
                    self._wait()
        before, found, self._heard = self._heard.partition(text)
        return before + found

    def close(self) -> None:
        """Vanish, whatever goes on in another thread."""
        self.stop.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        with self._used:
            self._lib.SSL_free(self._ssl)
            self._lib.SSL_CTX_free(self._context)
            self._socket.close()

    def _wait(self) -> None:
        if not select.select([self._socket], [], [], PATIENCE)[0] or not self._socket.recv(
            1, socket.MSG_PEEK
        ):
            raise TimeoutError
