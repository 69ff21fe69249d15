"""k-means as the step that ends a pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Le, MinLen

from niseg_gpu.chunks import Work
from niseg_gpu.cluster_quality import SILHOUETTE_PIXELS, measure_edge_share
from niseg_gpu.errors import UserError
from niseg_gpu.kmeans.arrays import count_held
from niseg_gpu.kmeans.cluster import check_number, cluster_points, cluster_with_library, hold_rows
from niseg_gpu.kmeans.compare import Trial, try_numbers
from niseg_gpu.kmeans.extras import add_features, check_extras, count_extras
from niseg_gpu.kmeans.seeding import MOST_STARTS, count_candidates, is_method, read_centroids
from niseg_gpu.kmeans.table import SHARE, PixelTable, choose_dtype, count_table_bytes
from niseg_gpu.stack import NamesFile

Number = Annotated[int, Ge(1), Le(65_534)]


@dataclass(frozen=True)
class KMeansResult:
    """Clusters of a stack.

    Attributes
    ----------
    labels : ndarray of uint8 or uint16
        Cluster of each pixel, in the shape of the map; the dtype's largest value where there are no data.
    centroids : (k, bins) float32 ndarray
        Where the iteration ended.
    spectra : (k, bins) float32 ndarray
        Mean over the pixels of each cluster.
    deviations : (k, bins) float32 ndarray or None
        Standard deviation over the pixels of each cluster.
    pixels : (k,) int ndarray
        Pixels in each cluster.
    edge_share : (k,) float64 ndarray
        Part of each cluster that lies on borders between others; see `measure_edge_share`.
    inertia : float
        In the units of the features as they were weighed.
    n_iter : int
    silhouette, stability : float or None
        Where several numbers of clusters were compared; see `niseg_gpu.kmeans.compare.Trial`.
    others : tuple of KMeansResult
        Those of the other numbers of clusters, in the order asked for.
    """

    labels: np.ndarray
    centroids: np.ndarray
    spectra: np.ndarray
    deviations: np.ndarray | None
    pixels: np.ndarray
    edge_share: np.ndarray
    inertia: float
    n_iter: int
    silhouette: float | None = None
    stability: float | None = None
    others: tuple[KMeansResult, ...] = ()

    @property
    def n_clusters(self) -> int:
        return len(self.pixels)


def open_table(
    backend: Any, stack: Any, *, folder: Path | None = None, features: Any = None, images: Any = None, **_: Any
) -> PixelTable:
    """An empty table for a stack's blocks, given the step's parameters; in a file where a folder for it is given."""
    shape = {"shape": stack.shape, "features": "tof" in stack.dims, "dtype": stack.dtype}
    return PixelTable(backend, **shape, extras=count_extras(features, images), folder=folder)


def is_table_large(
    backend: Any, info: Any, *, workers: int = 1, features: Any = None, images: Any = None, **_: Any
) -> bool:
    """Whether a stack's table belongs in a file, given the step's parameters; refuses what is too large even so."""
    extras = count_extras(features, images)
    large = count_table_bytes(info, extras=extras, backend=backend) > SHARE * backend.count_memory()
    if large:
        count_held(info, extras, backend=backend, workers=workers)
    return large


def fit_kmeans(
    table: PixelTable,
    workers: int | None = None,
    spread: Callable[[Any], Any] | None = None,
    *,
    n_clusters: Number | Annotated[list[Number], MinLen(1)] = 8,
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 2018,
    init: Annotated[str | list[list[float]], NamesFile(".npy")] = "k-means++",
    n_init: Annotated[int, Ge(1), Le(MOST_STARTS)] = 4,
    init_sample: Annotated[int, Ge(1)] | None = 16_384,
    max_iter: Annotated[int, Ge(1)] = 300,
    tol: Annotated[float, Ge(0)] = 1e-4,
    features: dict[str, float] | None = None,
    smooth_sigma_px: Annotated[float, Gt(0), Le(1000)] = 2.0,
    images: Annotated[dict[str, float] | None, NamesFile("")] = None,
    deviations: bool = False,
) -> KMeansResult:
    """Cluster the pixels of a stack by their spectra.

    Parameters
    ----------
    table : PixelTable
        Pixels with NaN or Inf in their spectrum are left out and labelled as no data.
    workers : int, optional
        Threads; all cores by default.
    spread : callable, optional
        Makes points of the table's rows, to be gone over elsewhere.
    n_clusters : int or list of int
        Number of clusters. Of several, the first is taken, and the others are tried beside it on the same data.
    seed : int
        Of the random start; the same on CPU and GPU.
    init : {"k-means++", "random"}, a ``.npy`` file, or (k, bins) values
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
    features : dict of str to float, optional
        Weights of features beside the spectrum: x, y, z (place), smooth (Gaussian mean of the pixel's mean), sobel_x,
        sobel_y (its slope), such as {x: 0.5, y: 0.5}. Each is standardised; spectrum (1 unless given) is the weight
        of the whole spectrum.
    smooth_sigma_px : float
        Standard deviation of the Gaussian of smooth.
    images : dict of str to float, optional
        Weights of registered images by path, each one more feature: an X-ray image, a dark field.
    deviations : bool
        Also take the standard deviation of each cluster's spectra.

    Raises
    ------
    UserError
        More clusters than pixels with data, centroids of another shape, features or images that do not fit.
    """
    numbers = n_clusters if isinstance(n_clusters, list) else [n_clusters]
    factor = add_features(table, features=features, images=images, smooth_sigma_px=smooth_sigma_px, workers=workers)
    check_number(max(numbers), int(table.valid.sum()))
    rows = table.compact()
    points = spread(rows) if spread else hold_rows(rows, backend=table.backend, workers=workers)
    in_memory = not spread and not table.in_file
    cluster = cluster_with_library if table.backend.kernels == "library" and in_memory else cluster_points

    def run(number: int) -> Any:
        drawn = np.random.RandomState(seed)
        start = {"init": init, "n_init": n_init, "init_sample": init_sample, "random_state": drawn}
        return cluster(points, n_clusters=number, max_iter=max_iter, tol=tol, **start)

    trials = try_numbers(points, numbers, run, seed=seed, init=init)
    found, *others = (_result(table, trial, factor, deviations=deviations) for trial in trials)
    return replace(found, others=tuple(others))


def _result(table: PixelTable, trial: Trial, factor: float, *, deviations: bool) -> KMeansResult:
    """The result in the map's shape and the stack's units, without extra features."""
    k, found, bins = trial.n_clusters, trial.clusters, table.n_features
    dtype = np.uint8 if k < 255 else np.uint16
    labels = np.full(len(table.valid), np.iinfo(dtype).max, dtype)
    labels[table.valid] = trial.labels
    labels = labels.reshape(table.map_shape)
    spread = _measure_deviations(table, trial) / factor if deviations else None
    return KMeansResult(
        labels,
        found.centroids[:, :bins] / np.float32(factor),
        found.spectra[:, :bins] / np.float32(factor),
        None if spread is None else spread.astype(np.float32),
        found.sizes,
        measure_edge_share(labels, n_clusters=k),
        found.inertia,
        found.n_iter,
        trial.silhouette,
        trial.stability,
    )


def _measure_deviations(table: PixelTable, trial: Trial) -> np.ndarray:
    """Standard deviation of each bin over the pixels of each cluster, summed in float64 from the mean."""
    backend, xp, bins = table.backend, table.backend.xp, table.n_features
    means, labels = backend.from_host(trial.clusters.spectra[:, :bins]), backend.from_host(trial.labels)
    sums = np.zeros((trial.n_clusters, bins))
    for piece in table.pieces(len(labels)):
        squares = (xp.astype(table.read(piece)[:, :bins], xp.float32) - means[labels[piece]]) ** 2
        sums += backend.to_host(backend.sum_by_label(squares, labels[piece], n_labels=trial.n_clusters))
    return np.sqrt(sums / np.maximum(trial.clusters.sizes, 1)[:, None])


def check_kmeans(
    before: Any,
    *,
    n_clusters: int | list[int] = 8,
    init: Any = "k-means++",
    features: Any = None,
    images: Any = None,
    **_: Any,
) -> None:
    """Refuse more clusters than pixels and starts or features that don't fit, before any data are read."""
    info = before.info
    bins = info.sizes.get("tof", 1)
    map_shape = info.shape[1:] if "tof" in info.dims else info.shape
    pixels = math.prod(map_shape)
    numbers = n_clusters if isinstance(n_clusters, list) else [n_clusters]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"kmeans: n_clusters names a number twice: {numbers}; name each once")
    if max(numbers) > pixels:
        raise UserError(f"kmeans got n_clusters {max(numbers)}, the stack has {pixels} pixels; allowed: 1 to {pixels}")
    check_extras(features, images, map_shape=map_shape)
    if is_method(init):
        return
    if len(numbers) > 1 or count_extras(features, images):
        raise UserError("kmeans: init gives centroids; allowed with one n_clusters, and without features and images")
    read_centroids(init, shape=(numbers[0], bins))


