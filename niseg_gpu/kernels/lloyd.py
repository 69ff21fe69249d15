"""One pass of k-means over a table of pixels on the CPU.

Pixels come to the cache tile by tile, as float32 rows less their mean, whatever their dtype and whichever axis runs
fastest in memory. There they meet the centroids, and are added to their cluster's sum. While a tile is worked on, the
next is on its way from memory.

The answer does not depend on how the pixels are cut. A distance is summed over the features alike wherever its pixel
lies. Sums over pixels are exact: before it is added in float64, every value is rounded to a multiple of a quantum,
a power of two so chosen that no sum needs more than 52 bit; then the order of additions is of no account.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from niseg_gpu.kernels.compiled import compiled
from niseg_gpu.kernels.exact import Sums
from niseg_gpu.kernels.margins import (
    MARGINS,
    NORM,
    Doubt,
    choose_pixels,
    make_margins,
    measure_doubt,
    measure_shift,
    note_margin,
    square_row,
)
from niseg_gpu.kernels.tiles import LINE, aligned_zeros, empty_tile, flatten, gather_listed, gather_rows
from niseg_gpu.kernels.vectors import CENTROIDS, multiply_3x4, multiply_4x3, multiply_6x2, multiply_12x1, prefetch


@compiled
def _ask(flat, origin, step, length, first, end):  # type: ignore[no-untyped-def]
    """Have some lines of `length` values, `step` apart, brought to the cache."""
    for i in range(first, end):
        for j in range(0, length, LINE // flat.itemsize):
            prefetch(flat, origin + i * step + j)


@compiled
def _multiply(tile, rows, panel, k, products):  # type: ignore[no-untyped-def]
    """Products of a tile's pixels with all `k` centroids, four at a time, then those left over with more pixels."""
    blocks, tile_rows, width = tile.shape
    room, pixels, centroids, out = panel.shape[1], tile.reshape(-1), panel.reshape(-1), products.reshape(-1)
    products[:] = 0
    for b in range(blocks):
        pixel = b * tile_rows * width
        for c in range(0, k, CENTROIDS):
            centroid = (b * room + c) * width
            if k - c >= 4:
                for r in range(0, rows, 3):
                    multiply_3x4(pixels, pixel + r * width, width, centroids, centroid, width, out, r * room + c, room)
            elif k - c == 3:
                for r in range(0, rows, 4):
                    multiply_4x3(pixels, pixel + r * width, width, centroids, centroid, width, out, r * room + c, room)
            elif k - c == 2:
                for r in range(0, rows, 6):
                    multiply_6x2(pixels, pixel + r * width, width, centroids, centroid, width, out, r * room + c, room)
            else:
                for r in range(0, rows, 12):
                    multiply_12x1(pixels, pixel + r * width, width, centroids, centroid, width, out, r * room + c, room)


@compiled(fastmath={"nnan", "nsz", "contract"})
def _find_nearest(products, norms):  # type: ignore[no-untyped-def]
    """The first of the nearest centroids; `products` becomes the squared distances but for the pixel's own square."""
    least = np.float32(np.inf)
    for c in range(norms.size):
        products[c] = norms[c] - np.float32(2) * products[c]
        least = min(least, products[c])
    for c in range(norms.size):
        if products[c] == least:
            return c
    return 0


@compiled
def add_row(tile, r, magic, total):  # type: ignore[no-untyped-def]
    """Add a row in float64; adding `magic` and taking it off again rounds to the quantum."""
    for b in range(tile.shape[0]):
        row, sums = tile[b, r], total[b]
        for f in range(row.size):
            sums[f] += (np.float64(row[f]) + magic) - magic


@compiled
def _take_row(tile, r, magic, total):  # type: ignore[no-untyped-def]
    """Undo `add_row`."""
    for b in range(tile.shape[0]):
        row, sums = tile[b, r], total[b]
        for f in range(row.size):
            sums[f] -= (np.float64(row[f]) + magic) - magic


@compiled
def _settle(tile, r, i, nearest, magic, labels, only_changes, sums, sizes):  # type: ignore[no-untyped-def]
    """Label a pixel and add it to the sums, or to their changes; return whether its label is new."""
    old = labels[i]
    if nearest == old and only_changes:
        return 0
    labels[i] = nearest
    sizes[nearest] += 1
    add_row(tile, r, magic, sums[nearest])
    if nearest != old and only_changes and old < sizes.size:
        sizes[old] -= 1
        _take_row(tile, r, magic, sums[old])
    return int(nearest != old)


