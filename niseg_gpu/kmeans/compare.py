"""Several numbers of clusters on the same pixels, and how good each is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from niseg_gpu.backend import CPU
from niseg_gpu.cluster_quality import SILHOUETTE_PIXELS, measure_rand_index, measure_silhouette
from niseg_gpu.kmeans.cluster import hold_rows
from niseg_gpu.kmeans.lloyd import measure_points, read_labels, run_lloyd
from niseg_gpu.kmeans.seeding import is_method, seed_centroids

STABILITY_PIXELS = 8_192
STABILITY_STARTS = 3
STABILITY_ITERATIONS = 50


@dataclass(frozen=True)
class Trial:
    """One number of clusters.

    Attributes
    ----------
    n_clusters : int
    clusters : Clusters
    labels : (n,) int32 ndarray
        Of the pixels with data.
    silhouette : float or None
        Mean over some pixels, drawn once for all trials; None for one cluster.
    stability : float or None
        Mean adjusted Rand index between runs from several random starts on a sample; None where centroids were given.
    """

    n_clusters: int
    clusters: Any
    labels: np.ndarray
    silhouette: float | None = None
    stability: float | None = None


def try_numbers(
    points: Any, numbers: Sequence[int], cluster: Callable[[int], Any], *, seed: int, init: Any
) -> list[Trial]:
    """Cluster points with each number of clusters.

    Parameters
    ----------
    points : LocalPoints or SpreadPoints
        Without missing data; read once each iteration, held in memory between the numbers.
    numbers : sequence of int
    cluster : callable
        ``n_clusters -> Clusters``; leaves its labels with the points.
    seed : int
        Of the samples that the measures are taken on.
    init : str or array
        Stability is measured between random starts only.
    """
    trials = []
    for number in numbers:
        clusters = cluster(number)
        trials.append(Trial(number, clusters, points.gather(read_labels, dtype=np.int32, reading=False)))
    if len(numbers) == 1:
        return trials
    drawn = _draw(len(trials[0].labels), STABILITY_PIXELS, seed)
    rows = points.take(drawn)
    few = _draw(len(drawn), SILHOUETTE_PIXELS, seed + 1)
    backend = getattr(points, "backend", CPU)
    near = backend.from_host(rows[few])
    return [
        Trial(
            trial.n_clusters,
            trial.clusters,
            trial.labels,
            measure_silhouette(near, backend.from_host(trial.labels[drawn][few]), n_clusters=trial.n_clusters),
            _measure_stability(backend, rows, trial.n_clusters, seed=seed, init=init) if is_method(init) else None,
        )
        for trial in trials
    ]


def _draw(n: int, size: int, seed: int) -> np.ndarray:
    """Numbers below `n` in order, `size` of them at most."""
    return np.arange(n) if n <= size else np.sort(np.random.default_rng(seed).choice(n, size, replace=False))


def _measure_stability(backend: Any, rows: np.ndarray, n_clusters: int, *, seed: int, init: str) -> float | None:
    if n_clusters > len(rows):
        return None
    sample = hold_rows(backend.from_host(rows), backend=backend)
    measure, found = measure_points(sample), []
    for start in range(STABILITY_STARTS):
        drawn = np.random.RandomState((seed + start) % 2**32)
        centroids = seed_centroids(sample, measure, n_clusters=n_clusters, init=init, random_state=drawn)
        run_lloyd(sample, measure, start=centroids, max_iter=STABILITY_ITERATIONS, tol=1e-4)
        found.append(sample.gather(read_labels, dtype=np.int32, reading=False))
    return float(np.mean([measure_rand_index(one, other) for one, other in combinations(found, 2)]))
