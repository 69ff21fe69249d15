"""Running medians on the CPU, and the cleaning of spots fused with them: 3 x 3 here, to 13 x 13 through here.

Each row is sorted once, in threes of neighbours; the rows of a window are then merged. Values stay in a strip's work
lines, which fit the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from niseg_gpu.kernels.compiled import compiled, inline, read_flat, within
from niseg_gpu.kernels.lines import LONGEST_BYTES, from_cache_line
from niseg_gpu.kernels.median_rows import filter5, filter7, filter9, filter11, filter13
from niseg_gpu.kernels.networks import median9, sort3
from niseg_gpu.kernels.row3 import ROWS, clean_row3, clean_rows3, filter_row3, filter_rows3
from niseg_gpu.kernels.spot_rules import Rule, add_counts, clean_row, make_rule
from niseg_gpu.kernels.spot_rules import limit_differences as limit_differences  # the GPU's kernels look for it here

SIZES = (3, 5)  # of windows in frames for which either device has a kernel
CPU_SIZES = (3, 5, 7, 9, 11, 13)
DTYPES = frozenset(np.dtype(t) for t in ("uint8", "uint16", "int16", "int32", "float32"))
STRIP_BYTES = 8192  # of a row, at a time
# that lie apart from each other in pages too: a processor takes a value that it reads for one just written, until it
# knows better, if both lie alike in their pages
LINE_BYTES = STRIP_BYTES + 704
PAGE = 4096  # bytes


@inline
def _sort_row3(frames, i, first, end, lines, line):
    """Sort a row in threes into `lines`, columns `first` to `end`; the left neighbour of column 0 lies at `i`."""
    i0, i1, i2 = np.uint64(i), np.uint64(i + 1), np.uint64(i + 2)
    line1, line2 = np.uint64(line), np.uint64(2 * line)
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
    strip, line = STRIP_BYTES // frames.itemsize, LINE_BYTES // frames.itemsize
    work = from_cache_line(np.empty((7 + ROWS) * line, frames.dtype))
    even, odd, medians = work[: 3 * line], work[3 * line : 6 * line], work[6 * line :]
    begins, found = np.empty(ROWS, np.int64), np.empty(ROWS, np.int64)
    clean, fused = spots.size > 0, spots.size > 0 and noise.size == 0 and blank.size == 0
    for frame in range(0, frames.size, height * width):
        bottom, first_row = frame + (height - 1) * width, frame // width
        for left in range(0, width, strip):
            n = min(strip, width - left)
            edge = 1 if left + n == width else 0
            for lines in (even, odd):
                _sort_row3(frames, frame + left - 1, 1 if left == 0 else 0, n - edge, lines, line)
            r = 0
            while r < height:
                rows = ROWS if r + ROWS <= height else 1
                row, o = frame + r * width, frame + r * width + left
                before, centre = (odd, even) if r % 2 else (even, odd)
                for k in range(rows):
                    begins[k] = min(row + (k + 1) * width, bottom) + left - 1
                # all columns alike, at the borders the result is put right below; but nothing is read from outside
                first = 1 if begins[0] < 0 else 0
                end = n if begins[rows - 1] + 1 + n < frames.size else n - edge
                to, o_to, pitch = (medians, 0, line) if clean else (out, o, width)
                if fused and rows > 1:
                    clean_rows3(frames, begins, first, end, before, centre, line, out, o, width, spots, limits, found)
                elif fused:
                    clean_row3(frames, begins, first, end, before, centre, line, out, o, width, spots, limits, found)
                elif rows > 1:
                    filter_rows3(frames, begins, first, end, before, centre, line, to, o_to, pitch)
                else:
                    filter_row3(frames, begins, first, end, before, centre, line, to, o_to, pitch)
                for k in range(rows):
                    at = row + k * width
                    above, below = max(at - width, frame), min(at + width, bottom)
                    for side in range(0 if left == 0 else 1, 1 + edge if width > 1 else 1):
                        x, inner = (width - 1, width - 2) if side else (0, min(1, width - 1))
                        median = _border3(frames, above, at, below, x, inner)
                        if fused:
                            counted = first <= x - left < end
                            found[k] += _clean_border(frames, at + x, median, counted, out, spots, limits)
                        else:
                            to[o_to + k * pitch + x - left] = median
                    if fused:
                        add_counts(counts, first_row + r + k, found[k])
                    elif clean:
                        i, m, to_row = o + k * width, k * line, first_row + r + k
                        clean_row(frames, i, medians, m, n, out, spots, to_row, counts, limits, noise, blank)
                r += rows


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
    out = _empty_beside(flat).reshape(frames.shape)
    if flat.size:
        kernel = {3: _filter3, 5: filter5, 7: filter7, 9: filter9, 11: filter11, 13: filter13}[size]
        kernel(flat, *frames.shape[-2:], out.reshape(-1), spots.reshape(-1), counts.reshape(-1), *rule)
    return out


def _empty_beside(frames: np.ndarray) -> np.ndarray:
    """Room for results: from where a line of the cache begins, half a page away from where the frames lie in theirs."""
    if frames.nbytes < PAGE:
        return np.empty(frames.shape, frames.dtype)
    room = np.empty(frames.nbytes + PAGE, np.uint8)
    there = frames.ctypes.data // LONGEST_BYTES * LONGEST_BYTES + PAGE // 2
    start = (there - room.ctypes.data) % PAGE
    return room[start : start + frames.nbytes].view(frames.dtype)
