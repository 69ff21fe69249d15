"""k-means on a GPU: our own pass, cuML's, and others' where they are installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from niseg_gpu.backend import select, why_no_gpu
from niseg_gpu.kmeans.arrays import open_points
from niseg_gpu.kmeans.cluster import hold_rows
from niseg_gpu.kmeans.lloyd import assign, measure_points, read_labels

from .bench_kmeans import count_least
from .clock import DEVICES, Ran, measure_work
from .memory import with_memory

SIZES = {"small": (4_096, 61), "full": (512 * 512, 661)}  # pixels, bins
CLUSTERS, ITERATIONS, BLOCK = 10, 20, 8_192


def draw_counts(size: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Counts behind a wedge, (pixels, bins), and ten centroids near its thin end: they wander for a long time."""
    rng, (n, features) = np.random.default_rng(2018), SIZES[size]
    attenuation = rng.uniform(0.5, 1.5, features)
    counts = np.empty((n, features), dtype)
    for first in range(0, n, BLOCK):
        thickness = rng.uniform(0, 1, min(BLOCK, n - first))
        counts[first : first + BLOCK] = rng.poisson(3_000 * np.exp(-np.outer(thickness, attenuation)))
    return counts, (3_000 * np.exp(-np.outer(np.linspace(0, 0.3, CLUSTERS), attenuation))).astype(np.float32)


def move_centroids(points: Any, measure: Any, start: np.ndarray) -> np.ndarray:
    """Iterate as the estimator does, but to the last; return the centroids that the labels were given by."""
    following = start - measure.mean
    for _ in range(ITERATIONS):
        current, found = following, assign(points, measure, following)
        following = (found.sums / np.maximum(found.sizes, 1)[:, None]).astype(np.float32)
    return current


class _Gpu:
    """What all benchmarks here share."""

    params = (["small", "full"], ["float32", "uint16"])
    param_names = ["size", "dtype"]
    warm_up = True
    devices = ("gpu",)

    @staticmethod
    def why_not() -> str:
        missing = why_no_gpu()
        return f"no GPU can be used: {missing}" if missing else ""

    def setup(self, size: str, dtype: str) -> None:
        self.backend = select("gpu", kernels="own")[0]
        self.counts, self.start = draw_counts(size, dtype)
        self.shape, self.dtype = self.counts.shape, self.counts.dtype
        self.nbytes = self.counts.nbytes * ITERATIONS

    def clock(self, work: Callable[[], Any]) -> Ran:
        """Run something on the device and wait for it; what it gives should lie there."""
        return measure_work(work, device=DEVICES["gpu"])

    def assert_equal(self, labels: np.ndarray, expected: np.ndarray) -> dict[str, float]:
        same = float((labels.ravel() == expected.ravel()).mean())
        assert same >= 0.999, f"{same:.4%} of the labels are the same"
        return {"labels_the_same": same}


