"""What the parent knows and every worker has to know, in a form that a new interpreter can read.

The parent has read the configuration and all files that it names.  So that
nobody reads them a second time, when somebody may have changed them, it hands
over the tree of the configuration and copies of the files, and not their
names.  They travel in memory without a name, which only those see who inherit its
descriptor: neither the command line nor the environment, which other users
of the machine can read, and no file.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import sys

from attrs import field, frozen

from mailroute.config import Source
from mailroute.workers.counts import Layout


@frozen
class Letter:
    """What all workers are given; its repr does not show what is secret."""

    reactor: str
    """The module that the parent's reactor is from; it has ``install()``."""

    source: Source
    """What the settings are made from."""

    layout: Layout
    """What is where in the memory with the counts."""

    gate_key: bytes = field(repr=False)
    """What the hash of addresses is keyed with."""

    salt: bytes = field(repr=False)
    """The salt of `mailroute.failures.FailureTiming`."""


def post(letter: Letter) -> int:
    """Return the descriptor of memory with the letter in it, which nobody can change.

    :raises OSError: there is no memory for it.
    """
    descriptor = os.memfd_create("mailroute-letter", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as memory:
            pickle.dump(sys.path, memory)
            pickle.dump(letter, memory)
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
