"""k-means over whole spectra."""

from __future__ import annotations

import numpy as np

from benchmarks import ours, plain
from benchmarks.data import ITERATIONS, prepare_centroids, prepare_run


class KMeans:
    """Corrected frames in memory to labels: 10 clusters, 20 iterations from the same centroids."""

    params = (["small", "full"],)
    param_names = ["size"]
    reference = "time_sklearn"
    equal = "labels identical"
    included = "spectra in memory, one a row, to labels; no disk, no start-up, no transposing"
    warm_up = True

    def setup(self, size: str) -> None:
        run = prepare_run(size)
        self.centroids = np.load(prepare_centroids(size))
        corrected = plain.correct_overlap(plain.read_stack(run), *plain.read_windows(run))
        self.spectra = plain.collect_spectra(corrected)
        self.table = ours.build_table(corrected)
        self.shape, self.dtype, self.nbytes = self.spectra.shape, self.spectra.dtype, self.spectra.nbytes

    def time_sklearn(self, size: str) -> np.ndarray:
        return plain.cluster_spectra(self.spectra, self.centroids, ITERATIONS).labels_

    def time_ours(self, size: str) -> np.ndarray:
        return ours.cluster_spectra(self.table, self.centroids, iterations=ITERATIONS).labels.ravel()

    def assert_equal(self, labels: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_array_equal(labels, expected)


class Gather:
    """Corrected frames in memory to one spectrum a row, as k-means reads them."""

    params = (["small", "full"],)
    param_names = ["size"]
    reference = "time_numpy"
    equal = "identical"
    included = "memory to memory; no disk, no start-up"
    warm_up = True

    def setup(self, size: str) -> None:
        run = prepare_run(size)
        self.frames = plain.correct_overlap(plain.read_stack(run), *plain.read_windows(run))
        self.shape, self.dtype, self.nbytes = self.frames.shape, self.frames.dtype, self.frames.nbytes

    def time_numpy(self, size: str) -> np.ndarray:
        return plain.collect_spectra(self.frames)

    def time_ours_one_thread(self, size: str) -> np.ndarray:
        table = ours.build_table(self.frames)
        return table.backend.to_host(table.spectra)

    def assert_equal(self, spectra: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_array_equal(spectra, expected)
