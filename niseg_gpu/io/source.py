"""What every reader returns: a lazily indexed array and what its file says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


class LazyArray(Protocol):
    """An array on disk; indexing reads. Must be safe to index from several threads at once.

    Where each frame may have a file of its own, ``take(frames)`` gives an array of those frames, in that order. What
    stays in memory once it was read has an attribute ``kept``: ``mapped``, which the system takes back where it runs
    short, or ``unpacked``.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray: ...


@dataclass(frozen=True)
class Source:
    """One array as a reader found it; nothing of the data has been read yet.

    Attributes
    ----------
    array : LazyArray
        Indexed with a tuple of slices of step 1, one per axis; gives a native-endian NumPy array.
    files : tuple of str
        One path per entry of the first axis (a folder of frames), else the one file.
    dims : tuple of str or None
        Names of the axes (of ``tof``, ``angle``, ``z``, ``y``, ``x``) where the file tells, else None.
    block : tuple of int
        The smallest piece that is cheap to read: ``(1, 1, X)`` for raw frames, ``(1, Y, X)`` for compressed ones.
    coords : mapping of str to 1-D array
        ``tof`` (s, start of the bin), ``tof_width`` (s), ``wavelength`` (Å, middle of the bin), ``angle`` (degree).
    attrs : mapping
        ``quantity`` (``counts``, ``transmission``, ...), ``shutter_counts``, ``shutter_windows``, ... where known.
    faults : mapping of int to str
        What is wrong with single frames, by their number; indexing the array fails there. See `treat_bad_frames`.
    """

    array: LazyArray
    files: tuple[str, ...]
    dims: tuple[str, ...] | None = None
    block: tuple[int, ...] = ()
    coords: Mapping[str, np.ndarray] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    faults: Mapping[int, str] = field(default_factory=dict)
