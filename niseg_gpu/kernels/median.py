"""Running medians of 3 x 3 and 5 x 5 on the CPU, and the cleaning of spots fused with them.

Each row is sorted once, in threes or fives of neighbours; the rows of a window are then merged. Values stay in a
strip's work lines, which fit the cache. Lines lie `LINE` values apart in one array, a constant, by which the compiler
sees that they don't overlap and vectorises over the columns.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from niseg_gpu.kernels.networks import inline, median9, median11, merge5, middle6, sort3, sort5

SIZES = (3, 5)
DTYPES = frozenset(np.dtype(t) for t in ("uint8", "uint16", "int16", "int32", "float32"))
STRIP = 2048  # columns at a time
LANES = 32  # values of the widest vector: a loop over whole vectors has no slow rest
LINE = STRIP + 3 * LANES  # no power of two, or all lines would meet in few sets of the cache


@inline
def _replace_spot(value, median, bright, dark, limits):
    """The median instead of a value that lies farther above it than `bright` or below it than `dark`, and whether."""
    above = value > median
    high, low = (value, median) if above else (median, value)
    # in the unsigned type of the same width, that of the limits, no difference overflows
    gap = limits.dtype.type(limits.dtype.type(high) - limits.dtype.type(low))
    spot = gap > (bright if above else dark)
    return median if spot else value, spot


@inline
def _replace_spots(frames, i, medians, m, n, out, spots, bright, dark, limits):
    i, m = np.uint64(i), np.uint64(m)
    for x in range(np.uint64(n)):
        out[i + x], spots[i + x] = _replace_spot(frames[i + x], medians[m + x], bright, dark, limits)


@inline
def _sort_row3(frames, i, first, end, lines):
    """Sort a row in threes into `lines`, columns `first` to `end`; the left neighbour of column 0 lies at `i`."""
    i0, i1, i2 = np.uint64(i), np.uint64(i + 1), np.uint64(i + 2)
    line1, line2 = np.uint64(LINE), np.uint64(2 * LINE)
    for x in range(np.uint64(first), np.uint64(max(first, end))):
        lines[x], lines[line1 + x], lines[line2 + x] = sort3(frames[i0 + x], frames[i1 + x], frames[i2 + x])


@inline
def _median_row3(frames, i, x, before, centre):
    """Median at column `x`; its three of the row after `centre`, at `i`, take the place of those `before`."""
    line1, line2 = np.uint64(LINE), np.uint64(2 * LINE)
    a0, a1, a2 = before[x], before[line1 + x], before[line2 + x]
    b0, b1, b2 = centre[x], centre[line1 + x], centre[line2 + x]
    c0, c1, c2 = sort3(frames[i + x], frames[i + np.uint64(1) + x], frames[i + np.uint64(2) + x])
    before[x], before[line1 + x], before[line2 + x] = c0, c1, c2
    return median9(a0, a1, a2, b0, b1, b2, c0, c1, c2)


@inline
def _filter_row3(frames, i, first, end, before, centre, out, o):
    i, o = np.uint64(i), np.uint64(o)
    for x in range(np.uint64(first), np.uint64(max(first, end))):
        out[o + x] = _median_row3(frames, i, x, before, centre)


@inline
def _clean_row3(frames, i, first, end, before, centre, out, o, spots, bright, dark, limits):
    i, o = np.uint64(i), np.uint64(o)
    for x in range(np.uint64(first), np.uint64(max(first, end))):
        median = _median_row3(frames, i, x, before, centre)
        out[o + x], spots[o + x] = _replace_spot(frames[o + x], median, bright, dark, limits)


@inline
def _border3(frames, above, centre, below, x, inner):
    """Median at the first or last column `x`, which stands for the one outside too."""
    a, b, c = frames[above + x], frames[centre + x], frames[below + x]
    a0, a1, a2 = sort3(a, a, frames[above + inner])
    b0, b1, b2 = sort3(b, b, frames[centre + inner])
    c0, c1, c2 = sort3(c, c, frames[below + inner])
    return median9(a0, a1, a2, b0, b1, b2, c0, c1, c2)


@njit(nogil=True, cache=True)
def _filter3(frames, height, width, out, spots, limits):
    """3 x 3 medians of frames one after another into `out`; cleaned frames, where `spots` is not empty."""
    even, odd = np.empty(3 * LINE, frames.dtype), np.empty(3 * LINE, frames.dtype)
    clean, bright, dark = spots.size > 0, limits[0], limits[1]
    for frame in range(0, frames.size, height * width):
        bottom = frame + (height - 1) * width
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
                i, o = below + left - 1, row + left
                if clean:
                    _clean_row3(frames, i, first, end, before, centre, out, o, spots, bright, dark, limits)
                else:
                    _filter_row3(frames, i, first, end, before, centre, out, o)
                for x in (0, width - 1):
                    if left <= x < left + n:
                        inner = min(max(x - 1, 0), width - 1) if x else min(1, width - 1)
                        median = _border3(frames, above, row, below, x, inner)
                        if clean:
                            median, spots[row + x] = _replace_spot(frames[row + x], median, bright, dark, limits)
                        out[row + x] = median


@inline
def _pad_row(frames, row, width, left, n, lines, k):
    """Copy columns `left` to `left + n` of a row into a line, with two neighbours on either side."""
    k, i = np.uint64(k * LINE), np.uint64(row + left)
    two = np.uint64(2)
    for x in range(n):
        lines[k + two + np.uint64(x)] = frames[i + np.uint64(x)]
    for x in (-2, -1, n, n + 1):
        lines[k + np.uint64(2 + x)] = frames[row + min(max(left + x, 0), width - 1)]


# lines of the work array of 5 x 5: two padded rows, the sorted ten of the rows before and at the first of two
# centres, the sorted five of the row at the second, and the medians of both
PAIR, SECOND, MEDIANS = 2 * LINE, 12 * LINE, 17 * LINE


@inline
def _get5(lines, x):
    return lines[x], lines[x + LINE], lines[x + 2 * LINE], lines[x + 3 * LINE], lines[x + 4 * LINE]


@inline
def _put5(lines, x, five):
    lines[x], lines[x + LINE], lines[x + 2 * LINE], lines[x + 3 * LINE], lines[x + 4 * LINE] = five


@inline
def _sort_padded5(lines, x):
    return sort5(lines[x], lines[x + 1], lines[x + 2], lines[x + 3], lines[x + 4])


@inline
def _start_rows5(lines, n, even, odd):
    """Sort the padded first row (line 0), which stands for those above it too, and the second (line 1)."""
    for x in range(n):
        first = _sort_padded5(lines, x)
        ten = merge5(*first, *first)
        _put5(even, x, first)
        _put5(odd, x, first)
        _put5(lines, PAIR + x, ten[:5])
        _put5(lines, PAIR + 5 * LINE + x, ten[5:])
        _put5(lines, SECOND + x, _sort_padded5(lines, LINE + x))


@inline
def _filter_rows5(lines, n, outer):
    """Medians around two rows r, r + 1, from the padded rows r + 2, r + 3; `outer` is row r - 2, then row r + 2."""
    for x in range(n):
        third = _sort_padded5(lines, x)
        fourth = _sort_padded5(lines, LINE + x)
        ten = merge5(*_get5(lines, SECOND + x), *third)
        middle = middle6(*_get5(lines, PAIR + x), *_get5(lines, PAIR + 5 * LINE + x), *ten)
        lines[MEDIANS + x] = median11(*middle, *_get5(outer, x))
        lines[MEDIANS + LINE + x] = median11(*middle, *fourth)
        _put5(outer, x, third)
        _put5(lines, SECOND + x, fourth)
        _put5(lines, PAIR + x, ten[:5])
        _put5(lines, PAIR + 5 * LINE + x, ten[5:])


@inline
def _copy_row(medians, m, n, out, o):
    m, o = np.uint64(m), np.uint64(o)
    for x in range(n):
        out[o + np.uint64(x)] = medians[m + np.uint64(x)]


@njit(nogil=True, cache=True)
def _filter5(frames, height, width, out, spots, limits):
    """5 x 5 medians of frames one after another into `out`; cleaned frames, where `spots` is not empty."""
    lines = np.empty(19 * LINE, frames.dtype)
    even, odd = np.empty(5 * LINE, frames.dtype), np.empty(5 * LINE, frames.dtype)
    clean, bright, dark = spots.size > 0, limits[0], limits[1]
    for frame in range(0, frames.size, height * width):
        last = frame + (height - 1) * width
        for left in range(0, width, STRIP):
            n = min(STRIP, width - left)
            whole = (n + LANES - 1) // LANES * LANES
            _pad_row(frames, frame, width, left, n, lines, 0)
            _pad_row(frames, min(frame + width, last), width, left, n, lines, 1)
            _start_rows5(lines, whole, even, odd)
            for r in range(0, height, 2):
                row = frame + r * width
                _pad_row(frames, min(row + 2 * width, last), width, left, n, lines, 0)
                _pad_row(frames, min(row + 3 * width, last), width, left, n, lines, 1)
                if r % 4:
                    _filter_rows5(lines, whole, odd)
                else:
                    _filter_rows5(lines, whole, even)
                for k in range(min(2, height - r)):
                    o, m = row + k * width + left, MEDIANS + k * LINE
                    if clean:
                        _replace_spots(frames, o, lines, m, n, out, spots, bright, dark, limits)
                    else:
                        _copy_row(lines, m, n, out, o)


def median_frames(frames: np.ndarray, *, size: int) -> np.ndarray:
    """Running median of each frame, the border value repeated outside.

    Equal to ``scipy.ndimage.median_filter(mode="nearest")`` with a window of 1 along the leading axes, but for the
    sign of a zero. A window that holds NaN gives one of its values or NaN, not said which.

    Parameters
    ----------
    frames : (..., Y, X) ndarray
        One of `DTYPES`.
    size : int
        Side of the window in pixels, one of `SIZES`.

    Returns
    -------
    (..., Y, X) ndarray
        In the dtype of `frames`.
    """
    return _run(frames, size, np.empty(0, np.bool_), limit_differences(frames.dtype, 0.0, "both"))


def clean_frames(frames: np.ndarray, *, size: int, threshold: float, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Replace spots by the running median, in one pass; see `niseg_gpu.spots.remove_spots`.

    Parameters
    ----------
    frames : (..., Y, X) ndarray
        One of `DTYPES`.
    size : int
        Side of the window in pixels, one of `SIZES`.
    threshold : float
        Not negative.
    kind : {"bright", "dark", "both"}

    Returns
    -------
    cleaned : (..., Y, X) ndarray
        In the dtype of `frames`. A NaN is never a spot; what it does to its neighbours' medians, see `median_frames`.
    spots : (..., Y, X) bool ndarray
    """
    spots = np.empty(frames.shape, np.bool_)
    return _run(frames, size, spots, limit_differences(frames.dtype, threshold, kind)), spots


def covers(dtype: Any, size: tuple[int, ...]) -> bool:
    """Whether these kernels have the dtype and the window, given per axis."""
    *leading, height, width = size
    return np.dtype(dtype) in DTYPES and height == width and height in SIZES and all(n == 1 for n in leading)


def _run(frames: np.ndarray, size: int, spots: np.ndarray, limits: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(frames).reshape(-1)
    flat.flags.writeable = False  # one signature to compile, whether or not the caller may write to them
    out = np.empty(frames.shape, frames.dtype)
    if flat.size:
        {3: _filter3, 5: _filter5}[size](flat, *frames.shape[-2:], out.reshape(-1), spots.reshape(-1), limits)
    return out


def limit_differences(dtype: np.dtype, threshold: float, kind: str) -> np.ndarray:
    """Greatest difference above and below the median that is no spot, in the type that holds every difference."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # NumPy too compares with the threshold in the dtype of the image
            limit, never = dtype.type(threshold), np.inf
        differences = dtype
    else:
        differences = np.dtype(f"u{dtype.itemsize}")
        never = np.iinfo(differences).max
        limit = math.floor(min(threshold, never))
    return np.array([never if kind == "dark" else limit, never if kind == "bright" else limit], differences)