class Iteration(_Gpu):
    """Spectra that lie on the device: the same start, 20 iterations, to labels."""

    reference = "time_own"
    peers = {"flash_kmeans": "flash_kmeans", "torch": "torch"}
    equal = "999 labels in 1000 the same, or more"
    included = "20 iterations over spectra on the device, one a row; GB/s: bytes of the spectra, read once in each"

    def setup(self, size: str, dtype: str) -> None:
        super().setup(size, dtype)
        n, features = self.shape
        self.rows = self.backend.empty_rows(n, features, self.dtype)
        self.rows[...] = self.backend.from_host(self.counts)
        self.floats = self.backend.from_host(self.counts.astype(np.float32))
        self.points = hold_rows(self.rows, backend=self.backend)
        self.measure = measure_points(self.points)
        copies = [self.clock(self.rows.copy).seconds for _ in range(5)]
        self.copying = 2 * self.counts.nbytes / min(copies)

    def tell(self, ran: Ran, labels: Any, iterations: int) -> Ran:
        """A run of so many iterations, as if it were 20 of them."""
        details = {
            "ms_per_iteration": 1e3 * ran.seconds / iterations,
            "device_copying_gb_per_s": self.copying / 1e9,
            "fraction_of_copying": self.counts.nbytes * iterations / ran.seconds / self.copying,
        }
        return replace(ran, output=np.asarray(labels), seconds=ran.seconds * ITERATIONS / iterations, details=details)

    def least(self, side: str) -> dict[str, float]:
        """Those that are not ours read float32, whatever the counts are."""
        nbytes = self.counts.nbytes if side.startswith("own") else self.floats.nbytes
        return count_least(self.shape, CLUSTERS, nbytes=nbytes, iterations=ITERATIONS)

    def time_own(self, size: str, dtype: str) -> Ran:
        """As the estimator does it: each iteration's sums come to the host, which moves the centroids."""
        ran = self.clock(lambda: move_centroids(self.points, self.measure, self.start))
        self.last = ran.output
        return self.tell(ran, self.points.gather(read_labels, dtype=np.int32, reading=False), ITERATIONS)

    def time_own_pass(self, size: str, dtype: str) -> Ran:
        """The passes alone, one after another from where `time_own` ends: nothing waits for the host."""
        from niseg_gpu.kernels.lloyd_gpu import start_pass

        xp, labels = self.backend.xp, self.backend.xp.zeros(self.shape[0], dtype=np.int32)
        how = {"quantum": self.measure.quantum, "whole": dtype == "uint16", "labels": labels, "xp": xp}
        how |= {"mean": xp.asarray(self.measure.mean), "centroids": xp.asarray(self.last)}
        ran = self.clock(lambda: [start_pass(self.rows, **how) for _ in range(ITERATIONS)])
        return self.tell(ran, self.backend.to_host(labels), ITERATIONS)

    def time_cuml(self, size: str, dtype: str) -> Ran:
        """In float32, which is all it takes; its own rules may end it early."""
        from cuml.cluster import KMeans as CumlKMeans

        model = CumlKMeans(
            n_clusters=CLUSTERS, init=self.start, n_init=1, max_iter=ITERATIONS, tol=1e-30, output_type="cupy"
        )
        ran = self.clock(lambda: model.fit(self.floats).labels_)
        return self.tell(ran, self.backend.to_host(ran.output), int(model.n_iter_))

    def time_flash_kmeans(self, size: str, dtype: str) -> Ran:
        """In float32."""
        import torch
        from flash_kmeans import batch_kmeans_Euclid

        data = torch.from_dlpack(self.floats)[None]
        start = torch.from_dlpack(self.backend.from_host(self.start))[None].clone()
        run = lambda: batch_kmeans_Euclid(  # noqa: E731
            data, CLUSTERS, max_iters=ITERATIONS, tol=-1.0, init_centroids=start
        )
        ran = self.clock(run)
        labels, _, n_iter = ran.output
        return self.tell(ran, labels[0].cpu().numpy(), int(n_iter))

    def time_torch(self, size: str, dtype: str) -> Ran:
        """Two matrix products an iteration, in float32."""
        import torch

        data, centroids = torch.from_dlpack(self.floats), torch.from_dlpack(self.backend.from_host(self.start))
        mean = data.mean(0)
        data, centroids = data - mean, centroids - mean

        def run() -> Any:
            current = centroids
            for _ in range(ITERATIONS):
                labels = torch.addmm((current * current).sum(1), data, current.T, alpha=-2).argmin(1)
                member = torch.nn.functional.one_hot(labels, CLUSTERS).to(data.dtype)
                current = (member.T @ data) / member.sum(0).clamp(min=1)[:, None]
            return labels

        ran = self.clock(run)
        return self.tell(ran, ran.output.cpu().numpy(), ITERATIONS)


@with_memory("resident", "streamed")
class Stream(_Gpu):
    """All counts on the device, or room for half of them: the others cross the bus in each iteration."""

    params = (["small", "full"], ["uint16"])
    reference = "time_resident"
    equal = "labels identical"
    included = (
        "20 iterations, what the device has no room for in page-locked memory; GB/s: bytes of the counts, 20 times"
    )

    def iterate(self, budget: int) -> Ran:
        import dask.array as da

        on_device = self.backend.xp.empty((0, 0), dtype=self.dtype)
        counts = da.from_array(self.counts, chunks=(BLOCK, -1))
        counts = counts.map_blocks(self.backend.from_host, dtype=self.dtype, meta=on_device)
        points = open_points(counts, kernels="own", memory_budget=budget)
        measure = measure_points(points)
        ran = self.clock(lambda: move_centroids(points, measure, self.start))
        crossed = sum(part.held.nbytes for part in points.parts.values() if part.held is not None)
        bus, pinned = ITERATIONS * crossed / ran.seconds, self.measure_bus()
        details = {"bus_gb_per_s": bus / 1e9, "pinned_gb_per_s": pinned / 1e9, "fraction_of_pinned": bus / pinned}
        return replace(ran, output=points.gather(read_labels, dtype=np.int32, reading=False), details=details)

    def measure_bus(self) -> float:
        """Bytes a second from page-locked memory to the device, one copy of everything."""
        block = self.backend.pin_rows(self.backend.from_host(self.counts))
        for _, _there in self.backend.bring([(0, block)]):  # the first copy also finds the memory
            pass
        seconds = min(self.clock(lambda: list(self.backend.bring([(0, block)]))).seconds for _ in range(3))
        return block.nbytes / seconds

    def time_resident(self, size: str, dtype: str) -> Ran:
        return self.iterate(4 * self.counts.nbytes + 2**30)

    def time_streamed(self, size: str, dtype: str) -> Ran:
        return self.iterate(self.counts.nbytes // 2 + 2**20)
