"""Telling the system which files are about to be read, so that the disk works while the program still starts."""

from __future__ import annotations

import os
from collections.abc import Iterable

from niseg_gpu.backend import CPU

SHARE = 0.25  # of the machine's memory: more would push out what was read before it was used


def read_ahead(files: Iterable[str]) -> int:
    """Have the system fetch files into its page cache, in order, without waiting for them.

    Blocks of rows take a strip of every frame; the disk hands out whole files faster than such strips.

    Parameters
    ----------
    files : iterable of str
        Names that are no file, or can't be opened, are left to whoever reads them.

    Returns
    -------
    int
        Bytes announced; 0 where they are more than a quarter of the memory, or the system can't be told.
    """
    if not hasattr(os, "posix_fadvise"):
        return 0
    sizes = {name: os.path.getsize(name) for name in files if os.path.isfile(name)}
    total = sum(sizes.values())
    if total > SHARE * CPU.count_memory():
        return 0
    announced = 0
    for name, size in sizes.items():
        try:
            handle = os.open(name, os.O_RDONLY)
        except OSError:
            continue
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
            announced += size
        except OSError:  # a pipe, or a file system that has no such thing
            pass
        finally:
            os.close(handle)
    return announced
