"""Putting neighbours found in single precision into the order that the CPU's search gives."""

from __future__ import annotations

from typing import Any


def rank_candidates(points: Any, queries: Any, candidates: Any, *, n_neighbors: int, xp: Any) -> tuple[Any, Any]:
    """Rank candidates by distance in float64; of points equally far the one that comes first wins.

    Parameters
    ----------
    points : (n, features) float32 array
    queries : (m, features) float32 array
    candidates : (m, c) integer array
        Rows of `points`, c at least `n_neighbors`.
    n_neighbors : int
    xp : module
        Array namespace of all three.

    Returns
    -------
    distances : (m, n_neighbors) float64 array
    numbers : (m, n_neighbors) int64 array
    """
    numbers = xp.sort(xp.astype(candidates, xp.int64), axis=1)
    squared = xp.zeros(numbers.shape, dtype=xp.float64)
    for f in range(points.shape[1]):
        away = xp.astype(queries[:, f], xp.float64)[:, None] - xp.astype(points[:, f], xp.float64)[numbers]
        squared = squared + away * away
    order = xp.argsort(squared, axis=1, kind="stable")[:, :n_neighbors]
    return xp.sqrt(xp.take_along_axis(squared, order, axis=1)), xp.take_along_axis(numbers, order, axis=1)
