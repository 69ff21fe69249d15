"""How good a clustering is without a truth: compactness on a sample, steadiness over seeds, clusters that are edges."""

from __future__ import annotations

from typing import Any

import numpy as np

from niseg_gpu.backend import backend_of

SILHOUETTE_PIXELS = 2_048
EDGE_REACH_PX = 2  # a mixed pixel lies no farther from the materials it is mixed of
EDGE_SHARE = 0.5  # of a cluster's pixels; more of them on borders make it one that follows edges


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


def measure_edge_share(labels: np.ndarray, *, n_clusters: int) -> np.ndarray:
    """Return which part of each cluster lies on borders between others.

    A pixel does where, within 2 pixels in its frame, there are two or more clusters besides its own. A cluster made of
    such pixels is no material: it holds the pixels that are mixed of two.

    Parameters
    ----------
    labels : (Y, X) or (Z, Y, X) ndarray
        Values from `n_clusters` on are no clusters.
    n_clusters : int

    Returns
    -------
    (n_clusters,) float64 ndarray
        NaN for an empty cluster.
    """
    on_border, sizes = np.zeros(n_clusters, np.int64), np.zeros(n_clusters, np.int64)
    for frame in labels.reshape(-1, *labels.shape[-2:]):
        seen = np.zeros(frame.shape, np.uint16)
        for cluster in np.unique(frame[frame < n_clusters]):
            seen += _spread(frame == cluster)
        inside = frame < n_clusters
        sizes += np.bincount(frame[inside], minlength=n_clusters)
        on_border += np.bincount(frame[inside & (seen > 2)], minlength=n_clusters)
    return np.divide(on_border, sizes, out=np.full(n_clusters, np.nan), where=sizes > 0)


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
