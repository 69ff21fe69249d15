"""Running medians on the CPU, and the cleaning of spots fused with them: 3 x 3 here, wider windows through here.

Each row is sorted once, in threes of neighbours; the rows of a window are then merged. Values stay in a strip's work
lines, which fit the cache. Lines lie `LINE` values apart in one array, a constant, by which the compiler sees that
they don't overlap and vectorises over the columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from niseg_gpu.kernels.compiled import compiled, inline, read_flat, within
from niseg_gpu.kernels.lines import fetch
from niseg_gpu.kernels.median_rows import filter5, filter7
from niseg_gpu.kernels.networks import median9, sort3
from niseg_gpu.kernels.row3 import clean_row3, filter_row3
from niseg_gpu.kernels.spot_rules import Rule, add_counts, clean_row, make_rule
from niseg_gpu.kernels.spot_rules import limit_differences as limit_differences  # the GPU's kernels look for it here

SIZES = (3, 5)  # of windows in frames for which either device has a kernel
CPU_SIZES = (3, 5, 7)
DTYPES = frozenset(np.dtype(t) for t in ("uint8", "uint16", "int16", "int32", "float32"))
STRIP = 2048  # columns at a time
LANES = 32  # values of the widest vector: a loop over whole vectors has no slow rest
LINE = STRIP + 3 * LANES  # no power of two, or all lines would meet in few sets of the cache
CACHED = 2**20  # bytes; what is larger comes from memory
PAGE, CACHE_LINE = 4096, 64  # bytes


@inline
def _sort_row3(frames, i, first, end, lines):
    """Sort a row in threes into `lines`, columns `first` to `end`; the left neighbour of column 0 lies at `i`."""
    i0, i1, i2 = np.uint64(i), np.uint64(i + 1), np.uint64(i + 2)
    line1, line2 = np.uint64(LINE), np.uint64(2 * LINE)
    for x in range(np.uint64(first), np.uint64(max(first, end))):
        lines[x], lines[line1 + x], lines[line2 + x] = sort3(frames[i0 + x], frames[i1 + x], frames[i2 + x])


@within
def _border3(frames, above, centre, below, x, inner):
    """Median at the first or last column `x`, which stands for the one outside too."""
    i, j, k, inner = np.uint64(above + x), np.uint64(centre + x), np.uint64(below + x), np.uint64(inner - x)
    a0, a1, a2 = sort3(frames[i], frames[i], frames[i + inner])
    b0, b1, b2 = sort3(frames[j], frames[j], frames[j + inner])
    c0, c1, c2 = sort3(frames[k], frames[k], frames[k + inner])
    return median9(a0, a1, a2, b0, b1, b2, c0, c1, c2)


@within
def _clean_border(frames, i, median, counted, out, spots, limits):
    """Clean value `i`; return spots + 2**32 times NaN, less what is there and `counted`."""
    at, differences = np.uint64(i), limits.dtype.type
    value, before = frames[at], np.int64(spots[at]) if counted else 0
    above = value > median
    high, low = (value, median) if above else (median, value)
    # in the unsigned type of the same width, that of the limits, no difference overflows
    gap = differences(differences(high) - differences(low))
    spot = gap > (limits[0] if above else limits[1])
    out[at], spots[at] = median if spot else value, spot
    return np.int64(spot) - before + (np.int64(value != value) << 32)


@compiled
def _filter3(frames, height, width, out, spots, counts, limits, noise, blank):
    """3 x 3 medians of frames one after another into `out`; where `spots` is not empty, frames cleaned by a `Rule`."""
    even, odd = np.empty(3 * LINE, frames.dtype), np.empty(3 * LINE, frames.dtype)
    clean, fused = spots.size > 0, spots.size > 0 and noise.size == 0 and blank.size == 0
    medians = np.empty(LINE, frames.dtype)
    # the processor looks ahead by itself, but not beyond the end of a page
    ahead = PAGE // frames.itemsize if frames.size * frames.itemsize > CACHED and width * frames.itemsize < PAGE else 0
    for frame in range(0, frames.size, height * width):
        bottom, first_row = frame + (height - 1) * width, frame // width
        for left in range(0, width, STRIP):
            n = min(STRIP, width - left)
            whole = (n + LANES - 1) // LANES * LANES if n == width else n
            edge = 1 if left + n == width else 0
            for lines in (even, odd):
                _sort_row3(frames, frame + left - 1, 1 if left == 0 else 0, n - edge, lines)
            for r in range(height):
                row = frame + r * width
                above, below = max(row - width, frame), min(row + width, bottom)
                before, centre = (odd, even) if r % 2 else (even, odd)
                # all columns at once, so that vectors are stored aligned; at the borders the result is put right below.
                # Whole vectors reach into rows that are written later; nothing reaches outside the array.
                first = 1 if below + left == 0 else 0
                end = whole if max(below, row) + left + whole < frames.size else n - edge
                i, o, k = below + left - 1, row + left, first_row + r
                if ahead:
                    for x in range(0, n, CACHE_LINE // frames.itemsize):
                        fetch(frames, below + left + ahead + x)
                if fused:
                    found = clean_row3(frames, i, first, end, before, centre, LINE, out, o, spots, limits)
                    for x in range(o + n, o + end):
                        found -= spots[np.uint64(x)]
                    if left == 0:
                        median = _border3(frames, above, row, below, 0, min(1, width - 1))
                        found += _clean_border(frames, row, median, first == 0 < end, out, spots, limits)
                    if edge and width > 1:
                        median = _border3(frames, above, row, below, width - 1, width - 2)
                        found += _clean_border(frames, row + width - 1, median, end >= n, out, spots, limits)
                    add_counts(counts, k, found)
                elif clean:
                    filter_row3(frames, i, first, end, before, centre, LINE, medians, 0)
                    if left == 0:
                        medians[0] = _border3(frames, above, row, below, 0, min(1, width - 1))
                    if edge and width > 1:
                        medians[n - 1] = _border3(frames, above, row, below, width - 1, width - 2)
                    clean_row(frames, o, medians, 0, n, out, spots, k, counts, limits, noise, blank)
                else:
                    filter_row3(frames, i, first, end, before, centre, LINE, out, o)
                    if left == 0:
                        out[row] = _border3(frames, above, row, below, 0, min(1, width - 1))
                    if edge and width > 1:
                        out[row + width - 1] = _border3(frames, above, row, below, width - 1, width - 2)


def median_frames(frames: np.ndarray, *, size: int) -> np.ndarray:
    """Running median of each frame, the border value repeated outside.

    Equal to ``scipy.ndimage.median_filter(mode="nearest")`` with a window of 1 along the leading axes, but for the
    sign of a zero. A window that holds NaN gives one of its values or NaN, not said which.

    Parameters
    ----------
    frames : (..., Y, X) ndarray
        One of `DTYPES`.
    size : int
        Side of the window in pixels, one of `CPU_SIZES`.

    Returns
    -------
    (..., Y, X) ndarray
        In the dtype of `frames`.
    """
    nothing = np.empty(0, np.bool_)
    rule = make_rule(frames.dtype, threshold=0.0, kind="both")
    return _run(frames, size, nothing, np.empty(0, _counter(frames)), rule)


def clean_frames(frames: np.ndarray, *, size: int, threshold: float, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Replace spots by the running median, in one pass; see `niseg_gpu.spots.remove_spots`.

    Parameters
    ----------
    frames : (..., Y, X) ndarray
        One of `DTYPES`.
    size : int
        Side of the window in pixels, one of `CPU_SIZES`.
    threshold : float
        Not negative.
    kind : {"bright", "dark", "both"}

    Returns
    -------
    cleaned : (..., Y, X) ndarray
        In the dtype of `frames`. A NaN is never a spot; what it does to its neighbours' medians, see `median_frames`.
    spots : (..., Y, X) bool ndarray
    """
    return clean_and_count(frames, size=size, rule=make_rule(frames.dtype, threshold=threshold, kind=kind))[:2]


