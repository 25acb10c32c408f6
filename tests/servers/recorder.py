"""A relay that writes down what passes: the very bytes that a real server is told, and what it answers."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from typing import Self

from servers.processes import PATIENCE


class Recorder:
    """Stands before a server's port, on ``port``; use it as a context manager.

    ``told`` and ``answered`` are the bytes of all connections, in either direction.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.told, self.answered = bytearray(), bytearray()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_exc: object) -> None:
        # An accept that waits would not notice that its socket is closed.
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._relay, args=(client,)))
                self._threads[-1].start()

    def _relay(self, client: socket.socket) -> None:
        with (
            client,
            socket.create_connection(("127.0.0.1", self._to)) as server,
            contextlib.suppress(OSError),
        ):
            ways = {client: (server, self.told), server: (client, self.answered)}
            while ways:
                ready, _, _ = select.select(list(ways), [], [], PATIENCE)
                if not ready:
                    return
                for source in ready:
                    sink, written = ways[source]
                    data = source.recv(65536)
                    written += data
                    if data:
                        sink.sendall(data)
                    else:
                        del ways[source]
                        sink.shutdown(socket.SHUT_WR)
