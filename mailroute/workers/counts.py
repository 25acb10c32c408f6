"""How many connections there may be at once, where several processes take them.

All workers have one piece of memory, in which each has cells of its own and
writes only those; to know how many connections there are, a worker adds up
the cells of all.  Nobody waits for anybody: there is no lock that a stopped
worker could hold, and no question to the parent.

The connections of an address are counted in a count-min sketch: four cells
that a keyed hash of the address chooses, one in each of four rows.  Other
addresses may share some of these cells, and rarely all four, so that the
least of them is what counts: never too little, and too much only if others
collide with the address in every row.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import threading
from array import array
from collections.abc import Sequence
from typing import Any

from attrs import frozen

from mailroute.events import Farewell
from mailroute.gate import Gate, network_of

ROWS = 4
"""Rows of the sketch: each makes a wrong refusal rarer by the same factor."""

FEWEST_CELLS, MOST_CELLS = 4096, 262144
"""Cells in a row of the sketch, for each worker."""

_CELL = 4
"""Bytes in a cell."""

_CHOOSE = struct.Struct(f"={ROWS}I")


@frozen
class Layout:
    """What is where in the memory that the workers share.

    First come the totals, a cell for each worker, then the sketch: cells of
    the same place in it stand together, one for each worker.

    :param workers: how many there are.
    :param cells: how many a row of the sketch has; 0 for no sketch, else a power of two.
    """

    workers: int
    cells: int

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return self.workers * (1 + ROWS * self.cells) * _CELL


def layout(workers: int, total: int, per_address: int) -> Layout:
    """Return the layout for these limits, 0 for no limit.

    There are four times as many cells in a row as there may be connections.
    """
    if not per_address:
        return Layout(workers, 0)
    wanted = 1 << (4 * total - 1).bit_length() if total else MOST_CELLS
    return Layout(workers, min(max(wanted, FEWEST_CELLS), MOST_CELLS))


def share(plan: Layout) -> int:
    """Return the descriptor of new memory, all zeros, of a size that nobody can change.

    :raises OSError: there is none.
    """
    descriptor = os.memfd_create("mailroute-counts", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, plan.size)
        fcntl.fcntl(
            descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Counts:
    """The cells, as one process sees them.

    :param descriptor: what `share` has returned, or a copy of it.
    :raises ValueError: it is not memory of that layout.
    """

    def __init__(self, descriptor: int, plan: Layout) -> None:
        if os.fstat(descriptor).st_size != plan.size:
            raise ValueError("the shared memory has another size than it should have")
        cells = memoryview(mmap.mmap(descriptor, plan.size)).cast("I")
        self.plan = plan
        self.totals = cells[: plan.workers]
        self.sketch = cells[plan.workers :]

    def of(self, worker: int) -> int:
        """Return how many connections a worker has."""
        return self.totals[worker]

    def forget(self, worker: int) -> int:
        """Clear the cells of a worker that is no more, and return how many connections it had."""
        had = self.totals[worker]
        self.totals[worker] = 0
        own = self.sketch[worker :: self.plan.workers]
        own[:] = memoryview(array("I", bytes(len(own) * _CELL)))
        return had


class SharedGate(Gate):
    """The gate of one worker: counts its own connections, and looks at everybody's.

    A connection is counted first, and taken back if it turns out to be one
    too many.  So two workers that race for the last place may both refuse it,
    and never both take it.

    :param counts: what the workers share.
    :param worker: whose cells to write, counted from 0.
    :param key: what the hash of addresses is keyed with, the same in all workers: who does not
        know it cannot choose addresses that share another's cells.
    """

    def __init__(self, total: int, per_address: int, counts: Counts, worker: int, key: bytes) -> None:
        super().__init__(total, per_address)
        self._totals: Any = counts.totals
        self._sketch: Any = counts.sketch
        self._workers = counts.plan.workers
        self._mask = counts.plan.cells - 1
        self._row = counts.plan.cells * counts.plan.workers
        self._worker = worker
        self._key = key
        self._fence = threading.Lock()

    def __len__(self) -> int:
        """How many connections all workers have."""
        return sum(self._totals)

    def enter(self, host: str | None) -> Farewell | None:
        """Count a connection in, or return why it is one too many and not counted."""
        cells = self._add(host, 1)
        # Taking a lock of one's own costs nothing, and its atomic instruction keeps
        # the processor from reading the others' cells before ours can be seen.
        with self._fence:
            pass
        if self._total and sum(self._totals) > self._total:
            self._add(host, -1)
            return Farewell.TOO_MANY
        if cells and min(self._sum(cell) for cell in cells) > self._per_address:
            self._add(host, -1)
            return Farewell.TOO_MANY_FROM_ADDRESS
        return None

    def leave(self, host: str | None) -> None:
        """Count a connection out that was counted in."""
        self._add(host, -1)

    def _add(self, host: str | None, step: int) -> Sequence[int]:
        """Add to the cells that are the host's, and return where those of the sketch begin."""
        worker = self._worker
        self._totals[worker] += step
        if host is None or not self._per_address:
            return ()
        digest = hashlib.blake2b(network_of(host).encode(), digest_size=_CHOOSE.size, key=self._key).digest()
        cells = [
            row * self._row + (number & self._mask) * self._workers
            for row, number in enumerate(_CHOOSE.unpack(digest))
        ]
        for cell in cells:
            self._sketch[cell + worker] += step
        return cells

    def _sum(self, cell: int) -> int:
        return sum(self._sketch[cell : cell + self._workers])
