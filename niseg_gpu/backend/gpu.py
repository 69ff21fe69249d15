"""The GPU's twin; what its functions are for stands with the CPU's."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from niseg_gpu.backend.budget import Budget
from niseg_gpu.backend.iterate import iterate_lloyd
from niseg_gpu.backend.machine import cpu_model
from niseg_gpu.backend.twin import Cleaned, Clusters, Twin, has_nan, neighbours_in_frame

QUERIES = 2**18  # neighbours of so many are held at once
JAX_ALIGNMENT = 256  # bytes, at a multiple of which memory for JAX begins
CUML_KEEPS = 2**30  # bytes that cuML's pool of memory may hold unused

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu(Twin):
    """CuPy, cuCIM and cuML on one CUDA device, or kernels of our own where `kernels` says so."""

    kernels: str = "library"
    name = "gpu"
    threads = 1  # its kernels are parallel themselves
    keeps_rows = True  # of pixels that lay otherwise
    has_bus = True
    window_bytes = 16  # counts, their running sum, and the live part, in float32
    cleans_in_pieces = False
    sums_changes = False  # a pass waits for the pixels, not for the sums
    network = {
        "dtype": "bfloat16",
        "strip_rows": 0,
        "phases": True,
        "planes": False,
        "own_slopes": False,
        "few_pixels": 0,
    }
    tile_pixels = {2: 2048**2, 3: 384**3}
    weights_a_pixel = None

    @property
    def uses(self) -> dict[str, str]:
        library, own = "cucim.skimage.filters.median", "numba.cuda (own kernel) for sizes 3, 5, 7 and 3 x 3 x 3"
        clusters = "numba.cuda (own kernel)" if self.kernels == "own" else "cuml.cluster.KMeans, one iteration a call"
        return {
            "overlap_correct": "cupy",
            "remove_spots": f"{own}, {library} for others" if self.kernels == "own" else library,
            "detect_spots": "cuml.neighbors.NearestNeighbors, ranked in float64",
            "kmeans": clusters,
            "segment_unet": "jax on the GPU, bfloat16",
            "everything else": "cupy",
        }

    def why_no_own(self) -> str:
        from numba import cuda

        return "" if cuda.is_available() else "numba can't use the GPU; install numba-cuda"

    @cached_property
    def xp(self) -> Any:
        return _Standard(importlib.import_module("cupy"))

    @cached_property
    def _median(self) -> Any:
        return importlib.import_module("cucim.skimage.filters").median

    @cached_property
    def _kmeans(self) -> Any:
        return _import_cuml("cuml.cluster").KMeans

    @cached_property
    def _neighbors(self) -> Any:
        return _import_cuml("cuml.neighbors").NearestNeighbors

    def median(self, image: Any, *, size: tuple[int, ...]) -> Any:
        if self._takes_own(image, size):
            from niseg_gpu.kernels.median_gpu import median_gpu, window_of

            return median_gpu(image, window=window_of(size), xp=self.xp)
        return self._median(image, size, mode="nearest")

    def _takes_own(self, image: Any, size: tuple[int, ...]) -> bool:
        """Whether our own median kernel is wanted and can do it; where it can't, that is said once."""
        if self.kernels != "own":
            return False
        from niseg_gpu.kernels.median_gpu import why_not

        reason = why_not(image.shape, image.dtype, size)
        if reason:
            _say_other_is_taken(f"kernels is own, but not for this median: {reason}; cuCIM's is taken")
        return not reason

    def clean_spots(
        self, image: Any, *, size: tuple[int, ...], threshold: float, kind: str, own: tuple[slice, ...] = ()
    ) -> Cleaned:
        from niseg_gpu.kernels import spots_xp

        xp = self.xp
        if threshold >= 0 and self._takes_own(image, size):
            from niseg_gpu.kernels.median_gpu import clean_gpu, window_of

            count, part = xp.zeros(2, dtype=np.uint64), spots_xp.frames_and_rows(own, image.shape)
            settings = {"window": window_of(size), "threshold": threshold, "kind": kind}
            cleaned, spots = clean_gpu(image, xp=xp, count=count, own=part or (), **settings)
            number = count[0] if part is not None else spots_xp.count_own(spots, own)
            return Cleaned(cleaned, spots, number, image.dtype.kind == "f" and bool(count[1]))
        if has_nan(image, xp=xp):
            return Cleaned(image, None, None, True)
        settings = {"xp": xp, "median": self.median, "size": size, "threshold": threshold, "kind": kind}
        cleaned, spots = spots_xp.clean_spots_xp(image, **settings)
        return Cleaned(cleaned, spots, spots_xp.count_own(spots, own), False)

    def replace_spots(self, image: Any, *, window: tuple[int, ...], **options: Any) -> tuple[Any, Any, Any]:
        from niseg_gpu.kernels.spots_xp import replace_spots_xp

        return replace_spots_xp(image, backend=self, window=window, **options)

    def label(self, mask: Any) -> tuple[Any, int]:
        label = importlib.import_module("cupyx.scipy.ndimage").label
        return label(mask, structure=neighbours_in_frame(mask.ndim))

    def gaussian(self, image: Any, *, sigma: float) -> Any:
        gaussian_filter = importlib.import_module("cupyx.scipy.ndimage").gaussian_filter
        return gaussian_filter(image, sigma, mode="nearest")

    def sobel(self, image: Any, *, axis: int) -> Any:
        return importlib.import_module("cupyx.scipy.ndimage").sobel(image, axis=axis, mode="nearest")

    def correct_window(self, counts: Any, out: Any, **window: Any) -> Any:
        from niseg_gpu.kernels.overlap import correct_window_xp

        return correct_window_xp(counts, out, xp=self.xp, **window)

    def write_spectra(self, block: Any, rows: Any) -> None:
        rows[...] = block.T

    def sum_frames(self, frames: Any) -> Any:
        return self.xp.sum(frames, axis=0, dtype=self.xp.float64)

    def sum_by_label(self, rows: Any, labels: Any, *, n_labels: int) -> Any:
        from niseg_gpu.kernels.sums import sum_by_label_xp

        return sum_by_label_xp(rows, labels, xp=self.xp, n_labels=n_labels)

    def as_rows(self, block: Any, *, axis: int) -> Any:
        rows = self.xp.moveaxis(self.xp.asarray(block), axis, -1).reshape(-1, block.shape[axis])
        if self.kernels != "own":
            return self.xp.ascontiguousarray(rows)
        if rows.strides[1] == rows.itemsize and rows.strides[0] >= rows.shape[1] * rows.itemsize:
            from niseg_gpu.kernels.lloyd_gpu import lies_well, pad_row

            padded = len(rows) * pad_row(rows.shape[1], rows.dtype) * rows.itemsize
            # a copy costs as much as two of the passes over them that follow
            if lies_well(rows) or padded > self.count_memory() // 2:
                return rows
        room = self.empty_rows(*rows.shape, rows.dtype)
        room[...] = rows
        return room

    def empty_rows(self, n: int, features: int, dtype: Any) -> Any:
        if self.kernels != "own":
            return self.xp.empty((n, features), dtype=dtype)
        from niseg_gpu.kernels.lloyd_gpu import pad_row

        return self.xp.zeros((n, pad_row(features, dtype)), dtype=dtype)[:, :features]

    def pin_rows(self, rows: Any) -> np.ndarray:
        from niseg_gpu.kernels.bus import pin

        return pin(rows, xp=self.xp)

    def bring(self, blocks: Any) -> Iterator[tuple[Any, Any]]:
        from niseg_gpu.kernels.bus import Bus, bring

        blocks = list(blocks)
        return bring(blocks, bus=Bus(max((block.nbytes for _, block in blocks), default=0), xp=self.xp))

    def find_bounds(self, pixels: Any) -> Any:
        from niseg_gpu.kernels.lloyd_xp import find_bounds_xp

        return find_bounds_xp(pixels, xp=self.xp)

    def sum_moments(self, pixels: Any, **how: Any) -> tuple[Any, float]:
        from niseg_gpu.kernels.lloyd_xp import sum_moments_xp

        return sum_moments_xp(pixels, xp=self.xp, **how)

    def measure_distances(self, pixels: Any, *, points: Any, mean: Any) -> Any:
        from niseg_gpu.kernels.lloyd_xp import measure_distances_xp

        return measure_distances_xp(pixels, points=points, mean=mean, xp=self.xp)

    def assign_and_sum(self, pixels: Any, *, centroids: Any, mean: Any, **how: Any) -> Any:
        from niseg_gpu.kernels.lloyd_xp import assign_and_sum_xp

        if self.kernels == "own":
            from niseg_gpu.kernels.lloyd_gpu import assign_and_sum_gpu, why_not

            reason = why_not(pixels.shape, pixels.dtype, len(centroids))
            if not reason:
                return assign_and_sum_gpu(pixels, centroids=centroids, mean=mean, **how, xp=self.xp)
            _say_other_is_taken(f"kernels is own, but not for this k-means: {reason}; array calls are taken")
        centroids, mean = self.from_host(centroids), self.from_host(mean)
        return assign_and_sum_xp(pixels, centroids=centroids, mean=mean, **how, xp=self.xp)

    def run_lloyd(self, pixels: Any, *, centroids: np.ndarray, max_iter: int, tol: float) -> Clusters:
        def iterate(data: Any, start: Any) -> tuple[Any, Any, float]:
            # cuML refuses tol=0; its own stop rules can't act within one iteration
            model = self._kmeans(n_clusters=len(start), init=start, n_init=1, max_iter=1, tol=1e-30, output_type="cupy")
            model.fit(data)
            return model.cluster_centers_, model.labels_, float(model.inertia_)

        return iterate_lloyd(self.xp, iterate, pixels, centroids=centroids, max_iter=max_iter, tol=tol)

    def index_voters(self, points: np.ndarray, *, first: np.ndarray, before: np.ndarray, n_neighbors: int) -> Any:
        # cuML searches in float32: a few candidates more, so that ranking them in float64 can mend its order
        candidates = min(n_neighbors + 8, len(points))
        algorithm = "rbc" if points.shape[1] in (2, 3) and candidates**2 <= len(points) else "brute"
        points, first, before = (self.from_host(array) for array in (points, first, before))
        model = self._neighbors(n_neighbors=candidates, algorithm=algorithm, output_type="cupy").fit(points)
        return points, first, before, model

    def find_votes(
        self, voters: Any, queries: Any, *, n_neighbors: int, by_distance: bool, workers: int
    ) -> tuple[Any, Any]:
        from niseg_gpu.kernels.candidates import count_votes, rank_candidates

        points, first, before, model = voters
        found, piles = [], min(n_neighbors, len(points))
        for start in range(0, len(queries), QUERIES):
            piece = queries[start : start + QUERIES]
            candidates = model.kneighbors(piece, return_distance=False)
            nearest = rank_candidates(points, piece, candidates, n_neighbors=piles, xp=self.xp)
            found.append(
                count_votes(*nearest, first, before, n_neighbors=n_neighbors, by_distance=by_distance, xp=self.xp)
            )
        if not found:
            return self.xp.zeros(0), self.xp.zeros(0)
        for_spots, against = zip(*found, strict=True)
        return self.xp.concatenate(for_spots), self.xp.concatenate(against)

    @cached_property
    def jax_device(self) -> Any:
        from niseg_gpu.xla import find_gpu, start_jax

        return find_gpu(start_jax(cpu_model()), self.xp.cuda.Device().id)

    def to_jax(self, block: Any) -> Any:
        from niseg_gpu.xla import start_jax

        _ = self.jax_device  # or a complaint that says what to install
        block = self.xp.ascontiguousarray(block)
        # XLA refuses what begins elsewhere, as a frame within a stack may do; the pool's own arrays begin there
        block = block.copy() if block.data.ptr % JAX_ALIGNMENT else block
        return start_jax(cpu_model()).dlpack.from_dlpack(block)

    def from_jax(self, array: Any) -> Any:
        # JAX takes its memory back when nobody holds it, and does not know of CuPy's kernels that may still read it
        block = self.xp.from_dlpack(array).copy()
        self.synchronize()
        return block

    def free_bytes(self) -> int:
        _ = self.jax_device  # its limit is known once it is there
        return self.read_budget().for_networks

    def make_room(self, nbytes: int) -> None:
        budget = self.read_budget()
        if nbytes > budget.free + budget.networks_idle:
            self.xp.get_default_memory_pool().free_all_blocks()

    def read_budget(self) -> Budget:
        from niseg_gpu.xla import read_pool

        free, total = self.xp.cuda.runtime.memGetInfo()
        arrays, networks = self.xp.get_default_memory_pool(), read_pool(self.xp.cuda.Device().id, total=total)
        return Budget(total, free, arrays.total_bytes(), arrays.free_bytes(), *networks)

    def from_host(self, block: np.ndarray) -> Any:
        block = np.ascontiguousarray(block)
        if block.dtype.isnative:
            return self.xp.asarray(block)
        from niseg_gpu.kernels.words import swap_bytes

        words = self.xp.asarray(block.view(f"u{block.itemsize}"))  # they travel as they are, and are swapped there
        return swap_bytes(words).view(block.dtype.newbyteorder("="))

    def to_host(self, block: Any) -> np.ndarray:
        return self.xp.asnumpy(block)

    def synchronize(self) -> None:
        self.xp.cuda.get_current_stream().synchronize()

    def count_memory(self) -> int:
        return self.read_budget().for_arrays

    def describe(self) -> str:
        properties = self.xp.cuda.runtime.getDeviceProperties(self.xp.cuda.Device().id)
        return f"{properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.0f} GiB"


def _import_cuml(name: str) -> Any:
    """A module of cuML; CuPy keeps its pool of memory.

    cuML's import has CuPy ask RMM for memory instead, which asks the driver each time, and giving it back waits for
    the device. cuML's own memory is RMM's: where nobody has chosen a pool for that, it gets the driver's, which by
    itself would keep all it ever took, out of reach of CuPy and JAX.
    """
    cuda = importlib.import_module("cupy").cuda
    allocator = cuda.get_allocator()
    module = importlib.import_module(name)
    cuda.set_allocator(allocator)
    mr = sys.modules["rmm"].mr  # cuML has imported it
    has_pools = cuda.Device().attributes.get("MemoryPoolsSupported", 0)
    if has_pools and type(mr.get_current_device_resource()) is mr.CudaMemoryResource:
        mr.set_current_device_resource(mr.CudaAsyncMemoryResource(release_threshold=CUML_KEEPS))
    return module


@cache
def _say_other_is_taken(why: str) -> None:
    log.warning("%s", why)


class _Standard:
    """CuPy under the array API's names, which not all of its releases carry."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, {"cumulative_sum": "cumsum"}.get(name, name))

    def astype(self, array: Any, dtype: Any) -> Any:
        return array.astype(dtype)
