"""The passes of k-means in whole-array calls of an array namespace, block by block; see `lloyd` and `moments`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from niseg_gpu.kernels.exact import Sums
from niseg_gpu.kernels.moments import Bounds

BLOCK_BYTES = 64 * 2**20


def _blocks(pixels: Any, mean: Any, xp: Any) -> Iterator[tuple[slice, Any]]:
    """Some rows at a time, in float32 and less the mean."""
    rows = max(1, BLOCK_BYTES // (4 * pixels.shape[1]))
    for start in range(0, pixels.shape[0], rows):
        piece = slice(start, min(start + rows, pixels.shape[0]))
        yield piece, xp.astype(pixels[piece, ...], xp.float32) - mean


def _round(values: Any, quantum: float, xp: Any) -> Any:
    magic = 1.5 * 2.0**52 * quantum
    return (xp.astype(values, xp.float64) + magic) - magic


def find_bounds_xp(pixels: Any, *, xp: Any) -> Bounds:
    valid = xp.empty(pixels.shape[0], dtype=xp.bool)
    low, high = (xp.full(pixels.shape[1], bound, dtype=xp.float32) for bound in (xp.inf, -xp.inf))
    for piece, rows in _blocks(pixels, xp.zeros(pixels.shape[1], dtype=xp.float32), xp):
        valid[piece] = xp.all(xp.isfinite(rows), axis=1)
        inside = valid[piece][:, None]
        low = xp.minimum(low, xp.min(xp.where(inside, rows, xp.inf), axis=0))
        high = xp.maximum(high, xp.max(xp.where(inside, rows, -xp.inf), axis=0))
    return Bounds(valid, low, high)


def sum_moments_xp(
    pixels: Any, *, centre: Any, quantum: float, square_quantum: float, labels: Any, xp: Any
) -> tuple[Any, float]:
    sums, squares = xp.zeros(pixels.shape[1], dtype=xp.float64), xp.zeros((), dtype=xp.float64)
    for piece, rows in _blocks(pixels, centre, xp):
        rows = xp.where((labels[piece] >= 0)[:, None], rows, 0)
        sums += xp.sum(_round(rows, quantum, xp), axis=0)
        rows = xp.astype(rows, xp.float64)
        squares += xp.sum(_round(xp.sum(rows * rows, axis=1), square_quantum, xp))
    return sums, float(squares)


def measure_distances_xp(pixels: Any, *, points: Any, mean: Any, xp: Any) -> Any:
    distances = xp.empty((points.shape[0], pixels.shape[0]), dtype=xp.float32)
    for piece, rows in _blocks(pixels, mean, xp):
        for p in range(points.shape[0]):
            away = rows - points[p, ...]
            distances[p, piece] = xp.sum(away * away, axis=1)
    return distances


def assign_and_sum_xp(pixels: Any, *, centroids: Any, mean: Any, quantum: float, labels: Any, xp: Any) -> Sums:
    k = centroids.shape[0]
    norms = xp.sum(centroids * centroids, axis=1)
    numbers = xp.arange(k, dtype=xp.int32)[:, None]
    sums = xp.zeros(centroids.shape, dtype=xp.float64)
    sizes, moved = xp.zeros(k, dtype=xp.int64), xp.zeros((), dtype=xp.int64)  # there: the host waits once, at the end
    for piece, rows in _blocks(pixels, mean, xp):
        old = labels[piece]
        nearest = xp.astype(xp.argmin(norms - 2 * (rows @ centroids.T), axis=1), xp.int32)
        new = xp.where(old < 0, old, nearest)
        moved += xp.count_nonzero(new != old)
        labels[piece] = new
        member = numbers == new[None, :]
        rows = xp.where((old >= 0)[:, None], rows, 0)
        sums += xp.astype(member, xp.float64) @ _round(rows, quantum, xp)
        sizes += xp.count_nonzero(member, axis=1)
    return Sums(sums, sizes, int(moved))
