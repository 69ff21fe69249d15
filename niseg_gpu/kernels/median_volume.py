"""Running medians of 3 x 3 x 3 in volumes on the CPU.

The nine values around a place in its frame are sorted once, from sorted rows of three, and serve the windows in three
frames; two rows and two frames go at a time, so that what their windows share is merged once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from niseg_gpu.kernels.compiled import compiled, inline, read_flat
from niseg_gpu.kernels.lines import LONGEST_BYTES, from_cache_line, loop_over
from niseg_gpu.kernels.median import DTYPES
from niseg_gpu.kernels.median_rows import copy_row, pad_row
from niseg_gpu.kernels.selection import two_medians_of_nines, two_nines

STRIP = 1024  # columns at a time
LINE = STRIP + 2 * LONGEST_BYTES
NINE = 9 * LINE
ROWS, MEDIANS, NINES = 0, 4 * LINE, 6 * LINE  # where they begin in the work array: 4 rows, 2 rows, 4 frames of 2 nines

_sort_nines = loop_over(two_nines(), inputs=[(3, 1)] * 4, results=[(18, LINE)])
_find_medians = loop_over(two_medians_of_nines(), inputs=[(9, LINE)] * 4, results=[(2, LINE)])


@inline
def _sort_frame(volume, frame, depth, height, width, y, left, n, lines, begins):
    """Sort the nines around rows `y` and `y` + 1 of a frame, or of the nearest one where there is none."""
    start = min(max(frame, 0), depth - 1) * height * width
    for k in range(4):
        row = min(max(y + k - 1, 0), height - 1)
        pad_row(volume, start + row * width, width, left, n, 1, lines, ROWS + k * LINE)
        begins[k] = ROWS + k * LINE
    begins[4] = NINES + frame % 4 * 2 * NINE
    _sort_nines(lines, begins, n)


@compiled
def _filter27(volume, depth, height, width, out):
    lines = from_cache_line(np.zeros(NINES + 8 * NINE + LONGEST_BYTES, volume.dtype))
    begins = np.zeros(5, np.int64)
    for left in range(0, width, STRIP):
        n = min(STRIP, width - left)
        for y in range(0, height, 2):
            for frame in (-1, 0):
                _sort_frame(volume, frame, depth, height, width, y, left, n, lines, begins)
            for z in range(0, depth, 2):
                for frame in (z + 1, z + 2):
                    _sort_frame(volume, frame, depth, height, width, y, left, n, lines, begins)
                for r in range(min(2, height - y)):
                    for k in range(4):
                        begins[k] = NINES + ((z + k - 1) % 4 * 2 + r) * NINE
                    begins[4] = MEDIANS
                    _find_medians(lines, begins, n)
                    for k in range(min(2, depth - z)):
                        o = ((z + k) * height + y + r) * width + left
                        copy_row(lines, MEDIANS + k * LINE, n, out, o)


def median_volume(volume: np.ndarray) -> np.ndarray:
    """Running median over 3 x 3 x 3 values, the border value repeated outside.

    Equal to ``scipy.ndimage.median_filter(volume, 3, mode="nearest")`` but for the sign of a zero. A window that holds
    NaN gives one of its values or NaN, not said which.

    Parameters
    ----------
    volume : (Z, Y, X) ndarray
        One of `niseg_gpu.kernels.median.DTYPES`.

    Returns
    -------
    (Z, Y, X) ndarray
        In the dtype of `volume`.
    """
    flat = read_flat(volume)
    out = np.empty(volume.shape, volume.dtype)
    if flat.size:
        _filter27(flat, *volume.shape, out.reshape(-1))
    return out


def covers_volume(dtype: Any, size: tuple[int, ...]) -> bool:
    """Whether `median_volume` has the dtype and the window, given per axis."""
    return np.dtype(dtype) in DTYPES and tuple(size) == (3, 3, 3)
