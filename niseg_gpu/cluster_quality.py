"""How good a clustering is: compactness on a sample, likeness to another one, clusters that are edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from niseg_gpu.backend import backend_of

SILHOUETTE_PIXELS = 2_048
EDGE_REACH_PX = 2  # a mixed pixel lies no farther from the materials it is mixed of
EDGE_FRAMES = 16  # of a volume that are looked at
BODY_SHARE = 0.2  # of a cluster's pixels that are inside it, from which on it is a body
EDGE_SHARE = 0.5  # of a cluster's pixels; more of them on borders make it one that follows edges
FEW = 1000  # a cluster of less than one pixel in so many may be outliers


def measure_silhouette(rows: Any, labels: Any, *, n_clusters: int) -> float | None:
    """Return the mean silhouette coefficient (Rousseeuw 1987, 10.1016/0377-0427(87)90125-7).

    Parameters
    ----------
    rows : (n, features) float32 array
        All pairs are compared: some thousand at most.
    labels : (n,) int array
        Cluster of each row.
    n_clusters : int

    Returns
    -------
    float or None
        -1 to 1, the higher the better separated; a row alone in its cluster counts 0. None where all are in one.
    """
    xp = backend_of(rows).xp
    member = xp.astype(labels[:, None] == xp.arange(n_clusters)[None, :], xp.float64)
    sizes = xp.sum(member, axis=0)
    if int(xp.sum(sizes > 0)) < 2:
        return None
    centred = xp.astype(rows, xp.float64) - xp.mean(xp.astype(rows, xp.float64), axis=0)
    norms = xp.sum(centred * centred, axis=1)
    distance = xp.sqrt(xp.maximum(norms[:, None] + norms[None, :] - 2 * (centred @ centred.T), xp.asarray(0.0)))
    i = xp.arange(len(rows))
    distance[i, i] = 0
    sums = distance @ member
    own = sums[i, labels] / xp.maximum(sizes[labels] - 1, xp.asarray(1.0))
    means = xp.where(sizes > 0, sums / xp.maximum(sizes, xp.asarray(1.0)), xp.inf)
    means[i, labels] = xp.inf
    other = xp.min(means, axis=1)
    score = (other - own) / xp.maximum(xp.maximum(own, other), xp.asarray(np.finfo(np.float64).tiny))
    return float(xp.mean(xp.where(sizes[labels] > 1, score, xp.asarray(0.0))))


def measure_rand_index(one: np.ndarray, other: np.ndarray) -> float:
    """Return the adjusted Rand index of two labellings (10.1007/BF01908075); 1 where both are one cluster."""
    rows, columns = int(one.max()) + 1, int(other.max()) + 1
    index = adjusted_rand(np.bincount(one * columns + other, minlength=rows * columns).reshape(rows, columns))
    return 1.0 if index is None else index


def adjusted_rand(confusion: np.ndarray) -> float | None:
    """Return the adjusted Rand index of a table of how often labels meet; None where it is undefined."""
    pairs = [
        sum(int(n) * (int(n) - 1) // 2 for n in numbers)
        for numbers in (confusion.ravel(), confusion.sum(axis=1), confusion.sum(axis=0))
    ]
    together, true, given = pairs
    n = int(confusion.sum())
    whole = n * (n - 1) // 2
    # (together - chance) / (mean - chance) with chance = true * given / whole, in whole numbers
    below = (true + given) * whole - 2 * true * given
    return 2 * (together * whole - true * given) / below if below else None


def measure_edge_share(labels: np.ndarray, *, n_clusters: int) -> np.ndarray:
    """Return which part of each cluster lies on borders between others.

    A pixel does where, within 2 pixels in its frame, there are two or more bodies besides its own cluster. A body is a
    cluster with an inside; clusters that are scattered through each other, as where noise is divided, are one body
    together. A cluster mostly of such pixels is no material: it holds the pixels that are mixed of two.

    Parameters
    ----------
    labels : (Y, X) or (Z, Y, X) ndarray
        Values from `n_clusters` on are no clusters. Of a volume, some evenly spaced frames are looked at.
    n_clusters : int

    Returns
    -------
    (n_clusters,) float64 ndarray
        NaN for an empty cluster.
    """
    frames = labels.reshape(-1, *labels.shape[-2:])
    frames = frames[:: -(-len(frames) // EDGE_FRAMES)]
    inside = _share(frames, n_clusters, _is_inside)
    bodies = np.where(inside > BODY_SHARE, np.arange(n_clusters), -1)  # of each cluster: its body, or none
    lonely = _share(frames, n_clusters, lambda frame: _count_others(frame, bodies) == 0)
    bodies[(bodies < 0) & (lonely > 0.5)] = n_clusters
    return _share(frames, n_clusters, lambda frame: _count_others(frame, bodies) > 1)


def _share(frames: np.ndarray, n_clusters: int, test: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Which part of each cluster's pixels passes a test."""
    passed, sizes = np.zeros(n_clusters, np.int64), np.zeros(n_clusters, np.int64)
    for frame in frames:
        known = frame < n_clusters
        sizes += np.bincount(frame[known], minlength=n_clusters)
        passed += np.bincount(frame[known & test(frame)], minlength=n_clusters)
    return np.divide(passed, sizes, out=np.full(n_clusters, np.nan), where=sizes > 0)


def _is_inside(frame: np.ndarray) -> np.ndarray:
    """Whether all neighbours of a pixel are of its own cluster."""
    padded = np.pad(frame, 1, mode="edge")
    high, wide = frame.shape
    same = np.ones(frame.shape, bool)
    for dy, dx in np.ndindex(3, 3):
        same &= padded[dy : dy + high, dx : dx + wide] == frame
    return same


def _count_others(frame: np.ndarray, bodies: np.ndarray) -> np.ndarray:
    """How many bodies besides its own there are within reach of each pixel."""
    known = frame < len(bodies)
    own = np.where(known, bodies[np.where(known, frame, 0)], -1)
    seen = np.zeros(frame.shape, np.uint16)
    for body in np.unique(own[own >= 0]):
        seen += _spread(own == body) & (own != body)
    return seen


def _spread(mask: np.ndarray) -> np.ndarray:
    """Also mark whatever lies within reach along both axes."""
    for axis in (0, 1):
        grown = mask.copy()
        for step in range(1, min(EDGE_REACH_PX, mask.shape[axis] - 1) + 1):
            to, back = [slice(None)] * 2, [slice(None)] * 2
            to[axis], back[axis] = slice(step, None), slice(None, -step)
            grown[tuple(to)] |= mask[tuple(back)]
            grown[tuple(back)] |= mask[tuple(to)]
        mask = grown
    return mask
