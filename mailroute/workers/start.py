"""What the nursery's interpreter runs: gets as far as to find mailroute where the parent has found it.

It is run as a file and not as a module, because Python's path comes with the
letter.  All that it needs before is in the standard library.
"""

import mmap
import os
import pickle
import signal
import sys

CONTROL = 3
"""The descriptor of the socket to the parent."""

LETTER = 4
"""The descriptor of the memory with the letter: Python's path, then `mailroute.workers.letter.Letter`."""

COUNTS = 5
"""The descriptor of the memory with the counts of connections."""


def start() -> None:
    """Be the nursery."""
    # Ctrl-C, the end of a terminal and whoever ends all processes of a service
    # mean the parent, which tells workers when to end; so does a request to rotate the log.
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(ignored, signal.SIG_IGN)
    with mmap.mmap(LETTER, 0, access=mmap.ACCESS_READ) as memory:
        # Nobody but the parent could write there, and it sealed the memory.
        sys.path[:] = pickle.load(memory)  # noqa: S301
        letter = pickle.load(memory)  # noqa: S301
    os.close(LETTER)
    from mailroute.workers.nursery import run

    run(letter)


if __name__ == "__main__":
    start()
