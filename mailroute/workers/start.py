"""What a worker's interpreter runs: gets as far as to find mailroute where the parent has found it.

It is run as a file and not as a module, because Python's path comes with the
letter.  All that it needs before is in the standard library.
"""

import mmap
import pickle
import signal
import sys

CHANNEL = 3
"""The descriptor of the socket to the parent."""

LETTER = 4
"""The descriptor of the memory with the letter: Python's path, then `mailroute.workers.letter.Letter`."""

COUNTS = 5
"""The descriptor of the memory with the counts of connections."""

LISTENERS = 6
"""The first descriptor of a listener's socket."""


def start(number: int) -> None:
    """Run the worker of that number, from 1."""
    # Ctrl-C and the end of a terminal reach all processes that run in it, and
    # a request to rotate the log is the parent's; the parent tells workers when to end.
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(ignored, signal.SIG_IGN)
    with mmap.mmap(LETTER, 0, access=mmap.ACCESS_READ) as memory:
        # Nobody but the parent could write there, and it sealed the memory.
        sys.path[:] = pickle.load(memory)  # noqa: S301
        letter = pickle.load(memory)  # noqa: S301
    from mailroute.workers.worker import run

    run(letter, number - 1)


if __name__ == "__main__":
    start(int(sys.argv[1]))
