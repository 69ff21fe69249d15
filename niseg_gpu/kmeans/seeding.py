"""Starting centroids: k-means++, at random, or given.

Numbers are drawn in scikit-learn's order, so that the same ``random_state`` gives the same start but where sums rounded
in single precision there decide otherwise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.kmeans.lloyd import Measure, read_labels
from niseg_gpu.kmeans.points import Part

PIECE = 2**16  # pixels
METHODS = ("k-means++", "random")
MOST_STARTS = 10_000  # more are a slip of the keyboard, which would never end


def is_method(init: Any) -> bool:
    """Whether `init` names a way to draw centroids."""
    return isinstance(init, str) and init in METHODS


def seed_centroids(
    points: Any, measure: Measure, *, n_clusters: int, init: str, random_state: np.random.RandomState
) -> np.ndarray:
    """Draw starting centroids from the pixels with data.

    Parameters
    ----------
    points : LocalPoints or SpreadPoints
    measure : Measure
    n_clusters : int
    init : {"k-means++", "random"}
        ``k-means++`` draws each centroid with a probability in proportion to the squared distance to those there, the
        best of 2 + log(n_clusters) candidates each time (Arthur & Vassilvitskii, SODA 2007, and as scikit-learn).
    random_state : RandomState

    Returns
    -------
    (n_clusters, features) float32 ndarray
        Pixels, less the mean.
    """
    valid = points.gather(read_labels, dtype=np.int32, reading=False) >= 0
    numbers = None if valid.all() else np.flatnonzero(valid)
    if init == "random":
        chosen = _draw_distinct(random_state, measure.n, n_clusters)
        return _take(points, measure, chosen if numbers is None else numbers[chosen])
    first = min(int(random_state.random_sample() * measure.n), measure.n - 1)
    chosen = [first if numbers is None else int(numbers[first])]
    centroids = _take(points, measure, np.array(chosen))
    nearest = _measure(points, measure, centroids, valid)[0]
    nearest[chosen[0]] = 0
    while len(chosen) < n_clusters:
        candidates = draw_by_weight(nearest, random_state.uniform(size=count_candidates(n_clusters)))
        if not valid[candidates].all():  # the potential is zero: all pixels with data are as chosen ones
            candidates[~valid[candidates]] = chosen[0]
        rows = _take(points, measure, candidates)
        closer = _measure(points, measure, rows, valid)
        np.minimum(nearest, closer, out=closer)
        closer[np.arange(len(candidates)), candidates] = 0
        best = int(closer.sum(axis=1, dtype=np.float64).argmin())
        chosen.append(int(candidates[best]))
        centroids = np.concatenate([centroids, rows[best : best + 1]])
        nearest[...] = closer[best]
        del closer  # before the next are measured: a map of each candidate
    return centroids


def count_candidates(n_clusters: int) -> int:
    """How many pixels are tried for each centroid; their distances are held, four bytes a pixel of the map for each."""
    return 2 + int(math.log(n_clusters))


def draw_by_weight(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draw places with probabilities in proportion to their weights.

    The same as ``searchsorted(cumsum(weights), uniform * sum)`` in float64, in the map's own order, so that it does not
    depend on the parts; but a piece at a time, for the running sum of a map takes twice the memory of the map.
    """
    ends = [0.0]
    for start in range(0, len(weights), PIECE):
        ends.append(_run_up(weights, start, ends[-1])[-1])
    draws = uniform * ends[-1]
    pieces = np.minimum(np.searchsorted(ends[1:], draws), len(ends) - 2)
    places = [
        start + np.searchsorted(_run_up(weights, start, ends[piece]), draw)
        for piece, draw in zip(pieces, draws, strict=True)
        for start in [int(piece) * PIECE]
    ]
    return np.minimum(np.array(places), len(weights) - 1)


def _run_up(weights: np.ndarray, start: int, before: float) -> np.ndarray:
    """The running sum over one piece, given that of all before."""
    sums = weights[start : start + PIECE].astype(np.float64)
    sums[0] += before
    return np.cumsum(sums, out=sums)


def _draw_distinct(random_state: np.random.RandomState, n: int, size: int) -> np.ndarray:
    """Draw numbers below `n`, each at most once, as ``choice(n, size, replace=False, p=...)`` draws them."""
    found = np.empty(0, np.int64)
    while len(found) < size:
        draws = random_state.random_sample(size - len(found))
        new = np.minimum((draws * (n - len(found))).astype(np.int64), n - len(found) - 1)
        for taken in np.sort(found):
            new += new >= taken
        _, first = np.unique(new, return_index=True)
        found = np.concatenate([found, new[np.sort(first)]])
    return found


def _take(points: Any, measure: Measure, numbers: np.ndarray) -> np.ndarray:
    return points.take(numbers).astype(np.float32) - measure.mean


def _measure(points: Any, measure: Measure, rows: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Squared distances (m, pixels) from some rows; 0 where there are no data."""
    found = points.gather_rows(measure_distances, len(rows), dtype=np.float32, points=rows, mean=measure.mean)
    if not valid.all():
        found[:, ~valid] = 0
    return found


def measure_distances(part: Part, pixels: Any, *, points: np.ndarray, mean: np.ndarray) -> np.ndarray:
    backend = part.backend
    found = backend.measure_distances(pixels, points=backend.from_host(points), mean=backend.from_host(mean))
    return backend.to_host(found)


def read_centroids(init: Any, *, shape: tuple[int, int]) -> np.ndarray:
    """Return starting centroids given as values or as a ``.npy`` file, in float32."""
    where = init if isinstance(init, str) else "init"
    try:
        centroids = np.load(init) if isinstance(init, str) else np.asarray(init)
        centroids = np.ascontiguousarray(centroids, dtype=np.float32)
    except (OSError, ValueError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "no array of numbers"
        raise UserError(
            f"kmeans: {where} can't be read as centroids ({why}); allowed: k-means++, random, a .npy file"
        ) from None
    if centroids.shape != shape:
        raise UserError(
            f"kmeans: the centroids in {where} have shape {centroids.shape}; allowed: {shape} (clusters, features)"
        )
    if not np.isfinite(centroids).all():
        raise UserError(f"kmeans: the centroids in {where} hold NaN or Inf; give finite ones")
    return centroids
