"""k-means by a library's single iterations, with scikit-learn's rules around them."""

from __future__ import annotations

from typing import Any

import numpy as np

from niseg_gpu.backend.twin import Clusters


def iterate_lloyd(xp: Any, iterate: Any, pixels: Any, *, centroids: np.ndarray, max_iter: int, tol: float) -> Clusters:
    """Run k-means one iteration a call, with scikit-learn's centring, stop rules and handling of empty clusters.

    Parameters
    ----------
    xp : module
        Array namespace of `pixels`.
    iterate : callable
        ``(pixels, centroids) -> (new centroids, labels under them, inertia under them)``, one Lloyd iteration.
    pixels : (n, features) float32 array
        Centred in place and restored before returning.
    centroids : (k, features) ndarray
        Start, on the host.
    max_iter : int
    tol : float
        Relative to the mean variance of the features, as scikit-learn has it.
    """
    mean = xp.mean(pixels, axis=0)
    limit = tol * float(xp.mean(xp.var(pixels, axis=0)))
    pixels -= mean
    current = xp.asarray(centroids, dtype=pixels.dtype) - mean
    labels, n_iter, settled = None, 0, False
    while n_iter < max_iter and not settled:
        n_iter += 1
        new, new_labels, inertia = iterate(pixels, current)
        sizes = xp.bincount(new_labels, minlength=len(centroids))
        if bool((sizes == 0).any()):
            new, new_labels, inertia = _refill_empty(xp, iterate, pixels, new, new_labels, sizes)
        shift = float(xp.sum((new - current) ** 2))
        unchanged = labels is not None and bool((new_labels == labels).all())
        current, labels = new, new_labels
        settled = unchanged or shift <= limit
    result = Clusters(labels, _host(current + mean), inertia, n_iter)
    pixels += mean
    return result


def _refill_empty(
    xp: Any, iterate: Any, pixels: Any, centroids: Any, labels: Any, sizes: Any
) -> tuple[Any, Any, float]:
    """Give each empty cluster the pixel farthest from its own centroid, then iterate once more."""
    empty = xp.flatnonzero(sizes == 0)
    distance = xp.sum((pixels - centroids[labels]) ** 2, axis=1)
    farthest = xp.argsort(distance)[::-1][: len(empty)]
    centroids = centroids.copy()
    centroids[empty] = pixels[farthest]
    return iterate(pixels, centroids)


def _host(array: Any) -> np.ndarray:
    return array.get() if hasattr(array, "get") else np.asarray(array)
