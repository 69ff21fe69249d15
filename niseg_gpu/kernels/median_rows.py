"""Running medians of 5 x 5 to 13 x 13 in frames on the CPU, two rows at a time, and the cleaning of spots with them.

The windows around rows r and r + 1 share all rows but two. Every row is sorted once, and merged with its neighbour
once; a window needs those values of the shared rows that may still be its median, and its own one row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from niseg_gpu.kernels.compiled import compiled, inline, within
from niseg_gpu.kernels.lines import LONGEST_BYTES, from_cache_line, loop_over
from niseg_gpu.kernels.selection import merging, sorting, two_medians
from niseg_gpu.kernels.spot_rules import clean_row

STRIP = 2048  # columns at a time
LINE = STRIP + 2 * LONGEST_BYTES  # no power of two, or all lines would meet in few sets of the cache


def _loops(size: int) -> tuple[Any, Any, Any]:
    """Sort a row, merge two, and step on by two rows."""
    one, two, pairs = (size, LINE), (2 * size, LINE), (size - 3) // 2
    rows = [(size, 1), (size, 1)]
    return (
        loop_over(sorting(size), inputs=[(size, 1)], results=[one]),
        loop_over(merging(size, size), inputs=[one, one], results=[two]),
        loop_over(two_medians(size), inputs=[*rows, one, *pairs * [two], one], results=[(2, LINE), one, one, two]),
    )


_sort5, _merge5, _step5 = _loops(5)
_sort7, _merge7, _step7 = _loops(7)
_sort9, _merge9, _step9 = _loops(9)
_sort11, _merge11, _step11 = _loops(11)
_sort13, _merge13, _step13 = _loops(13)  # 15 x 15 would take three times as long: there `median_wide` is no slower


@within
def pad_row(frames, row, width, left, n, half, lines, k):
    """Copy columns `left` to `left + n` of a row into a line, with `half` neighbours on either side."""
    to, i = np.uint64(k + half), np.uint64(row + left)
    for x in range(np.uint64(n)):
        lines[to + x] = frames[i + x]
    for x in range(half):
        lines[k + x] = frames[row + max(left + x - half, 0)]
        lines[k + half + n + x] = frames[row + min(left + n + x, width - 1)]


@within
def copy_row(medians, m, n, out, o):
    m, o = np.uint64(m), np.uint64(o)
    for x in range(np.uint64(n)):
        out[o + x] = medians[m + x]


@inline
def _filter_rows(size, loops, frames, height, width, out, spots, counts, limits, noise, blank):
    sort_row, merge_rows, step = loops
    half, pairs, one = size // 2, (size - 3) // 2, size * LINE
    # two padded rows, two rows of medians, the sorted row `half` - 1 below the first of the two, those which will be
    # `half` above it in turn, and the merged pairs of rows
    medians, second, outer = 2 * LINE, 4 * LINE, 4 * LINE + one
    merged = outer + half * one
    lines = from_cache_line(np.zeros(merged + (pairs + 1) * 2 * one + LONGEST_BYTES, frames.dtype))
    begins = np.zeros(pairs + 8, np.int64)
    for frame in range(0, frames.size, height * width):
        first_row = frame // width
        for left in range(0, width, STRIP):
            n = min(STRIP, width - left)
            for k in range(half + 1 + 2 * pairs):
                # the rows above the first repeat it
                y, to = 2 * k - half, outer + k * one
                if k == half:
                    y, to = half - 1, second
                elif k > half:
                    y, to = k - 2 * half, merged + pairs * 2 * one + (k + half) % 2 * one
                y = min(max(y, 0), height - 1)
                pad_row(frames, frame + y * width, width, left, n, half, lines, 0)
                begins[0], begins[1] = 0, to
                sort_row(lines, begins, n)
                if k > half and (k - half) % 2 == 0:
                    begins[0], begins[1] = merged + pairs * 2 * one, merged + pairs * 2 * one + one
                    begins[2] = merged + ((k - half) // 2 - 1) * 2 * one
                    merge_rows(lines, begins, n)
            for r in range(0, height, 2):
                turn, row = r // 2, frame + r * width
                for k in range(2):
                    y = min(r + half + k, height - 1)
                    pad_row(frames, frame + y * width, width, left, n, half, lines, k * LINE)
                begins[1], begins[2] = LINE, second
                begins[0] = 0
                for k in range(pairs):
                    begins[3 + k] = merged + (turn + k) % (pairs + 1) * 2 * one
                begins[3 + pairs] = begins[5 + pairs] = outer + turn % half * one
                begins[4 + pairs], begins[6 + pairs] = medians, second
                begins[7 + pairs] = merged + (turn + pairs) % (pairs + 1) * 2 * one
                step(lines, begins, n)
                for k in range(min(2, height - r)):
                    o, m = row + k * width + left, medians + k * LINE
                    if spots.size:
                        clean_row(frames, o, lines, m, n, out, spots, first_row + r + k, counts, limits, noise, blank)
                    else:
                        copy_row(lines, m, n, out, o)


@compiled
def filter5(frames, height, width, out, spots, counts, limits, noise, blank):
    """5 x 5 medians of frames one after another into `out`; where `spots` is not empty, frames cleaned by a `Rule`."""
    _filter_rows(5, (_sort5, _merge5, _step5), frames, height, width, out, spots, counts, limits, noise, blank)


@compiled
def filter7(frames, height, width, out, spots, counts, limits, noise, blank):
    """The same with 7 x 7."""
    _filter_rows(7, (_sort7, _merge7, _step7), frames, height, width, out, spots, counts, limits, noise, blank)


@compiled
def filter9(frames, height, width, out, spots, counts, limits, noise, blank):
    """The same with 9 x 9."""
    _filter_rows(9, (_sort9, _merge9, _step9), frames, height, width, out, spots, counts, limits, noise, blank)


@compiled
def filter11(frames, height, width, out, spots, counts, limits, noise, blank):
    """The same with 11 x 11."""
    _filter_rows(11, (_sort11, _merge11, _step11), frames, height, width, out, spots, counts, limits, noise, blank)


@compiled
def filter13(frames, height, width, out, spots, counts, limits, noise, blank):
    """The same with 13 x 13."""
    _filter_rows(13, (_sort13, _merge13, _step13), frames, height, width, out, spots, counts, limits, noise, blank)
