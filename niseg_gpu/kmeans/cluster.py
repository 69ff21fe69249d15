"""From points to clusters: starts, their choice, the iteration over all pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from niseg_gpu.backend import CPU, count_cores
from niseg_gpu.errors import UserError
from niseg_gpu.kmeans.arrays import open_lazy
from niseg_gpu.kmeans.lloyd import Measure, assign, measure_points, read_labels, run_lloyd
from niseg_gpu.kmeans.points import LocalPoints, Part, choose_part_bytes, cut_map
from niseg_gpu.kmeans.seeding import is_method, read_centroids, seed_centroids

SAMPLE_ITERATIONS, SAMPLE_TOL = 20, 1e-3
ROUNDING = 1e-5  # of an inertia, which libraries sum in float32


@dataclass(frozen=True)
class Clusters:
    """What clustering ends with; the labels stay with the points.

    Attributes
    ----------
    centroids : (k, features) float32 ndarray
    spectra : (k, features) float32 ndarray
        Mean of the pixels of each cluster.
    sizes : (k,) int64 ndarray
    inertia : float
    n_iter : int
    measure : Measure
    """

    centroids: np.ndarray
    spectra: np.ndarray
    sizes: np.ndarray
    inertia: float
    n_iter: int
    measure: Measure


def cluster_points(
    points: Any,
    *,
    n_clusters: int,
    max_iter: int,
    tol: float,
    **start: Any,
) -> Clusters:
    """Cluster points; for the parameters see `niseg_gpu.kmeans.estimator.KMeans`, for `start` see `draw_starts`."""
    measure, starts = draw_starts(points, n_clusters=n_clusters, **start)
    best = run_lloyd(points, measure, start=starts[0], max_iter=max_iter, tol=tol)
    last = best
    for start in starts[1:]:
        last = run_lloyd(points, measure, start=start, max_iter=max_iter, tol=tol)
        best = _choose_best([best, last])
    if last is not best:
        assign(points, measure, best.under)
    means, centroids = best.sums / np.maximum(best.sizes, 1)[:, None] + measure.mean, best.centroids + measure.mean
    spectra = _choose_spectra(means, best.sizes, centroids)
    return Clusters(centroids, spectra, best.sizes, best.inertia, best.n_iter, measure)


def _choose_best(runs: Sequence[Any]) -> Any:
    """The first run unless another is better by more than rounding, which would only put the clusters in its order."""
    best = runs[0]
    for run in runs[1:]:
        best = run if run.inertia < best.inertia * (1 - ROUNDING) else best
    return best


def _choose_spectra(means: np.ndarray, sizes: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The mean of each cluster's pixels; where there are none, its centroid."""
    return np.where((sizes > 0)[:, None], means, centroids).astype(np.float32)


def cluster_with_library(points: LocalPoints, *, n_clusters: int, max_iter: int, tol: float, **start: Any) -> Clusters:
    """The same with the iteration of scikit-learn or cuML, on points that are one table in memory."""
    measure, starts = draw_starts(points, n_clusters=n_clusters, **start)
    (rows,) = {id(part.source): part.source for part in points.parts.values()}.values()
    backend, xp = points.backend, points.backend.xp
    pixels = rows if rows.dtype == np.float32 else xp.astype(rows, xp.float32)  # the libraries take nothing narrower
    runs = [backend.run_lloyd(pixels, centroids=start + measure.mean, max_iter=max_iter, tol=tol) for start in starts]
    best = _choose_best(runs)
    points.each(write_labels, reading=False, labels=best.labels)
    sums = backend.to_host(backend.sum_by_label(rows, best.labels, n_labels=n_clusters))
    sizes = backend.to_host(xp.bincount(best.labels, minlength=n_clusters)).astype(np.int64)
    spectra = _choose_spectra(sums / np.maximum(sizes, 1)[:, None], sizes, best.centroids)
    return Clusters(best.centroids, spectra, sizes, best.inertia, best.n_iter, measure)


def write_labels(part: Part, pixels: Any, *, labels: Any) -> None:
    part.labels[...] = labels[part.region[0]]


def draw_starts(
    points: Any,
    *,
    n_clusters: int,
    init: Any,
    n_init: int,
    random_state: np.random.RandomState,
    init_sample: int | None,
) -> tuple[Measure, list[np.ndarray]]:
    """Measure points and find starting centroids less their mean: those given, the best on a sample, or all drawn.

    Raises
    ------
    UserError
        More clusters than pixels with data, or centroids of another shape.
    """
    measure = measure_points(points)
    check_number(n_clusters, measure.n)
    if not is_method(init):
        return measure, [read_centroids(init, shape=(n_clusters, points.n_features)) - measure.mean]
    how = {"n_clusters": n_clusters, "init": init, "random_state": random_state}
    if init_sample is None:
        return measure, [seed_centroids(points, measure, **how) for _ in range(n_init)]
    pixels = _draw_sample(points, measure, max(init_sample, n_clusters), random_state)
    sample = hold_rows(pixels, backend=CPU)  # seeded on the host, so that both devices start alike
    inside = measure_points(sample)
    starts = [seed_centroids(sample, inside, **how) for _ in range(n_init)]
    if n_init > 1:
        backend = getattr(points, "backend", CPU)
        sample = hold_rows(backend.from_host(pixels), backend=backend)
        measure_points(sample)
        ends = [run_lloyd(sample, inside, start=s, max_iter=SAMPLE_ITERATIONS, tol=SAMPLE_TOL) for s in starts]
        starts = [_choose_best(ends).centroids]
    return measure, [(starts[0] + inside.mean.astype(np.float64) - measure.mean).astype(np.float32)]


def check_number(n_clusters: int, pixels: int) -> None:
    """Refuse more clusters than pixels with data."""
    if pixels == 0:
        raise UserError("kmeans got no pixel with data: each holds NaN or Inf; give spectra that are finite")
    if n_clusters > pixels:
        raise UserError(
            f"kmeans got n_clusters {n_clusters}, there are {pixels} pixels with data; allowed: 1 to {pixels}"
        )


def _draw_sample(points: Any, measure: Measure, size: int, random_state: np.random.RandomState) -> np.ndarray:
    """Pixels with data, in their order; all of them where there are no more than `size`."""
    numbers = np.flatnonzero(points.gather(read_labels, dtype=np.int32, reading=False) >= 0)
    if len(numbers) > size:
        draw = np.random.default_rng(random_state.randint(2**31)).choice(len(numbers), size, replace=False)
        numbers = numbers[np.sort(draw)]
    return points.take(numbers)


def hold_rows(rows: Any, *, backend: Any, workers: int | None = None) -> LocalPoints:
    """Points over a table (n, features), with labels of their own.

    What of a table in a file the device has no room for is read in each pass.
    """
    workers = workers or count_cores()
    if hasattr(rows, "compute"):
        return open_lazy(rows, axis=1, backend=backend, workers=workers)
    n, features = rows.shape
    pixel_bytes = features * rows.dtype.itemsize
    # one part for a device that is parallel itself
    part_bytes = choose_part_bytes(n * pixel_bytes, workers=workers) if backend.threads > 1 else n * pixel_bytes
    regions = cut_map((n,), pixel_bytes=pixel_bytes, part_bytes=part_bytes)
    labels = backend.xp.full(n, -1, dtype=backend.xp.int32)
    parts = [Part(i, backend, rows, 1, region, labels[region]) for i, region in enumerate(regions)]
    return LocalPoints(parts, map_shape=(n,), n_features=features, workers=workers)