def clean_and_count(frames: np.ndarray, *, size: int, rule: Rule) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Clean frames as `clean_frames` does, by any rule.

    Returns
    -------
    cleaned : (..., Y, X) ndarray
    spots : (..., Y, X) bool ndarray
    counts : (..., Y) ndarray
        Spots of each row.
    has_nan : bool
        Whether there is NaN in the frames, by which medians around it are wrong.
    """
    spots = np.empty(frames.shape, np.bool_)
    counts = np.zeros((2, *frames.shape[:-1]), _counter(frames))
    cleaned = _run(frames, size, spots, counts, rule)
    return cleaned, spots, counts[0], bool(counts[1].any())


def covers(dtype: Any, size: tuple[int, ...]) -> bool:
    """Whether the kernels for either device have the dtype and the window, given per axis."""
    return covers_on_cpu(dtype, size) and size[-1] in SIZES


def covers_on_cpu(dtype: Any, size: tuple[int, ...]) -> bool:
    """Whether `median_frames` has the dtype and the window, given per axis."""
    *leading, height, width = size
    return np.dtype(dtype) in DTYPES and height == width and height in CPU_SIZES and all(n == 1 for n in leading)


def _counter(frames: np.ndarray) -> type:
    """Counts the spots of a row; as narrow as the values where it can be, so that a vector counts as many as it has."""
    return np.uint16 if frames.dtype.itemsize <= 2 and frames.shape[-1] < 2**16 else np.uint32


def _run(frames: np.ndarray, size: int, spots: np.ndarray, counts: np.ndarray, rule: Rule) -> np.ndarray:
    flat = read_flat(frames)
    out = np.empty(frames.shape, frames.dtype)
    if flat.size:
        kernel = {3: _filter3, 5: filter5, 7: filter7}[size]
        kernel(flat, *frames.shape[-2:], out.reshape(-1), spots.reshape(-1), counts.reshape(-1), *rule)
    return out
