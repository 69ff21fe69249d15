"""k-means over whole spectra: every pixel's spectrum is a point, clusters are materials.

Lloyd's algorithm (10.1109/TIT.1982.1056489) from k-means++ starts (Arthur & Vassilvitskii, SODA 2007).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError
from niseg_gpu.stack import NamesFile

SEEDING_PIXELS = 16_384
SEEDING_ITERATIONS = 20
BLOCK_PIXELS = 2_048


class PixelTable:
    """Spectra gathered block by block as rows (pixels, features), the layout k-means reads.

    A target for writes by region of a (features, Y, X) or (Z, Y, X) stack; writes of disjoint regions may run at once.

    Parameters
    ----------
    backend : Cpu or Gpu
    shape : tuple of int
        Of the stack, in its own order.
    features : bool
        Whether the first axis holds the features (ToF); else every value is a pixel of one feature.
    """

    def __init__(self, backend: Any, *, shape: tuple[int, ...], features: bool) -> None:
        self.backend = backend
        self.map_shape = shape[1:] if features else shape
        self.features = features
        pixels = int(np.prod(self.map_shape))
        self.spectra = backend.xp.empty((pixels, shape[0] if features else 1), dtype=backend.xp.float32)
        self.valid = np.zeros(pixels, dtype=bool)

    def __setitem__(self, region: tuple[slice, ...], block: Any) -> None:
        xp = self.backend.xp
        if self.features and block.shape[0] != self.spectra.shape[1]:
            raise ValueError(f"block of {block.shape[0]} features for a table of {self.spectra.shape[1]}")
        where = region[1:] if self.features else region
        index = np.arange(len(self.valid)).reshape(self.map_shape)[where].ravel()
        flat = xp.reshape(block, (block.shape[0], -1)) if self.features else xp.reshape(block, (1, -1))
        if len(index) and index[-1] - index[0] + 1 == len(index):  # whole rows: one run of the table
            self.backend.write_spectra(flat, self.spectra[index[0] : index[-1] + 1])
        else:
            self.spectra[xp.asarray(index)] = xp.astype(flat, xp.float32).T
        self.valid[index] = self.backend.to_host(xp.isfinite(xp.sum(flat, axis=0)))


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
    *,
    n_clusters: Annotated[int, Ge(1), Le(65_534)] = 8,
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 2018,
    init: Annotated[str | list[list[float]], NamesFile(".npy")] = "k-means++",
    n_init: Annotated[int, Ge(1)] = 4,
    max_iter: Annotated[int, Ge(1)] = 300,
    tol: Annotated[float, Ge(0)] = 1e-4,
) -> KMeansResult:
    """Cluster the pixels of a stack by their spectra.

    Parameters
    ----------
    table : PixelTable
        Pixels with NaN or Inf in their spectrum are left out and labelled as no data.
    n_clusters : int
        Number of clusters.
    seed : int
        Of the random start; the same on CPU and GPU.
    init : {"k-means++", "random"}, a ``.npy`` file, or (k, features) values
        Starting centroids; drawn from at most 16,384 pixels (themselves drawn with `seed`).
    n_init : int
        Random starts; each is iterated on those pixels, and the one of least inertia goes on to all of them. One start
        in some ends in a poor minimum.
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
    backend = table.backend
    usable = int(table.valid.sum())
    if n_clusters > usable:
        raise UserError(
            f"kmeans got n_clusters {n_clusters}, the stack has {usable} pixels with data; allowed: 1 to {usable}"
        )
    pixels = table.spectra if usable == len(table.valid) else _compact(table)
    start = _start(backend, pixels, n_clusters=n_clusters, seed=seed, init=init, n_init=n_init)
    best = backend.run_lloyd(pixels, centroids=start, max_iter=max_iter, tol=tol)
    spectra, sizes = mean_spectra(pixels, best.labels, n_clusters=n_clusters)
    dtype = np.uint8 if n_clusters < 255 else np.uint16
    labels = np.full(len(table.valid), np.iinfo(dtype).max, dtype)
    labels[table.valid] = backend.to_host(best.labels)
    return KMeansResult(labels.reshape(table.map_shape), best.centroids, spectra, sizes, best.inertia, best.n_iter)


def _compact(table: PixelTable) -> Any:
    """Move the rows with data to the front, in place, a piece at a time; return the view of them."""
    end = 0
    for start in range(0, len(table.valid), BLOCK_PIXELS):
        keep = np.flatnonzero(table.valid[start : start + BLOCK_PIXELS])
        piece = table.spectra[start : start + BLOCK_PIXELS][table.backend.xp.asarray(keep)]
        table.spectra[end : end + len(keep)] = piece
        end += len(keep)
    return table.spectra[:end]