@compiled
def _assign_frames(flat, row_step, feature_step, mean, panel, norms, magic, labels, only_changes, sums, sizes, tile):  # type: ignore[no-untyped-def]
    """Pixels whose features lie apart: whole tiles of them, one after another."""
    products = np.zeros((tile.shape[1], panel.shape[1]), np.float32)
    n, moved = labels.size, 0
    for start in range(0, n, tile.shape[1]):
        rows = min(tile.shape[1], n - start)
        gather_rows(flat, start * row_step, row_step, feature_step, rows, mean, tile)
        _multiply(tile, rows, panel, norms.size, products)
        next_tile, ahead = (start + rows) * row_step, min(tile.shape[1], n - start - rows)
        for r in range(rows):
            _ask(flat, next_tile, feature_step, ahead, mean.size * r // rows, mean.size * (r + 1) // rows)
            if labels[start + r] >= 0:
                nearest = _find_nearest(products[r], norms)
                moved += _settle(tile, r, start + r, nearest, magic, labels, only_changes, sums, sizes)
    return moved


@compiled
def _assign_rows(
    flat, row_step, mean, panel, norms, magic, labels, only_changes, sums, sizes, tile, wanted, margins, doubt
):  # type: ignore[no-untyped-def]
    """Pixels whose features lie together: those wanted, wherever they are."""
    products = np.zeros((tile.shape[1], panel.shape[1]), np.float32)
    n, moved = wanted.size, 0
    for start in range(0, n, tile.shape[1]):
        rows = min(tile.shape[1], n - start)
        gather_listed(flat, row_step, wanted, start, rows, mean, tile)
        _multiply(tile, rows, panel, norms.size, products)
        for r in range(rows):
            ahead, i = start + tile.shape[1] + r, wanted[start + r]
            if ahead < n:
                _ask(flat, wanted[ahead] * row_step, 0, mean.size, 0, 1)
            nearest = _find_nearest(products[r], norms)
            if margins.size:
                if not only_changes:
                    margins[NORM, i] = np.sqrt(square_row(tile, r)) * (1 + 2.0**-22)
                note_margin(margins, i, products[r], nearest, *doubt)
            moved += _settle(tile, r, i, nearest, magic, labels, only_changes, sums, sizes)
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
    tile = empty_tile(features, by_rows=steps[1] == 1)
    blocks, _, width = tile.shape
    sums, sizes = aligned_zeros((k, blocks, width), np.float64), np.zeros(k, np.int64)
    norms = np.einsum("ij,ij->i", centroids, centroids, dtype=np.float64).astype(np.float32)
    panel = _pack(centroids, blocks, width)
    memory = {} if memory is None else memory
    how = mean, panel, norms, magic_of(quantum), labels, before is not None, sums, sizes, tile
    if steps[1] == 1:
        doubt = measure_doubt(centroids, blocks=blocks, width=width)
        wanted, margins = _choose(pixels, steps, centroids, labels, before, memory, doubt)
        moved = _assign_rows(flat, steps[0], *how, wanted, margins, tuple(doubt))
    else:
        memory.clear()
        moved = _assign_frames(flat, *steps, *how)
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
    margins = memory.get("margins")
    if margins is None or before is None:
        wanted = np.flatnonzero(labels >= 0)
    else:
        wanted = np.empty(labels.size, np.int64)
        wanted = wanted[: choose_pixels(labels, margins, *measure_shift(before, centroids), *doubt, wanted)]
    return wanted, np.empty((MARGINS, 0), np.float32) if margins is None else margins


def magic_of(quantum: float) -> float:
    """Return the number that, added to a value and taken off again in float64, rounds it to the quantum."""
    return 1.5 * 2.0**52 * quantum


def _pack(centroids: np.ndarray, blocks: int, width: int) -> np.ndarray:
    """Arrange centroids as tiles are, their number filled up with zeros."""
    k = len(centroids)
    panel = aligned_zeros((blocks, math.ceil(k / CENTROIDS) * CENTROIDS, width), np.float32)
    for b in range(blocks):
        piece = centroids[:, b * width : (b + 1) * width]
        panel[b, :k, : piece.shape[1]] = piece
    return panel
