"""What k-means must know of its pixels before it starts, and how far they lie from given points; on the CPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.kernels.compiled import compiled
from niseg_gpu.kernels.lloyd import magic_of
from niseg_gpu.kernels.spectra import add_rows, spoil_line, square_line_wide, widen_range
from niseg_gpu.kernels.tiles import FAST, aligned_zeros, empty_tile, flatten, gather_rows
from niseg_gpu.kernels.vectors import SIDE


class Bounds(NamedTuple):
    """Which pixels have data, and between what values they lie.

    Attributes
    ----------
    valid : (n,) bool array
        False where a feature is NaN or Inf in float32.
    low, high : (features,) float32 array
        Over the valid pixels; Inf and -Inf where there are none.
    """

    valid: Any
    low: Any
    high: Any


@compiled
def _find_bounds(flat, row_step, feature_step, zeros, valid, low, high, tile):  # type: ignore[no-untyped-def]
    values, (blocks, tile_rows, width) = tile.reshape(-1), tile.shape
    for start in range(0, valid.size, tile_rows):
        rows, good = min(tile_rows, valid.size - start), 0
        gather_rows(flat, start * row_step, row_step, feature_step, rows, zeros, tile)
        for r in range(rows):
            nothing = np.float32(0)
            for b in range(blocks):
                nothing += spoil_line(values, (b * tile_rows + r) * width, width)
            valid[start + r] = nothing == 0
            good += nothing == 0
        step = rows if good == rows else 1  # all of a tile at once, or else one by one
        for r in range(0, rows, step):
            if valid[start + r]:
                for b in range(blocks):
                    for f in range(0, width, SIDE):
                        at = (b * tile_rows + r) * width + f
                        widen_range(values, at, width, step, low, high, b * width + f)


def find_bounds_cpu(pixels: np.ndarray) -> Bounds:
    """Find the pixels with data and the range of each feature.

    Parameters
    ----------
    pixels : (n, features) ndarray
        As for `niseg_gpu.kernels.lloyd.assign_and_sum_cpu`.
    """
    n, features = pixels.shape
    flat, *steps = flatten(pixels)
    tile, valid = empty_tile(features, by_rows=steps[1] == 1), np.empty(n, np.bool_)
    low, high = (np.full(len(tile) * tile.shape[2], bound, np.float32) for bound in (np.inf, -np.inf))
    _find_bounds(flat, *steps, np.zeros(features, np.float32), valid, low, high, tile)
    return Bounds(valid, low[:features], high[:features])


@compiled
def _sum_moments(flat, row_step, feature_step, centre, labels, magic, square_magic, sums, tile):  # type: ignore[no-untyped-def]
    values, (blocks, tile_rows, width) = tile.reshape(-1), tile.shape
    totals, squares = sums.reshape(-1), 0.0
    for start in range(0, labels.size, tile_rows):
        rows, good = min(tile_rows, labels.size - start), 0
        gather_rows(flat, start * row_step, row_step, feature_step, rows, centre, tile)
        for r in range(rows):
            if labels[start + r] >= 0:
                good += 1
                square = 0.0
                for b in range(blocks):
                    square += square_line_wide(values, (b * tile_rows + r) * width, width)
                squares += (square + square_magic) - square_magic
        step = rows if good == rows else 1  # all of a tile at once, or else one by one
        for r in range(0, rows, step):
            if labels[start + r] >= 0:
                for b in range(blocks):
                    for f in range(0, width, SIDE):
                        at = (b * tile_rows + r) * width + f
                        add_rows(values, at, width, step, magic, totals, b * width + f)
    return squares


def sum_moments_cpu(
    pixels: np.ndarray, *, centre: np.ndarray, quantum: float, square_quantum: float, labels: np.ndarray
) -> tuple[np.ndarray, float]:
    """Sum the pixels less `centre`, and the squares of their distances from it, exactly in any order.

    Parameters
    ----------
    pixels : (n, features) ndarray
    centre : (features,) float32 ndarray
    quantum, square_quantum : float
        See `niseg_gpu.kernels.lloyd.choose_quantum`; of the values and of the squared distances.
    labels : (n,) int32 ndarray
        Pixels of negative ones are left out.

    Returns
    -------
    sums : (features,) float64 ndarray
    squares : float
    """
    flat, *steps = flatten(pixels)
    tile = empty_tile(centre.size, by_rows=steps[1] == 1)
    sums = aligned_zeros((len(tile), tile.shape[2]), np.float64)
    magic = magic_of(quantum), magic_of(square_quantum)
    squares = _sum_moments(flat, *steps, centre, labels, *magic, sums, tile)
    return sums.ravel()[: centre.size], float(squares)


@compiled(fastmath=FAST)
def _distance(tile, r, point):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for b in range(tile.shape[0]):
        row, other, part = tile[b, r], point[b], np.float32(0)
        for f in range(row.size):
            away = row[f] - other[f]
            part += away * away
        total += part
    return total


@compiled
def _measure_distances(flat, row_step, feature_step, mean, points, distances, tile):  # type: ignore[no-untyped-def]
    n = distances.shape[1]
    for start in range(0, n, tile.shape[1]):
        rows = min(tile.shape[1], n - start)
        gather_rows(flat, start * row_step, row_step, feature_step, rows, mean, tile)
        for p in range(len(points)):
            for r in range(rows):
                distances[p, start + r] = _distance(tile, r, points[p])


def measure_distances_cpu(pixels: np.ndarray, *, points: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the squared distances of all pixels from some points.

    Parameters
    ----------
    pixels : (n, features) ndarray
    points : (m, features) float32 ndarray
        Less the mean.
    mean : (features,) float32 ndarray

    Returns
    -------
    (m, n) float32 ndarray
        NaN or Inf for pixels without data.
    """
    flat, *steps = flatten(pixels)
    tile = empty_tile(mean.size, by_rows=steps[1] == 1)
    blocks, _, width = tile.shape
    table = aligned_zeros((len(points), blocks, width), np.float32)
    table.reshape(len(points), -1)[:, : mean.size] = points
    distances = np.empty((len(points), len(pixels)), np.float32)
    _measure_distances(flat, *steps, mean, table, distances, tile)
    return distances
