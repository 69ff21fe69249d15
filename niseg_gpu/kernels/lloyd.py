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
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from niseg_gpu.kernels.tiles import LINE, aligned_zeros, empty_tile, flatten, gather_rows
from niseg_gpu.kernels.vectors import prefetch

FAST = {"reassoc", "contract", "nsz"}  # lets the compiler sum in lanes, in an order of its own but always the same
ROWS, CENTROIDS = 3, 4  # that share one loop over the features: 12 sums, as many as fill 16 registers
BITS = 51  # of the largest sum in quanta


class Sums(NamedTuple):
    """What one pass gives beside the labels.

    Attributes
    ----------
    sums : (k, features) float64 array
        Of the pixels of each cluster, less the mean.
    sizes : (k,) int64 array
    moved : int
        Labels that changed.
    """

    sums: Any
    sizes: Any
    moved: int


def choose_quantum(largest: float, n: int) -> float:
    """Return the power of two to which values are rounded, so that `n` of them, none over `largest`, sum exactly.

    The rounding is below ``largest * n / 2**BITS``: 2**-30 of the largest value for a million of them, 2**-20 for a
    thousand million, where float32 itself has 2**-24.
    """
    bits = math.frexp(max(float(largest), np.finfo(np.float32).tiny) * max(n, 1))[1]
    return math.ldexp(1.0, bits - BITS)


@njit(nogil=True, fastmath=FAST, cache=True)
def _multiply(tile, rows, panel, products, flat, origin, lines, step, length):  # type: ignore[no-untyped-def]
    """Products of a tile's pixels with all centroids; meanwhile `lines` of `length` values are asked for."""
    blocks, _, width = tile.shape
    turns = blocks * (panel.shape[1] // CENTROIDS) * ((rows + ROWS - 1) // ROWS)
    at_once, asked, line = (lines + turns - 1) // turns, 0, LINE // flat.itemsize
    products[:] = 0
    for b in range(blocks):
        for c in range(0, panel.shape[1], CENTROIDS):
            c0, c1, c2, c3 = panel[b, c], panel[b, c + 1], panel[b, c + 2], panel[b, c + 3]
            for r in range(0, rows, ROWS):
                for i in range(asked, min(asked + at_once, lines)):
                    for j in range(0, length, line):
                        prefetch(flat, origin + i * step + j)
                asked += at_once
                one, two, three = tile[b, r], tile[b, r + 1], tile[b, r + 2]
                x0 = x1 = x2 = x3 = y0 = y1 = y2 = y3 = z0 = z1 = z2 = z3 = np.float32(0)
                for f in range(width):
                    x, y, z = one[f], two[f], three[f]
                    x0, y0, z0 = x0 + x * c0[f], y0 + y * c0[f], z0 + z * c0[f]
                    x1, y1, z1 = x1 + x * c1[f], y1 + y * c1[f], z1 + z * c1[f]
                    x2, y2, z2 = x2 + x * c2[f], y2 + y * c2[f], z2 + z * c2[f]
                    x3, y3, z3 = x3 + x * c3[f], y3 + y * c3[f], z3 + z * c3[f]
                _add4(products[r], c, x0, x1, x2, x3)
                _add4(products[r + 1], c, y0, y1, y2, y3)
                _add4(products[r + 2], c, z0, z1, z2, z3)


@njit(nogil=True, cache=True)
def _add4(row, c, v0, v1, v2, v3):  # type: ignore[no-untyped-def]
    row[c] += v0
    row[c + 1] += v1
    row[c + 2] += v2
    row[c + 3] += v3


@njit(nogil=True, cache=True)
def add_row(tile, r, magic, total):  # type: ignore[no-untyped-def]
    """Add a row in float64; adding `magic` and taking it off again rounds to the quantum."""
    for b in range(tile.shape[0]):
        row, sums = tile[b, r], total[b]
        for f in range(row.size):
            sums[f] += (np.float64(row[f]) + magic) - magic


@njit(nogil=True, cache=True)
def _assign(flat, row_step, feature_step, mean, panel, norms, magic, labels, sums, sizes, tile):  # type: ignore[no-untyped-def]
    products = np.zeros((tile.shape[1], panel.shape[1]), np.float32)
    n, moved, two = labels.size, 0, np.float32(2)
    for start in range(0, n, tile.shape[1]):
        rows = min(tile.shape[1], n - start)
        gather_rows(flat, start * row_step, row_step, feature_step, rows, mean, tile)
        follow, ahead = (start + rows) * row_step, min(tile.shape[1], n - start - rows)
        if feature_step == 1:
            _multiply(tile, rows, panel, products, flat, follow, ahead, row_step, mean.size)
        else:
            _multiply(tile, rows, panel, products, flat, follow, mean.size, feature_step, ahead)
        for r in range(rows):
            old = labels[start + r]
            if old < 0:
                continue
            nearest, least = 0, norms[0] - two * products[r, 0]
            for c in range(1, norms.size):
                score = norms[c] - two * products[r, c]
                if score < least:
                    nearest, least = c, score
            moved += nearest != old
            labels[start + r] = nearest
            sizes[nearest] += 1
            add_row(tile, r, magic, sums[nearest])
    return moved


def assign_and_sum_cpu(
    pixels: np.ndarray, *, centroids: np.ndarray, mean: np.ndarray, quantum: float, labels: np.ndarray
) -> Sums:
    """Give each pixel its nearest centroid and sum the pixels of each cluster, reading each once.

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

    Returns
    -------
    Sums
    """
    k, features = centroids.shape
    tile = empty_tile(features)
    blocks, _, width = tile.shape
    sums, sizes = aligned_zeros((k, blocks, width), np.float64), np.zeros(k, np.int64)
    norms = np.einsum("ij,ij->i", centroids, centroids, dtype=np.float64).astype(np.float32)
    panel = _pack(centroids, blocks, width)
    moved = _assign(*flatten(pixels), mean, panel, norms, magic_of(quantum), labels, sums, sizes, tile)
    return Sums(sums.reshape(k, -1)[:, :features], sizes, int(moved))


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
