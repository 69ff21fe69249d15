"""Finding spots by the nearest of many pixels that somebody has marked."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from niseg_gpu.backend import count_cores
from niseg_gpu.knn import predict_knn
from niseg_gpu.knn_features import compute_features
from niseg_gpu.knn_model import fit_knn

from . import ours
from .memory import with_memory

SIDES = {"small": 64, "full": 1000}
COUNTS = 20_000  # in the middle of the beam


@with_memory("sklearn", "ours")
class Predict:
    """One image trains, all its pixels; another of the same size is classified by f and |f - median|."""

    params = (["small", "full"], ["float32", "uint16"], [1, 15])
    param_names = ["size", "dtype", "n_neighbors"]
    reference = "time_sklearn"
    equal = "classes identical but where neighbours are equally far (counted)"
    included = (
        "memory to memory: ours from the image, scikit-learn from features; trees are built; float32 is flat-fielded, "
        "uint16 raw counts; sklearn and ours with all cores"
    )
    warm_up = True
    devices = ("cpu", "gpu")
    on_host = ("sklearn", "ours_one_thread")

    def setup(self, size: str, dtype: str, n_neighbors: int) -> None:
        images, spots = simulate_pair(SIDES[size], dtype=dtype)
        self.backend, self.cores = ours.choose_device(), count_cores()
        self.model = fit_knn(images[0], spots[0], n_neighbors=n_neighbors, background_per_spot=np.inf)
        points, self.queries = (self._standardise(compute_features(image, self.model.features)) for image in images)
        self.theirs = KNeighborsClassifier(n_neighbors, algorithm="kd_tree", n_jobs=self.cores)
        self.theirs.fit(points, self.model.labels)
        self.image = self.backend.from_host(images[1])
        predict_knn(self.image[:2], self.model)  # builds the tree
        self.shape, self.dtype, self.nbytes = images[1].shape, images.dtype, images[1].nbytes

    def _standardise(self, features: np.ndarray) -> np.ndarray:
        return (features.reshape(-1, 2) - self.model.means) / self.model.scales

    def time_sklearn(self, size: str, dtype: str, n_neighbors: int) -> np.ndarray:
        return self.theirs.predict(self.queries)

    def time_ours(self, size: str, dtype: str, n_neighbors: int) -> np.ndarray:
        return self.backend.to_host(predict_knn(self.image, self.model, workers=self.cores)).ravel()

    def time_ours_one_thread(self, size: str, dtype: str, n_neighbors: int) -> np.ndarray:
        return self.backend.to_host(predict_knn(self.image, self.model)).ravel()

    def least(self, side: str) -> dict[str, float]:
        """The image read, the classes written; the search itself is not counted."""
        return {"memory, one thread" if side.endswith("one_thread") else "memory": self.nbytes + self.image.size}

    def assert_equal(self, found: np.ndarray, expected: np.ndarray) -> dict[str, int]:
        """Where they differ, the last neighbour that votes must be as far as the first that does not."""
        assert expected.any(), "no spot in this image, so the classes prove nothing"
        differing = np.flatnonzero(found != expected)
        if len(differing):
            k = self.model.n_neighbors
            distances, _ = self.theirs.kneighbors(self.queries[differing], k + 1)
            np.testing.assert_allclose(distances[:, k], distances[:, k - 1], rtol=1e-12)
        return {"ties_decided_otherwise": len(differing)}


def simulate_pair(side: int, *, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Two radiographs (2, side, side) of an open beam with its profile, one pixel in 100 a spot, and their masks."""
    rng = np.random.default_rng(0)
    spots = rng.random((2, side, side)) < 0.01
    across = np.linspace(-1, 1, side) ** 2
    beam = COUNTS * np.exp(-0.5 * (across[:, None] + across))
    counts = rng.poisson(beam, spots.shape) + rng.poisson(0.15 * COUNTS, spots.shape) * spots
    return (counts / beam if dtype == "float32" else counts).astype(dtype), spots
