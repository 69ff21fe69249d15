"""What becomes of memory that is freed: kept by the process for what is asked for next, or given back to the system.

All of it is a matter of glibc's. Other C libraries, and whoever has set glibc up by its own variables, are left alone.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

MIB = 1 << 20
# of mallopt, glibc's: its numbers, what keeps all, and what glibc comes to by itself once 32 MiB were freed
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -2, -3, -4, -8
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 128 * MIB}
LITTLE = {MMAP_THRESHOLD: MIB // 4, TRIM_THRESHOLD: MIB // 2}
USUAL = {MMAP_MAX: 65536, TRIM_THRESHOLD: 64 * MIB, TOP_PAD: MIB // 8, MMAP_THRESHOLD: 32 * MIB}


@contextmanager
def keep_pages() -> Iterator[None]:
    """Have freed memory stay with this process inside a ``with`` block, and give it back at its end.

    Threads other than the main one may keep some 64 MB each until they free something next.

    glibc asks the system for each large array and gives it back when it is freed; the system then clears every page
    of the next one, which takes longer than to write it. Where the same room is asked for again and again, as by the
    steps of a training, that is a sixth of the time. The setting is the whole process's.

    References
    ----------
    mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    with _set_for_a_while(KEEPING):
        yield


@contextmanager
def keep_little() -> Iterator[None]:
    """Have arrays go back to the system as they are freed inside a ``with`` block, which takes time."""
    with _set_for_a_while(LITTLE):
        yield


def share_store() -> None:
    """Have all threads that are still to come take memory from one store.

    By itself each gets a store of its own, and keeps what it once had there: memory for several blocks of which nobody
    holds any. Where threads ask for memory without end, as in a training, one store for all takes longer.
    """
    if (libc := _find_glibc()) is not None:
        _set(libc, {ARENA_MAX: 1})


def give_back() -> None:
    """Give back to the system what nobody holds."""
    if (libc := _find_glibc()) is not None:
        libc.malloc_trim(0)


@contextmanager
def _set_for_a_while(values: dict[int, int]) -> Iterator[None]:
    libc = _find_glibc()
    if libc is None:
        yield
        return
    _set(libc, values)
    try:
        yield
    finally:
        _set(libc, USUAL)
        libc.malloc_trim(0)


def _find_glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc and nobody has set it up."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    try:
        glibc = "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, OSError, ValueError):
        return None
    return ctypes.CDLL(None) if glibc else None


def _set(libc: ctypes.CDLL, values: dict[int, int]) -> None:
    for number, value in values.items():
        libc.mallopt(number, value)
