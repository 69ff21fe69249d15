"""The two devices as twins with the same members; the only module that names their libraries.

Choose once with `select`; after that follow the data: ``backend_of(block)`` gives the twin of the block's own
type, so no method asks where it runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.errors import UserError

log = logging.getLogger(__name__)


class Clusters(NamedTuple):
    """What a k-means run ends with; arrays on the host but for `labels`.

    Attributes
    ----------
    labels : (pixels,) int32
    centroids : (k, features) float32
    inertia : float
        Sum of squared distances to the nearest centroid.
    n_iter : int
    """

    labels: Any
    centroids: np.ndarray
    inertia: float
    n_iter: int


class Cpu:
    """NumPy, SciPy and scikit-learn, with numba kernels where those are slow."""

    name = "cpu"
    threads = 2**16  # that may work at once: as many as there are
    keeps_rows = False  # kernels read pixels in any layout
    kernels = "own"  # or library; set by `select`

    @property
    def uses(self) -> dict[str, str]:
        own, library = "numba (own kernel)", "scipy.ndimage.median_filter"
        return {
            "overlap_correct": own,
            "remove_spots": f"{own} for sizes 3 and 5, {library} for others" if self.kernels == "own" else library,
            "detect_spots": "numba (own k-d tree)",
            "kmeans": own if self.kernels == "own" else "sklearn.cluster.KMeans (lloyd)",
            "everything else": "numpy",
        }

    @property
    def xp(self) -> Any:
        return np

    def median(self, image: np.ndarray, *, size: tuple[int, ...]) -> np.ndarray:
        """Running median over a window of `size` per axis, the border value repeated outside."""
        from niseg_gpu.kernels import median

        if self.kernels == "own" and median.covers(image.dtype, size):
            return median.median_frames(image, size=size[-1])
        from scipy.ndimage import median_filter

        return median_filter(image, size=size, mode="nearest")

    def clean_spots(
        self, image: np.ndarray, *, size: int, threshold: float, kind: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Replace what lies farther than `threshold` from the running median; see `niseg_gpu.spots.remove_spots`."""
        from niseg_gpu.kernels import median, spots_xp

        if self.kernels == "own" and median.covers(image.dtype, (size, size)) and threshold >= 0:
            return median.clean_frames(image, size=size, threshold=threshold, kind=kind)
        return spots_xp.clean_spots_xp(image, xp=np, median=self.median, size=size, threshold=threshold, kind=kind)

    def label(self, mask: np.ndarray) -> tuple[np.ndarray, int]:
        """Number the spots of each frame (the last two axes) from 1, 8-connected; also return how many there are."""
        from scipy.ndimage import label

        return label(mask, structure=neighbours_in_frame(mask.ndim))

    def gaussian(self, image: np.ndarray, *, sigma: float) -> np.ndarray:
        """Gaussian mean over every axis, the border value repeated outside."""
        from scipy.ndimage import gaussian_filter

        return gaussian_filter(image, sigma, mode="nearest")

    def sobel(self, image: np.ndarray, *, axis: int) -> np.ndarray:
        """Sobel's slope along one axis, smoothed along the others, the border value repeated outside."""
        from scipy.ndimage import sobel

        return sobel(image, axis=axis, mode="nearest")

    def correct_window(self, counts: np.ndarray, out: np.ndarray, **window: Any) -> np.ndarray:
        from niseg_gpu.kernels.overlap import correct_window_cpu

        return correct_window_cpu(counts, out, **window)

    def write_spectra(self, block: np.ndarray, rows: np.ndarray) -> None:
        from niseg_gpu.kernels.transpose import write_spectra_cpu

        write_spectra_cpu(block, rows)

    def sum_by_label(self, rows: np.ndarray, labels: np.ndarray, *, n_labels: int) -> np.ndarray:
        from niseg_gpu.kernels.sums import sum_by_label_cpu

        return sum_by_label_cpu(rows, labels, n_labels=n_labels)

    def as_rows(self, block: np.ndarray, *, axis: int) -> np.ndarray:
        """Pixels as (n, features) in memory of the device; here a view, where there can be one."""
        return np.moveaxis(np.asarray(block), axis, -1).reshape(-1, block.shape[axis])

    def find_bounds(self, pixels: np.ndarray) -> Any:
        """Which pixels have data, and the range of each feature."""
        from niseg_gpu.kernels.moments import find_bounds_cpu

        return find_bounds_cpu(pixels)

    def sum_moments(self, pixels: np.ndarray, **how: Any) -> tuple[np.ndarray, float]:
        """Sum of the pixels, and of their squared distances, from a centre."""
        from niseg_gpu.kernels.moments import sum_moments_cpu

        return sum_moments_cpu(pixels, **how)

    def measure_distances(self, pixels: np.ndarray, *, points: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Squared distances (points, pixels) from a few points."""
        from niseg_gpu.kernels.moments import measure_distances_cpu

        return measure_distances_cpu(pixels, points=points, mean=mean)

    def assign_and_sum(self, pixels: np.ndarray, **how: Any) -> Any:
        """One pass of k-means: nearest centroids, and each cluster's sum; see `kernels.lloyd.assign_and_sum_cpu`."""
        from niseg_gpu.kernels.lloyd import assign_and_sum_cpu

        return assign_and_sum_cpu(pixels, **how)

    def run_lloyd(self, pixels: np.ndarray, *, centroids: np.ndarray, max_iter: int, tol: float) -> Clusters:
        """The library's k-means from given centroids, with scikit-learn's stop rules; may centre `pixels` and back."""
        import warnings

        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        model = KMeans(len(centroids), init=centroids, n_init=1, max_iter=max_iter, tol=tol, copy_x=False)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # fewer distinct pixels than clusters: said by the caller
            model.fit(pixels)
        return Clusters(model.labels_, model.cluster_centers_, float(model.inertia_), int(model.n_iter_))

    def index_points(self, points: np.ndarray, *, n_neighbors: int) -> Any:
        """Prepare (n, features) float32 points, all different, for `find_nearest`."""
        from niseg_gpu.kernels.kdtree import build_tree

        return build_tree(points)

    def find_nearest(self, index: Any, queries: np.ndarray, *, n_neighbors: int, workers: int) -> tuple[Any, Any]:
        """Distances (float64) and numbers of each query's nearest points; of points equally far the first wins."""
        from niseg_gpu.kernels.kdtree import find_nearest

        return find_nearest(index, queries, n_neighbors=n_neighbors, workers=workers)

    def from_host(self, block: np.ndarray) -> np.ndarray:
        return block

    def to_host(self, block: np.ndarray) -> np.ndarray:
        return np.asarray(block)

    def synchronize(self) -> None:
        """Wait until the device has done what it was told; a CPU has."""

    def count_memory(self) -> int:
        """Bytes this device has."""
        import os

        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def describe(self) -> str:
        return f"{cpu_model()}, {count_cores()} cores"


class Gpu:
    """CuPy, cuCIM and cuML on one CUDA device, or kernels of our own where `kernels` says so."""

    name = "gpu"
    threads = 1  # its kernels are parallel themselves
    keeps_rows = True  # of pixels that lay otherwise
    kernels = "library"  # or own; set by `select`

    @property
    def uses(self) -> dict[str, str]:
        library, own = "cucim.skimage.filters.median", "numba.cuda (own kernel) for sizes 3 and 5"
        return {
            "overlap_correct": "cupy",
            "remove_spots": f"{own}, {library} for others" if self.kernels == "own" else library,
            "detect_spots": "cuml.neighbors.NearestNeighbors, ranked in float64",
            "kmeans": "array calls (own)" if self.kernels == "own" else "cuml.cluster.KMeans, one iteration a call",
            "everything else": "cupy",
        }

    @cached_property
    def xp(self) -> Any:
        return _Standard(importlib.import_module("cupy"))

    @cached_property
    def _median(self) -> Any:
        return importlib.import_module("cucim.skimage.filters").median

    @cached_property
    def _kmeans(self) -> Any:
        return importlib.import_module("cuml.cluster").KMeans

    @cached_property
    def _neighbors(self) -> Any:
        return importlib.import_module("cuml.neighbors").NearestNeighbors

    def median(self, image: Any, *, size: tuple[int, ...]) -> Any:
        if self._takes_own(image, size):
            from niseg_gpu.kernels.median_gpu import median_frames_gpu

            return median_frames_gpu(image, size=size[-1], xp=self.xp)
        return self._median(image, size, mode="nearest")

    def _takes_own(self, image: Any, size: tuple[int, ...]) -> bool:
        """Whether our own median kernel is wanted and can do it; where it can't, that is said once."""
        if self.kernels != "own":
            return False
        from niseg_gpu.kernels.median_gpu import why_not

        reason = why_not(image.shape, image.dtype, size)
        if reason:
            _say_library_is_taken(reason)
        return not reason

    def clean_spots(self, image: Any, *, size: int, threshold: float, kind: str) -> tuple[Any, Any]:
        from niseg_gpu.kernels.spots_xp import clean_spots_xp

        if threshold >= 0 and self._takes_own(image, (1,) * (image.ndim - 2) + (size, size)):
            from niseg_gpu.kernels.median_gpu import clean_frames_gpu

            return clean_frames_gpu(image, size=size, threshold=threshold, kind=kind, xp=self.xp)
        return clean_spots_xp(image, xp=self.xp, median=self.median, size=size, threshold=threshold, kind=kind)

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

    def sum_by_label(self, rows: Any, labels: Any, *, n_labels: int) -> Any:
        from niseg_gpu.kernels.sums import sum_by_label_xp

        return sum_by_label_xp(rows, labels, xp=self.xp, n_labels=n_labels)

    def as_rows(self, block: Any, *, axis: int) -> Any:
        rows = self.xp.moveaxis(self.xp.asarray(block), axis, -1).reshape(-1, block.shape[axis])
        return self.xp.ascontiguousarray(rows)

    def find_bounds(self, pixels: Any) -> Any:
        from niseg_gpu.kernels.lloyd_xp import find_bounds_xp

        return find_bounds_xp(pixels, xp=self.xp)

    def sum_moments(self, pixels: Any, **how: Any) -> tuple[Any, float]:
        from niseg_gpu.kernels.lloyd_xp import sum_moments_xp

        return sum_moments_xp(pixels, xp=self.xp, **how)

    def measure_distances(self, pixels: Any, *, points: Any, mean: Any) -> Any:
        from niseg_gpu.kernels.lloyd_xp import measure_distances_xp

        return measure_distances_xp(pixels, points=points, mean=mean, xp=self.xp)

    def assign_and_sum(self, pixels: Any, **how: Any) -> Any:
        from niseg_gpu.kernels.lloyd_xp import assign_and_sum_xp

        return assign_and_sum_xp(pixels, xp=self.xp, **how)

    def run_lloyd(self, pixels: Any, *, centroids: np.ndarray, max_iter: int, tol: float) -> Clusters:
        def iterate(data: Any, start: Any) -> tuple[Any, Any, float]:
            # cuML refuses tol=0; its own stop rules can't act within one iteration
            model = self._kmeans(n_clusters=len(start), init=start, n_init=1, max_iter=1, tol=1e-30, output_type="cupy")
            model.fit(data)
            return model.cluster_centers_, model.labels_, float(model.inertia_)

        return iterate_lloyd(self.xp, iterate, pixels, centroids=centroids, max_iter=max_iter, tol=tol)

    def index_points(self, points: Any, *, n_neighbors: int) -> Any:
        # cuML searches in float32: a few candidates more, so that ranking them in float64 can mend its order
        candidates = min(n_neighbors + 8, len(points))
        algorithm = "rbc" if points.shape[1] in (2, 3) and candidates**2 <= len(points) else "brute"
        return points, self._neighbors(n_neighbors=candidates, algorithm=algorithm, output_type="cupy").fit(points)

    def find_nearest(self, index: Any, queries: Any, *, n_neighbors: int, workers: int) -> tuple[Any, Any]:
        from niseg_gpu.kernels.candidates import rank_candidates

        points, model = index
        candidates = model.kneighbors(queries, return_distance=False)
        return rank_candidates(points, queries, candidates, n_neighbors=n_neighbors, xp=self.xp)

    def from_host(self, block: np.ndarray) -> Any:
        return self.xp.asarray(np.ascontiguousarray(block))

    def to_host(self, block: Any) -> np.ndarray:
        return self.xp.asnumpy(block)

    def synchronize(self) -> None:
        self.xp.cuda.get_current_stream().synchronize()

    def count_memory(self) -> int:
        return self.xp.cuda.runtime.memGetInfo()[1]

    def describe(self) -> str:
        properties = self.xp.cuda.runtime.getDeviceProperties(self.xp.cuda.Device().id)
        return f"{properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.0f} GiB"


@cache
def _say_library_is_taken(reason: str) -> None:
    log.warning("kernels is own, but not for this median: %s; cuCIM's is taken", reason)


def neighbours_in_frame(ndim: int) -> np.ndarray:
    """Return the 3×3 pixels around one as a structuring element that reaches into no other frame."""
    structure = np.zeros((3,) * ndim, dtype=bool)
    structure[(1,) * (ndim - 2)] = True
    return structure


class _Standard:
    """CuPy under the array API's names, which not all of its releases carry."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, {"cumulative_sum": "cumsum"}.get(name, name))

    def astype(self, array: Any, dtype: Any) -> Any:
        return array.astype(dtype)


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


CPU, GPU = Cpu(), Gpu()
TWINS: dict[str, Any] = {"numpy": CPU, "cupy": GPU}


def backend_of(block: Any) -> Any:
    """Return the twin that `block` lives on, by the block's own type."""
    root = type(block).__module__.partition(".")[0]
    if root not in TWINS:
        raise TypeError(f"block is a {type(block).__module__}.{type(block).__name__}; allowed: numpy or cupy arrays")
    return TWINS[root]


def select(device: str = "auto", *, kernels: str = "auto") -> tuple[Any, str]:
    """Choose the device, once, at the edge.

    Parameters
    ----------
    device : {"auto", "cpu", "gpu"}
    kernels : {"auto", "library", "own"}
        What is taken where both are there; auto takes our own on the CPU and the library's on a GPU.

    Returns
    -------
    twin : Cpu or Gpu
    reason : str
        Why this one, in words.

    Raises
    ------
    UserError
        ``gpu`` was demanded and none can be used, or ``own`` on a GPU that numba can't use.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise UserError(f"device is {device!r}; allowed: auto, cpu, gpu")
    if kernels not in ("auto", "library", "own"):
        raise UserError(f"kernels is {kernels!r}; allowed: auto, library, own")
    CPU.kernels = "own" if kernels == "auto" else kernels
    if device == "cpu":
        return CPU, "asked for"
    missing = why_no_gpu()
    if not missing:
        if kernels == "own" and not _numba_has_gpu():
            raise UserError("kernels is own, but numba can't use the GPU; install numba-cuda or say kernels: library")
        GPU.kernels = "library" if kernels == "auto" else kernels
        return GPU, "asked for" if device == "gpu" else "a usable GPU was found"
    if device == "gpu":
        raise UserError(
            f"device is gpu, but no GPU can be used: {missing}; install the gpu extra on a GPU node or say device: auto"
        )
    log.info("running on the CPU: %s", missing)
    return CPU, f"no GPU can be used: {missing}"


def why_no_gpu() -> str:
    """Return why the GPU twin can't run here, or an empty string where it can."""
    for package in ("cupy", "cucim", "cuml"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    try:
        if GPU.xp.cuda.runtime.getDeviceCount() == 0:
            return "no CUDA device"
        GPU.xp.zeros(1).sum().item()
        _ = GPU._median, GPU._kmeans, GPU._neighbors
    except Exception as error:  # drivers and loaders fail in ways of their own; the reason is passed on in words
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return ""


def _numba_has_gpu() -> bool:
    from numba import cuda

    return cuda.is_available()


@contextmanager
def limit_threads(workers: int) -> Iterator[None]:
    """Keep the libraries under scikit-learn to `workers` threads inside the block."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=workers):
        yield


def count_cores() -> int:
    """Cores this process may use (a batch system's allotment, not the machine's)."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name as the kernel tells it."""
    import platform

    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
