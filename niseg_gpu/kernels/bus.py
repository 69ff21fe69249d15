"""Blocks of host memory brought to a device one after another, the next on its way while one is worked on.

There are two rooms on the device. A block is copied into one while kernels read the other; the copies have a stream of
their own, and events keep the two streams from overtaking each other, so that the host waits for neither.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

ROOMS = 2


class Bus:
    """Two rooms on a CUDA device and the stream that fills them.

    Parameters
    ----------
    nbytes : int
        Of the largest block.
    xp : module
        cupy.
    """

    def __init__(self, nbytes: int, *, xp: Any) -> None:
        self.xp = xp
        self.stream = xp.cuda.Stream(non_blocking=True)
        self.rooms = [xp.empty(nbytes, dtype=np.uint8) for _ in range(ROOMS)]
        self.filled, self.left = ([xp.cuda.Event(disable_timing=True) for _ in range(ROOMS)] for _ in range(2))
        for room in range(ROOMS):
            self.leave(room)  # kernels under way may still read what lay there before, in memory given back to the pool

    def start(self, room: int, block: np.ndarray) -> Any:
        """Start to copy a block, once the kernels that read what was there have ended; return what it will be."""
        self.stream.wait_event(self.left[room])
        there = self.rooms[room][: block.nbytes].view(block.dtype).reshape(block.shape)
        there.set(block, stream=self.stream)
        self.filled[room].record(self.stream)
        return there

    def arrive(self, room: int) -> None:
        """Have the kernels to come wait for the copy."""
        self.xp.cuda.get_current_stream().wait_event(self.filled[room])

    def leave(self, room: int) -> None:
        """Have the next copy into this room wait for the kernels so far."""
        self.left[room].record(self.xp.cuda.get_current_stream())


def bring(blocks: Iterable[tuple[Any, np.ndarray]], *, bus: Any) -> Iterator[tuple[Any, Any]]:
    """Give blocks as they arrive on the device, in their order.

    Parameters
    ----------
    blocks : iterable of (name, ndarray)
        In page-locked memory, else the host waits for each copy.
    bus : Bus
        Or anything with its three methods.

    Yields
    ------
    name, array
        On the device, until the next is asked for.
    """
    waiting: deque[tuple[Any, int, Any]] = deque()

    def use() -> Iterator[tuple[Any, Any]]:
        name, room, there = waiting.popleft()
        bus.arrive(room)
        yield name, there
        bus.leave(room)

    try:
        for i, (name, block) in enumerate(blocks):
            waiting.append((name, i % ROOMS, bus.start(i % ROOMS, block)))
            if len(waiting) == ROOMS:
                yield from use()
        while waiting:
            yield from use()
    finally:
        for _, room, _ in waiting:  # nobody asks for them any more, but what comes next may get their memory
            bus.arrive(room)


def pin(rows: Any, *, xp: Any) -> np.ndarray:
    """Copy a device's array, with all that lies between its rows, into page-locked memory.

    Parameters
    ----------
    rows : (n, features) array
    xp : module
        cupy.

    Returns
    -------
    (n, length) ndarray
        `length` is the step from row to row.
    """
    (n, features), length = rows.shape, rows.strides[0] // rows.itemsize
    # nothing may lie behind the last row: the memory of what it is a view of can end there
    whole = xp.lib.stride_tricks.as_strided(rows, ((n - 1) * length + features,), (rows.itemsize,))
    # from CuPy's pool it would take up to twice as much: that knows powers of two only
    memory = xp.cuda.PinnedMemoryPointer(xp.cuda.PinnedMemory(n * length * rows.itemsize), 0)
    found = np.frombuffer(memory, rows.dtype, n * length)
    whole.get(out=found[: whole.size])
    found[whole.size :] = 0
    return found.reshape(n, length)
