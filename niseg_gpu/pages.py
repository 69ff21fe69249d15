"""Memory that is freed and soon asked for again: kept by the process instead of mapped anew."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

MIB = 1 << 20
# of mallopt, glibc's: its numbers, what keeps all, and what glibc comes to by itself once 32 MiB were freed
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 128 * MIB}
USUAL = {MMAP_MAX: 65536, TRIM_THRESHOLD: 64 * MIB, TOP_PAD: MIB // 8, MMAP_THRESHOLD: 32 * MIB}


@contextmanager
def keep_pages() -> Iterator[None]:
    """Have freed memory stay with this process inside a ``with`` block, and give it back at its end.

    Threads other than the main one may keep some 64 MB each until they free something next.

    glibc asks the system for each large array and gives it back when it is freed; the system then clears every page
    of the next one, which takes longer than to write it. Where the same room is asked for again and again, as by the
    steps of a training, that is a sixth of the time. The setting is the whole process's. Other C libraries, and whoever
    has set glibc up by its own variables, are left alone.

    References
    ----------
    mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    libc = _find_glibc()
    if libc is None:
        yield
        return
    _set(libc, KEEPING)
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
