"""One pass of k-means over a table of pixels on the CPU.

Pixels come to the cache tile by tile, as float32 rows less their mean, whatever their dtype and whichever axis runs
fastest in memory. There they meet the centroids, and are added to their cluster's sum.

The answer does not depend on how the pixels are cut. A distance is summed over the features alike wherever its pixel
lies. Sums over pixels are exact: before it is added in float64, every value is rounded to a multiple of a quantum,
a power of two so chosen that no sum needs more than 52 bit; then the order of additions is of no account.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.kernels.compiled import compiled
from niseg_gpu.kernels.exact import Sums
from niseg_gpu.kernels.margins import (
    MARGINS,
    Doubt,
    choose_pixels,
    make_margins,
    note_margins,
)
from niseg_gpu.kernels.panel import RUN, arrange_centroids, compare_centroids
from niseg_gpu.kernels.spectra import (
    LANES,
    add_line,
    bare,
    find_nearest,
    multiply_8x16,
    multiply_8x32,
    multiply_8x48,
    take_line,
)
from niseg_gpu.kernels.tiles import (
    LEAST_ROWS,
    aligned_zeros,
    empty_tile,
    flatten,
    gather_listed,
    gather_rows,
)
from niseg_gpu.kernels.vectors import (
    CENTROIDS,
    multiply_3x4,
    multiply_4x3,
    multiply_6x2,
    multiply_12x1,
)


@compiled
def _multiply(tile, first, panel, k, products):  # type: ignore[no-untyped-def]
    """Products of `LEAST_ROWS` of a tile's pixels with all `k` centroids, four at a time, then those left over."""
    blocks, tile_rows, width = tile.shape
    room, pixels, out = products.shape[1], tile.reshape(-1), products.reshape(-1)
    products[:] = 0
    for b in range(blocks):
        pixel = (b * tile_rows + first) * width
        for c in range(0, k, CENTROIDS):
            at = (b * room + c) * width
            if k - c >= 4:
                for r in range(0, LEAST_ROWS, 3):
                    multiply_3x4(pixels, pixel + r * width, width, panel, at, width, out, r * room + c, room)
            elif k - c == 3:
                for r in range(0, LEAST_ROWS, 4):
                    multiply_4x3(pixels, pixel + r * width, width, panel, at, width, out, r * room + c, room)
            elif k - c == 2:
                for r in range(0, LEAST_ROWS, 6):
                    multiply_6x2(pixels, pixel + r * width, width, panel, at, width, out, r * room + c, room)
            else:
                for r in range(0, LEAST_ROWS, 12):
                    multiply_12x1(pixels, pixel + r * width, width, panel, at, width, out, r * room + c, room)


@compiled
def _multiply_abreast(tile, first, features, panel, products):  # type: ignore[no-untyped-def]
    """The same with centroids side by side in vectors: one to three of those at a time."""
    blocks, tile_rows, width = tile.shape
    room, pixels, out = products.shape[1], tile.reshape(-1), products.reshape(-1)
    step = width * LANES
    products[:] = 0
    for b in range(blocks):
        for f in range(0, min(width, features - b * width), RUN):
            n, pixel = min(RUN, min(width, features - b * width) - f), (b * tile_rows + first) * width + f
            c = 0
            while c < room:
                at, left = (b * room + c) * width + f * LANES, (room - c) // LANES
                if left == 3 or left > 4:
                    for r in range(0, LEAST_ROWS, 8):
                        multiply_8x48(pixels, pixel + r * width, width, n, panel, at, step, out, r * room + c, room)
                    c += 3 * LANES
                elif left > 1:
                    for r in range(0, LEAST_ROWS, 8):
                        multiply_8x32(pixels, pixel + r * width, width, n, panel, at, step, out, r * room + c, room)
                    c += 2 * LANES
                else:
                    for r in range(0, LEAST_ROWS, 8):
                        multiply_8x16(pixels, pixel + r * width, width, n, panel, at, step, out, r * room + c, room)
                    c += LANES


@compiled
def find_nearest_of_tile(tile, first, rows, features, panel, abreast, k, norms, products, nearest, scores):  # type: ignore[no-untyped-def]
    """Find the nearest centroids of some of a tile's pixels, and the least two scores of each."""
    if abreast:
        _multiply_abreast(tile, first, features, panel, products)
    else:
        _multiply(tile, first, panel, k, products)
    out = products.reshape(-1)
    for r in range(rows):
        find_nearest(out, r * norms.size, norms, norms.size, nearest, scores, r)


@compiled
def _settle(tile, first, rows, numbers, start, nearest, magic, labels, only_changes, sums, sizes):  # type: ignore[no-untyped-def]
    """Label pixels and add them to the sums, or to their changes; return how many labels are new."""
    blocks, tile_rows, width = tile.shape
    values, totals, moved = tile.reshape(-1), sums.reshape(-1), 0
    for r in range(rows):
        i = numbers[start + r]
        new, old = nearest[r], labels[i]
        if old < 0 or (only_changes and new == old):
            continue
        labels[i] = new
        sizes[new] += 1
        leaves = only_changes and old < sizes.size
        sizes[old if leaves else new] -= leaves
        for b in range(blocks):
            at = (b * tile_rows + first + r) * width
            add_line(values, at, width, magic, totals, (new * blocks + b) * width)
            if leaves:
                take_line(values, at, width, magic, totals, (old * blocks + b) * width)
        moved += new != old
    return moved


