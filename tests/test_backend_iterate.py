"""The loop that gives the GPU scikit-learn's k-means."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans

from niseg_gpu.backend.iterate import iterate_lloyd


def iterate_with_sklearn(pixels, start):
    """What cuML does in one call of one iteration, done by scikit-learn."""
    model = KMeans(len(start), init=start, n_init=1, max_iter=1, tol=0).fit(pixels)
    labels = model.predict(pixels)
    return model.cluster_centers_, labels, float(model.inertia_)


@pytest.mark.filterwarnings("ignore:.*convergence:UserWarning")
@pytest.mark.parametrize("max_iter, tol", [(1, 0.0), (4, 0.0), (300, 0.0), (300, 1e-4), (300, 1e-2)])
def test_one_iteration_a_call_ends_where_sklearn_ends(max_iter: int, tol: float) -> None:
    rng = np.random.default_rng(1)
    centres = rng.uniform(1000, 1300, (5, 30))
    pixels = (centres[rng.integers(0, 5, 4000)] + rng.normal(0, 60, (4000, 30))).astype(np.float32)
    start = pixels[rng.choice(4000, 5, replace=False)].copy()
    kept = pixels.copy()
    ours = iterate_lloyd(np, iterate_with_sklearn, pixels, centroids=start, max_iter=max_iter, tol=tol)
    theirs = KMeans(5, init=start, n_init=1, max_iter=max_iter, tol=tol).fit(kept)
    assert (ours.labels == theirs.labels_).mean() > 0.9995
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, rtol=1e-4)
    np.testing.assert_allclose(pixels, kept, rtol=1e-6)


def iterate_keeping_empty(pixels, start):
    """One iteration as cuML does it: an empty cluster keeps its centroid."""
    start = np.asarray(start)
    labels = ((pixels[:, None] - start) ** 2).sum(2).argmin(1)
    new = np.stack([pixels[labels == k].mean(0) if (labels == k).any() else start[k] for k in range(len(start))])
    labels = ((pixels[:, None] - new) ** 2).sum(2).argmin(1)
    return new.astype(np.float32), labels, float(((pixels - new[labels]) ** 2).sum())


def test_an_empty_cluster_is_refilled() -> None:
    pixels = np.array([[0.0], [0.1], [5.0], [5.1], [9.0]], np.float32)
    start = np.array([[0.0], [5.0], [1000.0]], np.float32)
    found = iterate_lloyd(np, iterate_keeping_empty, pixels.copy(), centroids=start, max_iter=20, tol=0)
    assert sorted(np.bincount(found.labels, minlength=3)) == [1, 2, 2]