def memory_kmeans(
    info: Any,
    *,
    backend: Any,
    n_clusters: int | list[int] = 8,
    init: Any = "k-means++",
    init_sample: int | None = 16_384,
    features: Any = None,
    images: Any = None,
    **_: Any,
) -> Work:
    """What it holds of a whole stack besides the table: labels, and at one time or another the rest."""
    from niseg_gpu.kernels.margins import MARGINS, are_worth_it

    map_shape = info.shape[1:] if "tof" in info.dims else info.shape
    pixels, extras = math.prod(map_shape), count_extras(features, images)
    length, kept = info.sizes.get("tof", 1) + extras, choose_dtype(info.dtype, extras=extras)
    frame, numbers = math.prod(map_shape[-2:]), len(np.atleast_1d(n_clusters))
    margins = MARGINS * 4 if backend.sums_changes and are_worth_it(length * kept.itemsize) else 0
    sample = min(init_sample or 0, pixels) * length * kept.itemsize if is_method(init) else 0
    copied = 0
    if backend.kernels == "library":  # as float32, and centred; with labels, weights and norms of its own
        copied = (4 * length * (1 + (kept != np.float32)) + 13) * pixels + sample // 2
    drawn = 13 if init_sample else 4 * (1 + count_candidates(int(np.max(n_clusters))))
    phases = [
        16 * (extras + 1) * pixels if extras else 0,  # features beside the spectrum, and what they are made of
        max(drawn * pixels, 21 * sample // 10 + 8 * pixels) if is_method(init) else 0,
        (margins + 4) * pixels + copied,
        (margins + 4 * numbers + 1) * pixels + 33 * frame,  # all labels, and the surroundings of each pixel
        (margins + 4 * numbers) * pixels + 20 * SILHOUETTE_PIXELS**2 if numbers > 1 else 0,
    ]
    return Work(0, 4 * pixels + max(phases))
