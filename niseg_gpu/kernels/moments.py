"""What k-means must know of its pixels before it starts, and how far they lie from given points; on the CPU."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.kernels.compiled import compiled
from niseg_gpu.kernels.lanes import (
    HALF,
    LANES,
    add_stretch,
    bring_stretch,
    spoil_stretch,
    square_pixels,
    widen_by_stretch,
)
from niseg_gpu.kernels.lloyd import magic_of
from niseg_gpu.kernels.spectra import add_rows, spoil_line, square_line_wide, widen_range
from niseg_gpu.kernels.tiles import (
    FAST,
    aligned_zeros,
    cut_features,
    empty_lanes,
    empty_tile,
    flatten,
    gather_rows,
)
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
def _find_bounds(flat, row_step, zeros, valid, low, high, tile):  # type: ignore[no-untyped-def]
    values, (blocks, tile_rows, width) = tile.reshape(-1), tile.shape
    for start in range(0, valid.size, tile_rows):
        rows, good = min(tile_rows, valid.size - start), 0
        gather_rows(flat, start * row_step, row_step, 1, rows, zeros, tile)
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


@compiled
def _find_bounds_of_frames(flat, feature_step, zeros, valid, low, high, tile, spoilt):  # type: ignore[no-untyped-def]
    """The same of pixels whose features lie apart."""
    values, across = tile.reshape(-1), tile.shape[1]
    for start in range(0, valid.size, across):
        rows, good = min(across, valid.size - start), -1
        whole = (rows + LANES - 1) // LANES * LANES
        spoilt[:] = 0
        for f in range(zeros.size):
            bring_stretch(flat, start + f * feature_step, rows, zeros[f], values, f * across)
            spoil_stretch(values, f * across, whole, spoilt)
        for r in range(rows):
            valid[start + r] = spoilt[r] == 0
            good = r if valid[start + r] else good
        if good < 0:
            continue
        for r in range(whole):
            if r >= rows or not valid[start + r]:
                for f in range(zeros.size):
                    tile[f, r] = tile[f, good]
        for f in range(zeros.size):
            widen_by_stretch(values, f * across, whole, low, high, f)


def find_bounds_cpu(pixels: np.ndarray) -> Bounds:
    """Find the pixels with data and the range of each feature.

    Parameters
    ----------
    pixels : (n, features) ndarray
        As for `niseg_gpu.kernels.lloyd.assign_and_sum_cpu`.
    """
    n, features = pixels.shape
    flat, *steps = flatten(pixels)
    zeros, valid = np.zeros(features, np.float32), np.empty(n, np.bool_)
    low, high = (np.full(math.prod(cut_features(features)), bound, np.float32) for bound in (np.inf, -np.inf))
    if steps[1] == 1:
        _find_bounds(flat, steps[0], zeros, valid, low, high, empty_tile(features, by_rows=True))
    else:
        tile = empty_lanes(features, by_rows=False)
        _find_bounds_of_frames(flat, steps[1], zeros, valid, low, high, tile, np.empty(tile.shape[1], np.float32))
    return Bounds(valid, low[:features], high[:features])


@compiled
def _sum_moments(flat, row_step, centre, labels, magic, square_magic, sums, tile):  # type: ignore[no-untyped-def]
    values, (blocks, tile_rows, width) = tile.reshape(-1), tile.shape
    squares = 0.0
    for start in range(0, labels.size, tile_rows):
        rows, good = min(tile_rows, labels.size - start), 0
        gather_rows(flat, start * row_step, row_step, 1, rows, centre, tile)
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
                        add_rows(values, at, width, step, magic, sums, b * width + f)
    return squares


@compiled
def _sum_moments_of_frames(flat, feature_step, centre, labels, magic, square_magic, sums, tile, each, block):  # type: ignore[no-untyped-def]
    """The same of pixels whose features lie apart."""
    values, (width, across), squares = tile.reshape(-1), tile.shape, 0.0
    for start in range(0, labels.size, across):
        rows = min(across, labels.size - start)
        whole = (rows + LANES - 1) // LANES * LANES
        for f in range(centre.size):
            bring_stretch(flat, start + f * feature_step, rows, centre[f], values, f * across)
        for r in range(whole):
            if r >= rows or labels[start + r] < 0:
                for f in range(centre.size):
                    tile[f, r] = 0
        for f in range(centre.size):
            add_stretch(values, f * across, whole, magic, sums, f)
        each[:] = 0
        for f in range(0, width, block):
            for p in range(0, whole, HALF):
                square_pixels(values, f * across + p, across, min(block, width - f), each, p)
        for r in range(rows):
            squares += (each[r] + square_magic) - square_magic
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
    blocks, block = cut_features(centre.size)
    sums, magic = aligned_zeros((blocks * block,), np.float64), (magic_of(quantum), magic_of(square_quantum))
    if steps[1] == 1:
        tile = empty_tile(centre.size, by_rows=True)
        squares = _sum_moments(flat, steps[0], centre, labels, *magic, sums, tile)
    else:
        tile = empty_lanes(centre.size, by_rows=False)
        each = np.empty(tile.shape[1])
        squares = _sum_moments_of_frames(flat, steps[1], centre, labels, *magic, sums, tile, each, block)
    return sums[: centre.size], float(squares)


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
