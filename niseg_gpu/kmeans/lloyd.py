"""Lloyd's iteration from given centroids, with scikit-learn's stop rules and handling of empty clusters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.kernels.exact import Sums, choose_quantum
from niseg_gpu.kmeans.points import Part

UNLABELLED = np.iinfo(np.int32).max  # before the first pass: no label is that, so every label is seen to change
BLOCK_ROWS = 1024
FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Measure:
    """What is known of all pixels with data.

    Attributes
    ----------
    n : int
        Their number.
    mean : (features,) float32 ndarray
        Taken off every pixel before distances are computed, as scikit-learn does. Of 8- and 16-bit integers the
        nearest whole number: what is left is whole then, and neither distances nor sums round it.
    largest : float
        No value less the mean is larger.
    total : float
        Sum of squared distances from the mean.
    variance : float
        Mean variance of the features.
    """

    n: int
    mean: np.ndarray
    largest: float
    total: float
    variance: float

    @property
    def quantum(self) -> float:
        return choose_quantum(self.largest, self.n)


@dataclass(frozen=True)
class Fit:
    """Where an iteration ended.

    Attributes
    ----------
    centroids : (k, features) float32 ndarray
        Less the mean.
    under : (k, features) float32 ndarray
        Those that the labels were given by; the same, or such as give the same labels.
    sums : (k, features) float64 ndarray
        Of each cluster's pixels less the mean.
    sizes : (k,) int64 ndarray
    inertia : float
    n_iter : int
    """

    centroids: np.ndarray
    under: np.ndarray
    sums: np.ndarray
    sizes: np.ndarray
    inertia: float
    n_iter: int


def measure_points(points: Any) -> Measure:
    """Find the pixels with data, their mean and spread, in three passes; pixels without are labelled -1.

    Raises
    ------
    UserError
        Values too large for their squares.
    """
    n, low, high, whole = points.each(mark_valid, merge=_merge_bounds)
    if n == 0:
        return Measure(0, np.zeros(points.n_features, np.float32), 0.0, 0.0, 0.0)
    centre = (low / 2 + high / 2).astype(np.float32)
    farthest, allowed = _reach(centre, low, high), math.sqrt(FLOAT_MAX / 8 / points.n_features)
    if farthest > allowed:  # from centroids too, which lie among the pixels
        raise UserError(
            f"kmeans got values {farthest:.3g} from their middle, whose squares float32 does not hold; allowed: up to "
            f"{allowed:.3g} for {points.n_features} features; divide the data by something"
        )
    sums, _ = _sum_about(points, centre, n, low, high)
    mean = (centre + sums / n).astype(np.float32)
    mean = np.rint(mean) if whole else mean
    # the squares of just those float32 differences that the iteration will see, or small inertias would drown
    sums, squares = _sum_about(points, mean, n, low, high)
    variance = max(squares - float(np.sum(sums**2)) / n, 0.0) / (n * mean.size)
    return Measure(n, mean, _reach(mean, low, high), squares, variance)


def _sum_about(points: Any, centre: np.ndarray, n: int, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, float]:
    reach = _reach(centre, low, high)
    return points.each(
        sum_moments,
        merge=_add,
        centre=centre,
        quantum=choose_quantum(reach, n),
        square_quantum=choose_quantum(reach**2 * points.n_features, n),
    )


def _reach(centre: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """The largest distance from the centre that a value can have."""
    return float(np.maximum(high.astype(np.float64) - centre, centre - low.astype(np.float64)).max())


def run_lloyd(points: Any, measure: Measure, *, start: np.ndarray, max_iter: int, tol: float) -> Fit:
    """Iterate from given centroids; the labels are left with the points.

    Parameters
    ----------
    points : LocalPoints or SpreadPoints
    measure : Measure
    start : (k, features) float32 ndarray
        Less the mean.
    max_iter : int
    tol : float
        Relative to the mean variance of the features.

    Returns
    -------
    Fit
        Labels unchanged by an iteration end it, as does a shift of all centroids together of no more than the
        tolerance; after the latter, and after `max_iter`, the labels are given anew by the last centroids.
    """
    points.each(forget_labels, reading=False)
    limit = tol * measure.variance
    under, known, n_iter, shift = start, None, 0, math.inf
    while n_iter < max_iter and shift > limit:
        n_iter += 1
        found = assign(points, measure, under, known=known)
        centroids = _move(points, measure, under, found)
        if found.moved == 0:
            return _finish(measure, centroids, under, found, n_iter)
        shift = float(np.sum((centroids.astype(np.float64) - under) ** 2))
        under, known = centroids, (under, found)
    return _finish(measure, under, under, assign(points, measure, under, known=known), n_iter)


def assign(
    points: Any, measure: Measure, centroids: np.ndarray, *, known: tuple[np.ndarray, Sums] | None = None
) -> Sums:
    """Give every pixel its nearest centroid; sum the pixels of each.

    Parameters
    ----------
    points : LocalPoints or SpreadPoints
    measure : Measure
    centroids : (k, features) float32 ndarray
        Less the mean.
    known : (ndarray, Sums), optional
        The centroids that the last pass over these points was with, and its sums: where that saves work, only what
        changes is summed.
    """
    how = {"merge": _add, "centroids": centroids, "mean": measure.mean, "quantum": measure.quantum}
    if known is None or not points.sums_changes:
        return points.each(assign_and_sum, **how)
    before, sums = known
    changes = points.each(assign_and_sum, **how, before=before)
    return Sums(sums.sums + changes.sums, sums.sizes + changes.sizes, changes.moved)


def _finish(measure: Measure, centroids: np.ndarray, under: np.ndarray, found: Sums, n_iter: int) -> Fit:
    # sum |x - c|^2 = sum |x|^2 - 2 c.sum x + n |c|^2: the sums are exact, no further pass is needed
    wide = centroids.astype(np.float64)
    crossed = 2 * float(np.sum(wide * found.sums)) - float(np.sum(found.sizes * np.sum(wide**2, axis=1)))
    return Fit(centroids, under, found.sums, found.sizes, max(measure.total - crossed, 0.0), n_iter)


def _move(points: Any, measure: Measure, centroids: np.ndarray, found: Sums) -> np.ndarray:
    """The centroids' next places: the means of their pixels."""
    sums, sizes = found.sums, found.sizes
    if (sizes == 0).any():
        sums, sizes = _relocate(points, measure, centroids, sums.copy(), sizes.copy())
    means = sums / np.maximum(sizes, 1)[:, None]
    means[sizes == 0] = means[int(np.argmax(sizes))]  # scikit-learn's convention too
    return means.astype(np.float32)


