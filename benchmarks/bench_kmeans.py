"""k-means over whole spectra."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from . import ours, plain
from .bench_end_to_end import TIE, TIES
from .clock import Ran
from .data import ITERATIONS, prepare_centroids, prepare_counts, prepare_run
from .kmeans_sides import SIDES, Rows, choose_start, fit_side, read_pixels
from .memory import with_memory

CASES = {
    "65536 x 661, k 10": (65_536, 661, 10),
    "262144 x 114, k 2": (262_144, 114, 2),
    "262144 x 114, k 10": (262_144, 114, 10),
    "262144 x 114, k 64": (262_144, 114, 64),
}


def count_least(shape: tuple[int, ...], n_clusters: int, *, nbytes: int, iterations: int) -> dict[str, float]:
    """Each iteration reads all pixels once, and multiplies them with all centroids."""
    return {"memory": iterations * nbytes, "operations": iterations * 2 * math.prod(shape) * n_clusters}


@with_memory("sklearn", "ours")
class KMeans:
    """Corrected frames in memory to labels: 10 clusters, 20 iterations from the same centroids."""

    params = (["small", "full"],)
    param_names = ["size"]
    reference = "time_sklearn"
    equal = "labels identical but for ties, and for pixels where scikit-learn in float64 says the same (both counted)"
    included = "spectra in memory, one a row, to labels; no disk, no start-up, no transposing"
    warm_up = True
    devices = ("cpu", "gpu")
    on_host = ("sklearn",)

    def setup(self, size: str) -> None:
        run = prepare_run(size)
        self.centroids = np.load(prepare_centroids(size))
        corrected = plain.correct_overlap(plain.read_stack(run), *plain.read_windows(run))
        self.spectra = plain.collect_spectra(corrected)
        self.table = ours.build_table(corrected)
        self.shape, self.dtype, self.nbytes = self.spectra.shape, self.spectra.dtype, self.spectra.nbytes

    def time_sklearn(self, size: str) -> np.ndarray:
        found = plain.cluster_spectra(self.spectra, self.centroids, ITERATIONS)
        self.iterations = found.n_iter_
        return found.labels_

    def time_ours(self, size: str) -> np.ndarray:
        return ours.cluster_spectra(self.table, self.centroids, iterations=ITERATIONS).labels.ravel()

    def least(self, side: str) -> dict[str, float]:
        return count_least(self.shape, len(self.centroids), nbytes=self.nbytes, iterations=self.iterations)

    def assert_equal(self, labels: np.ndarray, expected: np.ndarray) -> dict[str, int]:
        """Where labels differ, a pixel must be as near to the mean of one cluster as to that of the other.

        Or scikit-learn itself must come to the other label when it computes in float64.
        """
        differing = np.flatnonzero(labels != expected)
        assert len(differing) <= TIES * len(expected), f"{len(differing)} of {len(expected)} labels differ"
        if not len(differing):
            return {"ties_decided_otherwise": 0}
        means = {c: self.spectra[expected == c].mean(axis=0, dtype=np.float64) for c in np.unique(expected)}
        wrong = []
        for i in differing:
            assert labels[i] in means, f"pixel {i} is in cluster {labels[i]}, which has no pixel there"
            got, best = (((self.spectra[i] - means[c]) ** 2).sum() for c in (labels[i], expected[i]))
            if abs(got - best) > TIE * best:
                wrong.append((i, got, best))
        if wrong:
            exact = plain.cluster_spectra(self.spectra.astype(np.float64), self.centroids, ITERATIONS).labels_
            for i, got, best in wrong:
                assert labels[i] == exact[i], f"pixel {i}: distance {got:.6g}, to the expected {best:.6g}"
        return {"ties_decided_otherwise": len(differing) - len(wrong), "decided_as_in_float64": len(wrong)}


class Gather:
    """Corrected frames in memory to one spectrum a row, as k-means reads them."""

    params = (["small", "full"],)
    param_names = ["size"]
    reference = "time_numpy"
    equal = "identical"
    included = "memory to memory; no disk, no start-up"
    warm_up = True
    devices = ("cpu", "gpu")
    on_host = ("numpy",)

    def setup(self, size: str) -> None:
        run = prepare_run(size)
        self.frames = plain.correct_overlap(plain.read_stack(run), *plain.read_windows(run))
        self.shape, self.dtype, self.nbytes = self.frames.shape, self.frames.dtype, self.frames.nbytes

    def time_numpy(self, size: str) -> np.ndarray:
        return plain.collect_spectra(self.frames)

    def time_ours_one_thread(self, size: str) -> np.ndarray:
        table = ours.build_table(self.frames)
        return table.backend.to_host(table.spectra)

    def least(self, side: str) -> dict[str, float]:
        return {"memory, one thread": 2 * self.nbytes}

    def assert_equal(self, spectra: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_array_equal(spectra, expected)


@with_memory(*SIDES)
class Fit:
    """Counts in memory to labels: 20 iterations from the same centroids."""

    params = (["small", "full"], list(CASES))
    param_names = ["size", "case"]
    reference = "time_sklearn"
    equal = (
        "after one iteration the inertia to 1e-5 and the labels but for 1 in 500 (counted); after all of them, where "
        "rounding decides more and more, the inertia to 1e-2"
    )
    included = (
        "the estimator's fit; no disk, no start-up; sklearn and ours: float32 spectra, one a row; ours_uint16: 16 bit; "
        "ours_frames: float32 frames"
    )
    warm_up = True

    def setup(self, size: str, case: str) -> None:
        pixels, features, n_clusters = CASES[case]
        pixels = pixels // 64 if size == "small" else pixels
        self.path = prepare_counts(pixels, features)
        self.start = choose_start(self.path, n_clusters)
        self.pixels = {side: read_pixels(side, self.path) for side in SIDES}
        self.first: dict[str, tuple] = {}
        self.shape, self.dtype, self.nbytes = (pixels, features), np.dtype(np.float32), 4 * pixels * features

    def time_sklearn(self, size: str, case: str) -> Ran:
        return self._fit("sklearn", size)

    def time_ours(self, size: str, case: str) -> Ran:
        return self._fit("ours", size)

    def time_ours_uint16(self, size: str, case: str) -> Ran:
        return self._fit("ours_uint16", size)

    def time_ours_frames(self, size: str, case: str) -> Ran:
        return self._fit("ours_frames", size)

    def _fit(self, side: str, size: str) -> Ran:
        begin = time.perf_counter()
        found = fit_side(side, self.pixels[side], self.start, iterations=ITERATIONS)
        seconds = time.perf_counter() - begin
        self.iterations = found.n_iter_
        if side not in self.first:
            one = fit_side(side, self.pixels[side], self.start, iterations=1)
            self.first[side] = one.labels_.ravel(), one.inertia_
        output = (*self.first[side], found.inertia_, found.n_iter_)
        return Ran(output, seconds)

    def least(self, side: str) -> dict[str, float]:
        nbytes = self.pixels[side].nbytes
        return count_least(self.shape, len(self.start), nbytes=nbytes, iterations=self.iterations)

    def assert_equal(self, found: tuple, expected: tuple) -> dict[str, int]:
        otherwise = int((found[0] != expected[0]).sum())
        assert otherwise <= len(found[0]) // 500, f"{otherwise} of {len(found[0])} labels differ"
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
        np.testing.assert_allclose(found[2], expected[2], rtol=1e-2)
        assert found[3] == expected[3], f"{found[3]} iterations, not {expected[3]}"
        return {"labelled_otherwise_after_one": otherwise}


@with_memory("resident", "streamed")
class Stream:
    """16-bit counts in a file to labels: read once into memory, or with room for half of them.

    What there is no room for is read anew in each of the 20 iterations.
    """

    params = (["small", "full"],)
    param_names = ["size"]
    reference = "time_resident"
    equal = "labels and centroids identical"
    included = "a file in the page cache to labels; no start-up"
    warm_up = True

    def setup(self, size: str) -> None:
        pixels, features = 262_144 if size == "full" else 4_096, 661
        path = prepare_counts(pixels, features)
        self.counts, self.start = Rows(path), choose_start(path, 10)
        self.shape, self.dtype, self.nbytes = (pixels, features), np.dtype(np.uint16), 2 * pixels * features

    def time_resident(self, size: str) -> tuple[np.ndarray, np.ndarray]:
        return self._fit(self.counts[:])

    def time_streamed(self, size: str) -> tuple[np.ndarray, np.ndarray]:
        import dask.array as da

        chunks = (len(self.start) * 256, -1)
        lazy = da.from_array(self.counts, chunks=chunks, name=False, meta=np.empty((0, 0), self.dtype))
        return self._fit(lazy, memory_budget=self.nbytes // 2)

    def _fit(self, counts: Any, **how: int) -> tuple[np.ndarray, np.ndarray]:
        from niseg_gpu.kmeans.estimator import KMeans as Estimator

        model = Estimator(len(self.start), init=self.start, max_iter=ITERATIONS, tol=0, device="cpu", **how)
        found = model.fit(counts)
        self.iterations = found.n_iter_
        return found.labels_, found.cluster_centers_

    def least(self, side: str) -> dict[str, float]:
        return count_least(self.shape, len(self.start), nbytes=self.nbytes, iterations=self.iterations)

    def assert_equal(self, found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
