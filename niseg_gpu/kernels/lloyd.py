"""One pass of k-means over a table of pixels on the CPU.

Pixels come to the cache tile by tile, as float32 less their mean and side by side, whatever their dtype and whichever
axis runs fastest in memory. There they meet the centroids, and are added to their cluster's sum.

The answer does not depend on how the pixels are cut. A distance is summed over the features alike wherever its pixel
lies. Sums over pixels are exact: before it is added in float64, every value is rounded to a multiple of a quantum,
a power of two so chosen that no sum needs more than 52 bit; then the order of additions is of no account.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.kernels.compiled import compiled
from niseg_gpu.kernels.exact import Sums
from niseg_gpu.kernels.lanes import (
    LANES,
    QUAD,
    SPAN,
    bring_stretch,
    multiply_1,
    multiply_2,
    multiply_3,
    multiply_4,
    score_span,
    square_span,
)
from niseg_gpu.kernels.margins import (
    MARGINS,
    Doubt,
    Shift,
    Watch,
    are_worth_it,
    choose_pixels,
    list_groups,
    note_margins,
)
from niseg_gpu.kernels.panel import RUN, RUNS, arrange_centroids, compare_centroids
from niseg_gpu.kernels.spectra import add_line, bare, bring_line, take_line
from niseg_gpu.kernels.tiles import LINE, aligned_zeros, empty_lanes, flatten, turn_rows
from niseg_gpu.kernels.vectors import SIDE, turn_square


@compiled
def _add(parts, sums):  # type: ignore[no-untyped-def]
    """Add parts to their sums, and begin them anew."""
    for i in range(sums.size):
        sums[i] += parts[i]
        parts[i] = 0


@compiled
def find_nearest_of_span(tile, first, features, panel, k, norms, products, parts, nearest, scores):  # type: ignore[no-untyped-def]
    """Find the nearest centroids of a span of a tile's pixels, and the least two scores of each."""
    values, across = tile.reshape(-1), tile.shape[1]
    nearest[:], scores[:], parts[:] = 0, np.inf, 0
    for c in range(0, k, QUAD):
        products[:] = 0
        for f in range(0, features, RUN):
            at, n, column = first + f * across, min(RUN, features - f), c * features + f * QUAD
            if k - c >= 4:
                multiply_4(values, at, across, n, panel, column, parts)
            elif k - c == 3:
                multiply_3(values, at, across, n, panel, column, parts)
            elif k - c == 2:
                multiply_2(values, at, across, n, panel, column, parts)
            else:
                multiply_1(values, at, across, n, panel, column, parts)
            if (f // RUN + 1) % RUNS == 0 or f + RUN >= features:
                _add(parts, products)
        score_span(products, norms, c, min(QUAD, k - c), nearest, scores)


@compiled
def _note(tile, first, features, rows, numbers, start, scores, margins, doubt, squares, parts, notes):  # type: ignore[no-untyped-def]
    """Remember the margins of a span's pixels."""
    values, across = tile.reshape(-1), tile.shape[1]
    squares[:] = 0
    for f in range(0, features, RUN):
        square_span(values, first + f * across, across, min(RUN, features - f), parts)
        if (f // RUN + 1) % RUNS == 0 or f + RUN >= features:
            _add(parts, squares)
    note_margins(margins, numbers, start, rows, squares, scores, *doubt, notes)


@compiled
def _settle(i, new, old, lines, at, width, magic, labels, only_changes, sums, sizes):  # type: ignore[no-untyped-def]
    """Label a pixel and add its line to the sums, or to their changes."""
    labels[i] = new
    sizes[new] += 1
    leaves = only_changes and old < sizes.size
    sizes[old if leaves else new] -= leaves
    add_line(lines, at, width, magic, sums, new * width)
    if leaves:
        take_line(lines, at, width, magic, sums, old * width)


class Room(NamedTuple):
    """For what is found of a span of pixels.

    Made before the kernels are called, for these hold no array: one that they made themselves would be given back, and
    to another thread, once they had seen it last.

    Attributes
    ----------
    tile : (width, pixels) float32 array
    products, parts : (4 * SPAN,) float32 array
        Zeros.
    nearest : (SPAN,) int32 array
    scores : (2 * SPAN,) float32 array
    squares : (SPAN,) float32 array
    notes : (2, SPAN) float64 array
        Of margins.
    lines : (8 * width,) float32 array
        Pixels one after another.
    """

    tile: np.ndarray
    products: np.ndarray
    parts: np.ndarray
    nearest: np.ndarray
    scores: np.ndarray
    squares: np.ndarray
    notes: np.ndarray
    lines: np.ndarray


def _make_room(features: int, *, by_rows: bool) -> Room:
    tile = empty_lanes(features, by_rows=by_rows)
    products, parts, scores, squares, lines = (
        aligned_zeros((n,), np.float32) for n in (QUAD * SPAN, QUAD * SPAN, 2 * SPAN, SPAN, SIDE * len(tile))
    )
    return Room(tile, products, parts, np.zeros(SPAN, np.int32), scores, squares, np.zeros((2, SPAN)), lines)


@compiled
def _assign_rows(
    flat, row_step, wanted, mean, panel, norms, k, magic, labels, only_changes, sums, sizes, margins, doubt,
    tile, products, parts, nearest, scores, squares, notes, lines,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Pixels whose features lie together: those wanted, wherever they are."""
    features, width, moved = mean.size, tile.shape[0], 0
    flat, mean, panel, norms, labels, sums = bare(flat), bare(mean), bare(panel), bare(norms), bare(labels), bare(sums)
    sizes, tile, wanted, margins, lines = bare(sizes), bare(tile), bare(wanted), bare(margins), bare(lines)
    products, parts, nearest, scores = bare(products), bare(parts), bare(nearest), bare(scores)
    squares, notes = bare(squares), bare(notes)
    for start in range(0, wanted.size, SPAN):
        rows = min(SPAN, wanted.size - start)
        turn_rows(flat, row_step, wanted, start, rows, mean, tile)
        find_nearest_of_span(tile, 0, features, panel, k, norms, products, parts, nearest, scores)
        if margins.size:
            _note(tile, 0, features, rows, wanted, start, scores, margins, doubt, squares, parts, notes)
        for r in range(rows):
            i, new = wanted[start + r], nearest[r]
            old = labels[i]
            if old >= 0 and not (only_changes and new == old):
                bring_line(flat, i * row_step, mean, 0, features, lines, 0)
                _settle(i, new, old, lines, 0, width, magic, labels, only_changes, sums, sizes)
                moved += new != old
    return moved


@compiled
def _bring_groups(flat, feature_step, lead, n, groups, first, mean, tile, numbers, runs):  # type: ignore[no-untyped-def]
    """Bring groups of pixels whose features lie apart into a tile, and their numbers; return how many groups.

    A group is `LANES` pixels side by side, the first short of `lead`, the last up to `n`; `runs` is room for where
    neighbouring ones start, how many pixels they have, and where these go to.
    """
    across, slots, slot, count = tile.shape[1], min(tile.shape[1] // LANES, groups.size - first), 0, 0
    numbers[:] = -1
    while slot < slots:
        to, begin = slot * LANES, groups[first + slot] * LANES - lead
        stop, begin = min(begin + LANES, n), max(begin, 0)
        slot += 1
        while slot < slots and stop - begin == slot * LANES - to and groups[first + slot] * LANES - lead == stop:
            stop = min(stop + LANES, n)
            slot += 1
        runs[0, count], runs[1, count], runs[2, count] = begin, stop - begin, to
        count += 1
        for p in range(stop - begin):
            numbers[to + p] = begin + p
    values = tile.reshape(-1)
    for f in range(mean.size):
        for j in range(count):
            bring_stretch(flat, f * feature_step + runs[0, j], runs[1, j], mean[f], values, f * across + runs[2, j])
    return slots


@compiled
def _assign_frames(
    flat, feature_step, groups, mean, panel, norms, k, magic, labels, only_changes, sums, sizes, margins, doubt,
    tile, products, parts, nearest, scores, squares, notes, lines, lead, zeros, numbers, runs,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Pixels whose features lie apart: groups of neighbours, in whole tiles."""
    features, moved = mean.size, 0
    width, across = tile.shape
    flat, mean, panel, norms, labels, sums = bare(flat), bare(mean), bare(panel), bare(norms), bare(labels), bare(sums)
    sizes, tile, groups, margins, lines = bare(sizes), bare(tile), bare(groups), bare(margins), bare(lines)
    products, parts, nearest, scores = bare(products), bare(parts), bare(nearest), bare(scores)
    squares, notes, zeros, numbers, runs = bare(squares), bare(notes), bare(zeros), bare(numbers), bare(runs)
    values = tile.reshape(-1)
    for start in range(0, groups.size, across // LANES):
        slots = _bring_groups(flat, feature_step, lead, labels.size, groups, start, mean, tile, numbers, runs)
        for first in range(0, slots * LANES, SPAN):
            find_nearest_of_span(tile, first, features, panel, k, norms, products, parts, nearest, scores)
            if margins.size:
                _note(tile, first, features, SPAN, numbers, first, scores, margins, doubt, squares, parts, notes)
            for begin in range(first, first + SPAN, SIDE):
                turned = False
                for p in range(begin, begin + SIDE):
                    i, new = numbers[p], nearest[p - first]
                    old = labels[i] if i >= 0 else np.int32(-1)
                    if old < 0 or (only_changes and new == old):
                        continue
                    if not turned:
                        for f in range(0, width, SIDE):
                            turn_square(values, f * across + begin, across, zeros, f, lines, f, width)
                        turned = True
                    at = (p - begin) * width
                    _settle(i, new, old, lines, at, width, magic, labels, only_changes, sums, sizes)
                    moved += new != old
    return moved


def assign_and_sum_cpu(
    pixels: np.ndarray,
    *,
    centroids: np.ndarray,
    mean: np.ndarray,
    quantum: float,
    labels: np.ndarray,
    before: np.ndarray | None = None,
    memory: dict[str, Any] | None = None,
) -> Sums:
    """Give each pixel its nearest centroid and sum the pixels of each cluster, reading each once at most.

    Parameters
    ----------
    pixels : (n, features) ndarray
        Either axis may run fastest; float32 or integers of 8 or 16 bit are read as they are, others are copied first.
    centroids : (k, features) float32 ndarray
        Less the mean.
    mean : (features,) float32 ndarray
    quantum : float
        See `choose_quantum`.
    labels : (n,) int32 ndarray
        Updated in place; of equally near centroids the first. Negative ones stay, their pixels are left out.
    before : (k, features) float32 ndarray, optional
        The centroids that the labels were given by, with the same mean and quantum. The sums are then of the pixels
        that came to each cluster less those that left it: added to the sums under the old labels, that is again exact.
    memory : dict, optional
        Of these pixels alone, from pass to pass. Of what one pass leaves there the next one sees which pixels can't
        have changed, and does not read them.

    Returns
    -------
    Sums
    """
    k, features = centroids.shape
    flat, *steps = flatten(pixels)
    by_rows, panel = steps[1] == 1, arrange_centroids(centroids)
    lead = flat.ctypes.data % LINE // flat.itemsize % LANES  # so that groups begin with a line of the cache
    if memory is not None and before is None:
        remember = k > 1 and are_worth_it(pixels.shape[1] * pixels.itemsize)
        memory["margins"] = np.empty((MARGINS, labels.size), np.float32) if remember else None
        memory["watch"] = Watch()
    memory = memory or {"margins": None}
    knows = before is not None and memory["margins"] is not None and memory["watch"].noted
    shift = compare_centroids(before, centroids) if knows else None
    wanted, margins = _choose(labels, memory, shift, panel.doubt, lead=None if by_rows else lead)
    room = _make_room(features, by_rows=by_rows)
    width, across = room.tile.shape
    sums, sizes = aligned_zeros((k * width,), np.float64), np.zeros(k, np.int64)
    how = wanted, mean, *panel[:2], k, magic_of(quantum), labels, before is not None, sums, sizes, margins
    if by_rows:
        moved = _assign_rows(flat, steps[0], *how, tuple(panel.doubt), *room)
    else:
        places = np.zeros(width, np.float32), np.empty(across, np.int64), np.empty((3, across // LANES), np.int64)
        moved = _assign_frames(flat, steps[1], *how, tuple(panel.doubt), *room, lead, *places)
    return Sums(sums.reshape(k, -1)[:, :features], sizes, int(moved))


def _choose(
    labels: np.ndarray, memory: dict[str, Any], shift: Shift | None, doubt: Doubt, *, lead: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the pixels to look at, or of their groups where those have a `lead`; and where to note.

    By what the last pass noted, if there is a `shift` since; else all of them.
    """
    margins, watch = memory["margins"], memory.get("watch")
    number = np.int32 if labels.size < 2**31 - LANES else np.int64
    n_groups = math.ceil((labels.size + (lead or 0)) / LANES)
    if shift is not None:
        wanted = np.empty(labels.size, number)
        wanted = wanted[: choose_pixels(labels, margins, *shift, doubt.fixed, doubt.by_norm, wanted)]
        wanted = wanted if lead is None else wanted[: list_groups(wanted, lead, LANES)]
        watch.judge(len(wanted) / (labels.size if lead is None else n_groups))
    elif lead is None:
        wanted = np.flatnonzero(labels >= 0).astype(number)
    else:
        wanted = np.arange(n_groups, dtype=number)
    return wanted, margins if margins is not None and watch.notes() else np.empty((MARGINS, 0), np.float32)


def magic_of(quantum: float) -> float:
    """Return the number that, added to a value and taken off again in float64, rounds it to the quantum."""
    return 1.5 * 2.0**52 * quantum
