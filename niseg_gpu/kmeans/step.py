"""k-means as the step that ends a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from niseg_gpu.errors import UserError
from niseg_gpu.kmeans.cluster import cluster_points, cluster_with_library, hold_rows
from niseg_gpu.kmeans.lloyd import read_labels
from niseg_gpu.kmeans.seeding import is_method, read_centroids
from niseg_gpu.kmeans.table import PixelTable
from niseg_gpu.stack import NamesFile


@dataclass(frozen=True)
class KMeansResult:
    """Clusters of a stack.

    Attributes
    ----------
    labels : ndarray of uint8 or uint16
        Cluster of each pixel, in the shape of the map; the dtype's largest value where there are no data.
    centroids : (k, features) float32 ndarray
        Where the iteration ended.
    spectra : (k, features) float32 ndarray
        Mean over the pixels of each cluster.
    pixels : (k,) int ndarray
        Pixels in each cluster.
    inertia : float
    n_iter : int
    """

    labels: np.ndarray
    centroids: np.ndarray
    spectra: np.ndarray
    pixels: np.ndarray
    inertia: float
    n_iter: int


def fit_kmeans(
    table: PixelTable,
    workers: int | None = None,
    *,
    n_clusters: Annotated[int, Ge(1), Le(65_534)] = 8,
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 2018,
    init: Annotated[str | list[list[float]], NamesFile(".npy")] = "k-means++",
    n_init: Annotated[int, Ge(1)] = 4,
    init_sample: Annotated[int, Ge(1)] | None = 16_384,
    max_iter: Annotated[int, Ge(1)] = 300,
    tol: Annotated[float, Ge(0)] = 1e-4,
) -> KMeansResult:
    """Cluster the pixels of a stack by their spectra.

    Parameters
    ----------
    table : PixelTable
        Pixels with NaN or Inf in their spectrum are left out and labelled as no data.
    workers : int, optional
        Threads; all cores by default.
    n_clusters : int
        Number of clusters.
    seed : int
        Of the random start; the same on CPU and GPU.
    init : {"k-means++", "random"}, a ``.npy`` file, or (k, features) values
        Starting centroids.
    n_init : int
        Random starts. One start in some ends in a poor minimum.
    init_sample : int or None
        Pixels that the starts are drawn from and iterated on, the one of least inertia going on to all pixels; these
        are drawn at random, with `seed`. None: every start is drawn from all pixels and goes on to the end.
    max_iter : int
        Iterations at most.
    tol : float
        Stop when the centroids move less than this, squared, relative to the mean variance of the features. 0 means
        exactly `max_iter` iterations unless no label changes.

    Raises
    ------
    UserError
        More clusters than pixels with data, or centroids of another shape.
    """
    usable = int(table.valid.sum())
    if n_clusters > usable:
        raise UserError(
            f"kmeans got n_clusters {n_clusters}, the stack has {usable} pixels with data; allowed: 1 to {usable}"
        )
    points = hold_rows(table.compact(), backend=table.backend, workers=workers)
    start = {"init": init, "n_init": n_init, "init_sample": init_sample, "random_state": np.random.RandomState(seed)}
    cluster = cluster_with_library if table.backend.kernels == "library" else cluster_points
    found = cluster(points, n_clusters=n_clusters, max_iter=max_iter, tol=tol, **start)
    dtype = np.uint8 if n_clusters < 255 else np.uint16
    labels = np.full(len(table.valid), np.iinfo(dtype).max, dtype)
    labels[table.valid] = points.gather(read_labels, dtype=np.int32, reading=False)
    return KMeansResult(
        labels.reshape(table.map_shape), found.centroids, found.spectra, found.sizes, found.inertia, found.n_iter
    )


def check_kmeans(before: Any, *, n_clusters: int = 8, init: Any = "k-means++", **_: Any) -> None:
    """Refuse more clusters than pixels and starting centroids of another shape, before any data are read."""
    info = before.info
    features = info.sizes.get("tof", 1)
    pixels = int(np.prod(info.shape)) // features
    if n_clusters > pixels:
        raise UserError(f"kmeans got n_clusters {n_clusters}, the stack has {pixels} pixels; allowed: 1 to {pixels}")
    if not is_method(init):
        read_centroids(init, shape=(n_clusters, features))