def _relocate(
    points: Any, measure: Measure, centroids: np.ndarray, sums: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Move the centroid of each empty cluster to a pixel farthest from its own, as scikit-learn does."""
    empty = np.flatnonzero(sizes == 0)
    distances = points.gather(measure_own, dtype=np.float32, centroids=centroids, mean=measure.mean)
    if distances.max() <= 0:  # fewer distinct pixels than clusters
        return sums, sizes
    # which of several goes to which cluster is as partitioning left them, like there
    far = np.argpartition(distances, -len(empty))[: -len(empty) - 1 : -1].copy()
    rows = points.take(far).astype(np.float32) - measure.mean
    del distances
    old = points.gather(read_labels, dtype=np.int32, reading=False)[far]
    for new, source, row in zip(empty, old, rows, strict=True):
        sums[source] -= row
        sums[new] = row
        sizes[source] -= 1
        sizes[new] = 1
    return sums, sizes


def mark_valid(part: Part, pixels: Any) -> tuple[int, np.ndarray, np.ndarray, bool]:
    """Label pixels without data -1; return how many have some, the range of each feature, and whether all is whole."""
    bounds = part.backend.find_bounds(pixels)
    xp, to_host = part.backend.xp, part.backend.to_host
    part.labels[...] = xp.where(bounds.valid, UNLABELLED, -1)
    whole = pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2
    return int(xp.sum(bounds.valid)), to_host(bounds.low), to_host(bounds.high), whole


def sum_moments(part: Part, pixels: Any, *, centre: np.ndarray, **quanta: float) -> tuple[np.ndarray, float]:
    backend = part.backend
    sums, squares = backend.sum_moments(pixels, centre=backend.from_host(centre), labels=part.labels, **quanta)
    return backend.to_host(sums), squares


def forget_labels(part: Part, pixels: Any) -> None:
    part.labels[...] = part.backend.xp.where(part.labels < 0, -1, UNLABELLED)


def assign_and_sum(part: Part, pixels: Any, **how: Any) -> Sums:
    backend = part.backend
    if backend.sums_changes and part.is_near:  # of what is read anew each time, reading takes longest
        how["memory"] = part.memory
    found = backend.assign_and_sum(pixels, labels=part.labels, **how)
    return Sums(backend.to_host(found.sums), backend.to_host(found.sizes), found.moved)


def measure_own(part: Part, pixels: Any, *, centroids: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Squared distance of each pixel from its own centroid, summed as NumPy does it; -1 without data."""
    backend = part.backend
    xp, centroids, mean = backend.xp, backend.from_host(centroids), backend.from_host(mean)
    distances = xp.empty(pixels.shape[0], dtype=xp.float32)
    for start in range(0, pixels.shape[0], BLOCK_ROWS):
        labels = part.labels[start : start + BLOCK_ROWS]
        rows = xp.ascontiguousarray(pixels[start : start + BLOCK_ROWS])  # NumPy's sums depend on the layout
        away = xp.astype(rows, xp.float32) - mean - centroids[xp.maximum(labels, 0)]
        distances[start : start + BLOCK_ROWS] = xp.where(labels < 0, -1, xp.sum(away**2, axis=1))
    return backend.to_host(distances)


def read_labels(part: Part, pixels: Any) -> np.ndarray:
    return part.backend.to_host(part.labels)


def _merge_bounds(one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
    return one[0] + other[0], np.minimum(one[1], other[1]), np.maximum(one[2], other[2]), one[3] and other[3]


def _add(one: Any, other: Any) -> Any:
    parts = [a + b for a, b in zip(one, other, strict=True)]
    return Sums(*parts) if isinstance(one, Sums) else tuple(parts)
