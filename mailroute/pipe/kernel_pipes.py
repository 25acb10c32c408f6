"""Pipes of the kernel, through which bulk goes from socket to socket without being copied.

A direction borrows one while it is busy, and gives it back when it is empty.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

CAPACITY = 1 << 20
"""Bytes that a pipe is asked to hold: the most that Linux gives to everybody."""

AT_MOST = 32
"""Pipes that may be lent at once; whoever gets none copies its bytes.

They bound what the kernel holds for all sessions together (32 MiB) and stay
below what one user may have in pipes without being root (64 MiB).
"""

IN_STOCK = 4
"""Empty pipes that are kept for the next who asks."""


class KernelPipe:
    """A pipe, who lends it, and how many bytes are in it."""

    __slots__ = ("held", "lender", "sink", "source")

    def __init__(self, lender: KernelPipes) -> None:
        self.lender = lender
        self.source, self.sink = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.held = 0
        # A user who has many pipes may not get a large one; a small one only means more turns.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.sink, fcntl.F_SETPIPE_SZ, CAPACITY)

    def give_back(self) -> None:
        """Return it to whoever has lent it; what is left in it is thrown away."""
        self.lender.take_back(self)

    def close(self) -> None:
        """Throw it away, with what is in it."""
        os.close(self.source)
        os.close(self.sink)


class KernelPipes:
    """Lends pipes; ``lent`` is how many are out."""

    def __init__(self, at_most: int = AT_MOST) -> None:
        self._stock: list[KernelPipe] = []
        self.lent = 0
        self._at_most = at_most

    def borrow(self) -> KernelPipe | None:
        """Lend an empty pipe; None if there is none to be had."""
        if self.lent >= self._at_most:
            return None
        if self._stock:
            pipe = self._stock.pop()
        else:
            try:
                pipe = KernelPipe(self)
            except OSError:  # no descriptors are left: sessions need them more
                return None
        self.lent += 1
        return pipe

    def take_back(self, pipe: KernelPipe) -> None:
        """Take a pipe back; one with something in it is thrown away."""
        self.lent -= 1
        if pipe.held or len(self._stock) >= IN_STOCK:
            pipe.close()
        else:
            self._stock.append(pipe)


PIPES = KernelPipes()
"""The pipes of this process."""
