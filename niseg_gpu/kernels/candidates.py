"""Putting neighbours found in single precision into the order that the CPU's search gives, and counting votes."""

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


def count_votes(
    distances: Any, piles: Any, first: Any, before: Any, *, n_neighbors: int, by_distance: bool, xp: Any
) -> tuple[Any, Any]:
    """Count the votes of points that lie in piles of equal ones; see `niseg_gpu.kernels.votes.find_votes`.

    Parameters
    ----------
    distances : (m, p) float64 array
        Of the nearest piles, nearest first.
    piles : (m, p) int64 array
        Their numbers; of the last one, only as many points as still make up `n_neighbors` vote.
    first : (piles + 1,) int64 array
    before : (points + 1,) int64 array
    n_neighbors : int
    by_distance : bool
    xp : module
        Array namespace of all of these.

    Returns
    -------
    for_spots, against : (m,) float64 array
    """
    for_spots, against = (xp.zeros(len(piles), dtype=xp.float64) for _ in range(2))
    left = xp.full(len(piles), n_neighbors, dtype=xp.int64)
    coincide = distances[:, 0] == 0
    for i in range(piles.shape[1]):
        start = first[piles[:, i]]
        taken = xp.minimum(first[piles[:, i] + 1] - start, left)
        spots = before[start + taken] - before[start]
        if by_distance:
            at_zero = distances[:, i] == 0
            weight = xp.where(coincide, xp.astype(at_zero, xp.float64), 1 / xp.where(at_zero, 1.0, distances[:, i]))
        else:
            weight = 1.0
        for_spots, against = for_spots + weight * spots, against + weight * (taken - spots)
        left = left - taken
    return for_spots, against