class Room(NamedTuple):
    """For what is found of a few pixels.

    Made before the kernels are called, for these hold no array: one that they made themselves would be given back, and
    to another thread, once they had seen it last.

    Attributes
    ----------
    products : (few, n) float32 array
    nearest : (few,) int32 array
    scores : (2, few) float32 array
    notes : (2, few) float64 array
        Of margins.
    numbers : (rows of a tile,) int32 array
        0, 1, 2, ...
    """

    products: np.ndarray
    nearest: np.ndarray
    scores: np.ndarray
    notes: np.ndarray
    numbers: np.ndarray


def _make_room(n: int, tile_rows: int) -> Room:
    few = LEAST_ROWS
    return Room(
        np.zeros((few, n), np.float32),
        np.zeros(few, np.int32),
        np.zeros((2, few), np.float32),
        np.zeros((2, few)),
        np.arange(tile_rows, dtype=np.int32),
    )


@compiled
def _assign_frames(
    flat, row_step, feature_step, mean, panel, abreast, norms, k, magic, labels, only_changes, sums, sizes, tile,
    products, nearest, scores, numbers,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Pixels whose features lie apart: whole tiles of them, one after another."""
    n, features, moved = labels.size, mean.size, 0
    flat, mean, panel, norms, labels, sums = bare(flat), bare(mean), bare(panel), bare(norms), bare(labels), bare(sums)
    sizes, tile, numbers = bare(sizes), bare(tile), bare(numbers)
    products, nearest, scores = bare(products), bare(nearest), bare(scores)
    for start in range(0, n, tile.shape[1]):
        rows = min(tile.shape[1], n - start)
        gather_rows(flat, start * row_step, row_step, feature_step, rows, mean, tile)
        for first in range(0, rows, LEAST_ROWS):
            some = min(LEAST_ROWS, rows - first)
            find_nearest_of_tile(tile, first, some, features, panel, abreast, k, norms, products, nearest, scores)
            part = labels[start : start + rows]
            moved += _settle(tile, first, some, numbers, first, nearest, magic, part, only_changes, sums, sizes)
    return moved


@compiled
def _assign_rows(
    flat, row_step, mean, panel, abreast, norms, k, magic, labels, only_changes, sums, sizes, tile,
    products, nearest, scores, notes, wanted, margins, doubt,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Pixels whose features lie together: those wanted, wherever they are."""
    n, features, moved = wanted.size, mean.size, 0
    products, nearest, scores, notes = bare(products), bare(nearest), bare(scores), bare(notes)
    flat, mean, panel, norms, labels, sums = bare(flat), bare(mean), bare(panel), bare(norms), bare(labels), bare(sums)
    sizes, tile, wanted, margins = bare(sizes), bare(tile), bare(wanted), bare(margins)
    for start in range(0, n, LEAST_ROWS):
        rows = min(LEAST_ROWS, n - start)
        gather_listed(flat, row_step, wanted, start, rows, mean, tile)
        find_nearest_of_tile(tile, 0, rows, features, panel, abreast, k, norms, products, nearest, scores)
        if margins.size:
            note_margins(margins, wanted, start, rows, tile, scores, *doubt, notes)
        moved += _settle(tile, 0, rows, wanted, start, nearest, magic, labels, only_changes, sums, sizes)
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
    by_rows = steps[1] == 1
    tile = empty_tile(features, by_rows=by_rows)
    blocks, _, width = tile.shape
    sums, sizes = aligned_zeros((k, blocks, width), np.float64), np.zeros(k, np.int64)
    panel = arrange_centroids(centroids, blocks=blocks, width=width)
    memory = {} if memory is None else memory
    room = _make_room(panel.norms.size, tile.shape[1])
    how = mean, *panel[:3], k, magic_of(quantum), labels, before is not None, sums, sizes, tile
    if by_rows:
        wanted, margins = _choose(pixels, steps, centroids, labels, before, memory, panel.doubt)
        moved = _assign_rows(flat, steps[0], *how, *room[:4], wanted, margins, tuple(panel.doubt))
    else:
        memory.clear()
        moved = _assign_frames(flat, *steps, *how, *room[:3], room.numbers)
    return Sums(sums.reshape(k, -1)[:, :features], sizes, int(moved))


def _choose(
    pixels: np.ndarray,
    steps: list[int],
    centroids: np.ndarray,
    labels: np.ndarray,
    before: np.ndarray | None,
    memory: dict[str, Any],
    doubt: Doubt,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the pixels to look at, and where to note their margins."""
    if before is None:
        memory["margins"] = make_margins(pixels, steps=(steps[0], steps[1])) if len(centroids) > 1 else None
    margins, number = memory.get("margins"), np.int32 if labels.size < 2**31 else np.int64
    if margins is None or before is None:
        wanted = np.flatnonzero(labels >= 0).astype(number)
    else:
        wanted, shift = np.empty(labels.size, number), compare_centroids(before, centroids)
        wanted = wanted[: choose_pixels(labels, margins, *shift, doubt.fixed, doubt.by_norm, wanted)]
    return wanted, np.empty((MARGINS, 0), np.float32) if margins is None else margins


def magic_of(quantum: float) -> float:
    """Return the number that, added to a value and taken off again in float64, rounds it to the quantum."""
    return 1.5 * 2.0**52 * quantum