def _start(backend: Any, pixels: Any, *, n_clusters: int, seed: int, init: Any, n_init: int) -> np.ndarray:
    """The starting centroids: those given, or the best of some random ones on a sample of the pixels."""
    if not (isinstance(init, str) and init in ("k-means++", "random")):
        return read_centroids(init, shape=(n_clusters, pixels.shape[1]))
    rows = np.arange(len(pixels))
    if len(rows) > SEEDING_PIXELS:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), max(SEEDING_PIXELS, n_clusters), replace=False))
    sample = pixels[backend.xp.asarray(rows)]
    on_host = backend.to_host(sample)
    starts = [seed_centroids(on_host, n_clusters=n_clusters, seed=seed + i, init=init) for i in range(n_init)]
    if n_init == 1:
        return starts[0]
    ends = [backend.run_lloyd(sample, centroids=start, max_iter=SEEDING_ITERATIONS, tol=1e-3) for start in starts]
    return min(ends, key=lambda end: end.inertia).centroids


def read_centroids(init: Any, *, shape: tuple[int, int]) -> np.ndarray:
    """Return starting centroids given as values or as a ``.npy`` file, in float32."""
    where = init if isinstance(init, str) else "init"
    try:
        centroids = np.load(init) if isinstance(init, str) else np.asarray(init)
        centroids = np.ascontiguousarray(centroids, dtype=np.float32)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"kmeans: {where} can't be read as centroids ({error}); allowed: k-means++, random, a .npy file"
        ) from None
    if centroids.shape != shape:
        raise UserError(
            f"kmeans: the centroids in {where} have shape {centroids.shape}; allowed: {shape} (clusters, features)"
        )
    if not np.isfinite(centroids).all():
        raise UserError(f"kmeans: the centroids in {where} hold NaN or Inf; give finite ones")
    return centroids


def mean_spectra(pixels: Any, labels: Any, *, n_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each cluster's mean spectrum (k, features) float32 and its number of pixels, summed in float64."""
    backend = backend_of(pixels)
    sums = backend.to_host(backend.sum_by_label(pixels, labels, n_labels=n_clusters))
    sizes = backend.to_host(backend.xp.bincount(labels, minlength=n_clusters)).astype(np.int64)
    return (sums / np.maximum(sizes, 1)[:, None]).astype(np.float32), sizes


def seed_centroids(sample: np.ndarray, *, n_clusters: int, seed: int, init: str) -> np.ndarray:
    """Draw starting centroids from a sample of pixels, on the host, so that both devices start from the same ones.

    Parameters
    ----------
    sample : (n, features) float32 ndarray
    n_clusters : int
    seed : int
    init : {"k-means++", "random"}
        ``k-means++`` draws each centroid with a probability in proportion to the squared distance to those there,
        the best of 2 + log(n_clusters) candidates each time, as scikit-learn does.

    Returns
    -------
    (n_clusters, features) float32 ndarray
        Rows of `sample`.
    """
    rng = np.random.default_rng(seed)
    if init == "random":
        return sample[rng.choice(len(sample), n_clusters, replace=False)]
    centred = sample - sample.mean(axis=0)  # float32 distances cancel where the mean is large
    norms = np.einsum("ij,ij->i", centred, centred)
    chosen = [int(rng.integers(len(sample)))]
    nearest = _distances(centred, norms, chosen)[0]
    while len(chosen) < n_clusters:
        total = np.cumsum(nearest, dtype=np.float64)
        draws = rng.random(2 + int(np.log(n_clusters))) * total[-1]
        candidates = np.minimum(np.searchsorted(total, draws), len(sample) - 1)
        closer = np.minimum(nearest, _distances(centred, norms, candidates))
        best = int(closer.sum(axis=1, dtype=np.float64).argmin())
        chosen.append(int(candidates[best]))
        nearest = closer[best]
    return sample[chosen]


def _distances(centred: np.ndarray, norms: np.ndarray, rows: Any) -> np.ndarray:
    """Squared distances of all points to some of them, (rows, points)."""
    squared = norms[rows][:, None] - 2 * (centred[rows] @ centred.T) + norms
    squared[np.arange(len(rows)), rows] = 0
    return np.maximum(squared, 0)


def check_kmeans(before: Any, *, n_clusters: int = 8, init: Any = "k-means++", **_: Any) -> None:
    """Refuse more clusters than pixels and starting centroids of another shape, before any data are read."""
    info = before.info
    features = info.sizes.get("tof", 1)
    pixels = int(np.prod(info.shape)) // features
    if n_clusters > pixels:
        raise UserError(f"kmeans got n_clusters {n_clusters}, the stack has {pixels} pixels; allowed: 1 to {pixels}")
    if not (isinstance(init, str) and init in ("k-means++", "random")):
        read_centroids(init, shape=(n_clusters, features))
