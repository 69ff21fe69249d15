"""What glibc's allocator keeps of memory that was freed; with another C library nothing is done.

The names are those of its ``malloc.h``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEPT = 2**25  # bytes: larger arrays go back to the system once they are freed, as glibc comes to by itself


def share_store() -> None:
    """Have all threads take memory from one store; to be called before there are threads.

    By itself each gets a store of its own, and keeps what it once had there: memory for several blocks of which nobody
    holds any.
    """
    _call("mallopt", M_ARENA_MAX, 1)


@contextmanager
def keeping_little() -> Iterator[None]:
    """Have arrays go back to the system as they are freed inside the block, which takes time."""
    _keep(2**18)
    try:
        yield
    finally:
        _keep(KEPT)


def give_back() -> None:
    """Give back to the system what nobody holds."""
    _call("malloc_trim", 0)


def _keep(up_to: int) -> None:
    _call("mallopt", M_MMAP_THRESHOLD, up_to)
    _call("mallopt", M_TRIM_THRESHOLD, 2 * up_to)


def _call(name: str, *numbers: int) -> None:
    import ctypes

    with suppress(OSError, AttributeError):  # another C library
        getattr(ctypes.CDLL("libc.so.6"), name)(*numbers)
