"""The two devices as twins with the same members; the only module that names their libraries.

Choose once with `select`; after that follow the data: ``backend_of(block)`` gives the twin of the block's own
type, so no method asks where it runs. A twin never changes: another choice of kernels is another twin, which whoever
hands blocks to methods names with `working_on`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.errors import UserError

QUERIES = 2**18  # neighbours of so many are held at once on a GPU

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


class Cleaned(NamedTuple):
    """What the cleaning of spots gives.

    Attributes
    ----------
    image : (..., Y, X) array
    spots : (..., Y, X) bool array
    number : () array of integer
        Spots in the part of the image that was asked for; on a GPU nobody has waited for it.
    has_nan : bool
        Whether there is NaN in the image; the other three then mean nothing.
    """

    image: Any
    spots: Any
    number: Any
    has_nan: bool


@dataclass(frozen=True)
class _Twin:
    """What was chosen; it travels to other processes without the libraries imported since.

    Attributes
    ----------
    kernels : {"own", "library"}
    """

    kernels: str

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kernels,)


@dataclass(frozen=True)
class Cpu(_Twin):
    """NumPy, SciPy and scikit-learn, with numba kernels where those are slow and `kernels` does not say otherwise."""

    kernels: str = "own"
    name = "cpu"
    threads = 2**16  # that may work at once: as many as there are
    keeps_rows = False  # kernels read pixels in any layout
    has_bus = False  # between its memory and the host's
    # How the CPU computes a U-Net fastest, see `niseg_gpu.unet.layers.Run`, and the pixels of a tile by dimensions
    network = {"dtype": "float32", "strip_rows": 64, "phases": True, "planes": True}
    tile_pixels = {2: 1152**2, 3: 112**3}

    @property
    def uses(self) -> dict[str, str]:
        own, library = "numba (own kernel)", "scipy.ndimage.median_filter"
        spots = f"numba (own kernels) for frames of sizes 3, 5, 7 and volumes of 3, {library} for others"
        return {
            "overlap_correct": own,
            "remove_spots": spots if self.kernels == "own" else library,
            "detect_spots": "numba (own k-d tree)",
            "kmeans": own if self.kernels == "own" else "sklearn.cluster.KMeans (lloyd)",
            "segment_unet": "jax on the CPU, float32",
            "everything else": "numpy",
        }

    def why_no_own(self) -> str:
        """Return why kernels of our own can't run on the device, or an empty string where they can."""
        return ""

    @property
    def xp(self) -> Any:
        return np

    def median(self, image: np.ndarray, *, size: tuple[int, ...]) -> np.ndarray:
        """Running median over a window of `size` per axis, the border value repeated outside."""
        from niseg_gpu.kernels import median, median_volume

        if self.kernels == "own" and median.covers_on_cpu(image.dtype, size):
            return median.median_frames(image, size=size[-1])
        if self.kernels == "own" and median_volume.covers_volume(image.dtype, size):
            return median_volume.median_volume(image)
        from scipy.ndimage import median_filter

        return median_filter(image, size=size, mode="nearest")

    def clean_spots(
        self, image: np.ndarray, *, size: tuple[int, ...], threshold: float, kind: str, own: tuple[slice, ...] = ()
    ) -> Cleaned:
        """Replace what lies farther than `threshold` from the running median; see `niseg_gpu.spots.remove_spots`.

        `size` is the window per axis; of the spots found, those in `own` are counted, all by default.
        """
        from niseg_gpu.kernels import median, spots_xp

        if has_nan(image):
            return Cleaned(image, None, None, True)
        if self.kernels == "own" and median.covers_on_cpu(image.dtype, size) and threshold >= 0:
            cleaned, spots = median.clean_frames(image, size=size[-1], threshold=threshold, kind=kind)
        else:
            settings = {"xp": np, "median": self.median, "size": size, "threshold": threshold, "kind": kind}
            cleaned, spots = spots_xp.clean_spots_xp(image, **settings)
        return Cleaned(cleaned, spots, spots_xp.count_own(spots, own), False)

    def replace_spots(self, image: np.ndarray, *, window: tuple[int, ...], **options: Any) -> tuple[Any, Any, Any]:
        """Replace spots with any options, and count them; see `niseg_gpu.kernels.spots_xp.replace_spots_xp`."""
        from niseg_gpu.kernels import median, spots_cpu, spots_xp

        if self.kernels == "own" and image.dtype in median.DTYPES and all(side == 1 for side in window[:-3]):
            twin = {"median": self.median, "label": self.label}
            return spots_cpu.replace_spots_cpu(image, **twin, window=window, **options)
        return spots_xp.replace_spots_xp(image, backend=self, window=window, **options)

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

    def empty_rows(self, n: int, features: int, dtype: Any) -> np.ndarray:
        """Room for (n, features) pixels, as `assign_and_sum` reads them best."""
        return np.empty((n, features), dtype)

    def pin_rows(self, rows: np.ndarray) -> np.ndarray:
        """Copy pixels to where the device gets them fastest from, in the host's memory."""
        return rows.copy()

    def bring(self, blocks: Any) -> Iterator[tuple[Any, np.ndarray]]:
        """Give (name, block) pairs from the host's memory on the device; the next is on its way meanwhile."""
        yield from blocks

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
        """One pass of k-means: nearest centroids, and each cluster's sum; see `kernels.lloyd.assign_and_sum_cpu`.

        Centroids and mean come from the host on either device.
        """
        from niseg_gpu.kernels import lloyd, lloyd_xp

        if self.kernels == "own":
            return lloyd.assign_and_sum_cpu(pixels, **how)
        return lloyd_xp.assign_and_sum_xp(pixels, **how, xp=np)

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

    def index_voters(self, points: np.ndarray, *, first: np.ndarray, before: np.ndarray, n_neighbors: int) -> Any:
        """Prepare piles of equal points for `find_votes`.

        Parameters
        ----------
        points : (piles, features) float32 ndarray
            One of each pile, all different, on the host as all of these.
        first : (piles + 1,) int64 ndarray
            Where each pile's points start.
        before : (points + 1,) int64 ndarray
            Spots among the points before each.
        n_neighbors : int
            At most the number of points.
        """
        from niseg_gpu.kernels.votes import index_voters

        return index_voters(points, first=first, before=before)

    def find_votes(
        self, voters: Any, queries: np.ndarray, *, n_neighbors: int, by_distance: bool, workers: int
    ) -> tuple[Any, Any]:
        """Votes of each query's nearest points for spots and against; of points equally far the first vote."""
        from niseg_gpu.kernels.votes import find_votes

        return find_votes(voters, queries, n_neighbors=n_neighbors, by_distance=by_distance, workers=workers)

    @cached_property
    def jax_device(self) -> Any:
        """Where JAX computes what lies on this device."""
        from niseg_gpu.xla import start_jax

        return start_jax(cpu_model()).devices("cpu")[0]

    def to_jax(self, block: np.ndarray) -> Any:
        """The block for JAX on this device."""
        from niseg_gpu.xla import start_jax

        device = self.jax_device
        return start_jax(cpu_model()).device_put(np.ascontiguousarray(block), device)

    def from_jax(self, array: Any) -> np.ndarray:
        return np.array(array)

    def free_bytes(self) -> int:
        """Memory of the device that can still be had."""
        from niseg_gpu.xla import free_host_bytes

        return free_host_bytes()

    def from_host(self, block: np.ndarray) -> np.ndarray:
        """Bring a block to the device, in the machine's byte order."""
        return block.astype(block.dtype.newbyteorder("="), copy=False)

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


@dataclass(frozen=True)
class Gpu(_Twin):
    """CuPy, cuCIM and cuML on one CUDA device, or kernels of our own where `kernels` says so."""

    kernels: str = "library"
    name = "gpu"
    threads = 1  # its kernels are parallel themselves
    keeps_rows = True  # of pixels that lay otherwise
    has_bus = True
    network = {"dtype": "bfloat16", "strip_rows": 0, "phases": True, "planes": False}
    tile_pixels = {2: 2048**2, 3: 384**3}

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
        return importlib.import_module("cuml.cluster").KMeans

    @cached_property
    def _neighbors(self) -> Any:
        return importlib.import_module("cuml.neighbors").NearestNeighbors

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
        if has_nan(image):
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

    def sum_by_label(self, rows: Any, labels: Any, *, n_labels: int) -> Any:
        from niseg_gpu.kernels.sums import sum_by_label_xp

        return sum_by_label_xp(rows, labels, xp=self.xp, n_labels=n_labels)

    def as_rows(self, block: Any, *, axis: int) -> Any:
        rows = self.xp.moveaxis(self.xp.asarray(block), axis, -1).reshape(-1, block.shape[axis])
        if self.kernels != "own":
            return self.xp.ascontiguousarray(rows)
        if rows.strides[1] == rows.itemsize and rows.strides[0] >= rows.shape[1] * rows.itemsize:
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
        return start_jax(cpu_model()).dlpack.from_dlpack(self.xp.ascontiguousarray(block))

    def from_jax(self, array: Any) -> Any:
        return self.xp.from_dlpack(array)

    def free_bytes(self) -> int:
        free, _ = self.xp.cuda.runtime.memGetInfo()
        return free

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
        return self.xp.cuda.runtime.memGetInfo()[1]

    def describe(self) -> str:
        properties = self.xp.cuda.runtime.getDeviceProperties(self.xp.cuda.Device().id)
        return f"{properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.0f} GiB"


@cache
def _say_other_is_taken(why: str) -> None:
    log.warning("%s", why)


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
_at_work: ContextVar[Any] = ContextVar("at_work", default=None)


def backend_of(block: Any) -> Any:
    """Return the twin that `block` lives on, by the block's own type: the one at work where it is of that device."""
    root = type(block).__module__.partition(".")[0]
    if root not in TWINS:
        raise TypeError(f"block is a {type(block).__module__}.{type(block).__name__}; allowed: numpy or cupy arrays")
    twin, at_work = TWINS[root], _at_work.get()
    return at_work if at_work is not None and at_work.name == twin.name else twin


@contextmanager
def working_on(twin: Any) -> Iterator[None]:
    """Inside, this thread's blocks of the twin's device are worked on by it, with the kernels chosen for it."""
    token = _at_work.set(twin)
    try:
        yield
    finally:
        _at_work.reset(token)


def has_nan(image: Any) -> bool:
    """Whether there is NaN in an image; of Inf it may say so too, for Inf - Inf looks like NaN."""
    xp = backend_of(image).xp
    return image.dtype.kind == "f" and bool(xp.isnan(xp.sum(image)))


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
    if device == "cpu":
        return with_kernels(CPU, kernels), "asked for"
    missing = why_no_gpu()
    if not missing:
        return with_kernels(GPU, kernels), "asked for" if device == "gpu" else "a usable GPU was found"
    if device == "gpu":
        raise UserError(
            f"device is gpu, but no GPU can be used: {missing}; install the gpu extra on a GPU node or say device: auto"
        )
    twin = with_kernels(CPU, kernels)
    log.info("running on the CPU: %s", missing)
    return twin, f"no GPU can be used: {missing}"


def with_kernels(twin: Any, kernels: str) -> Any:
    """Return the twin that takes these kernels, as `select` knows them; the one given stays as it is."""
    if kernels not in ("auto", "library", "own"):
        raise UserError(f"kernels is {kernels!r}; allowed: auto, library, own")
    kernels = type(twin).kernels if kernels == "auto" else kernels
    missing = twin.why_no_own() if kernels == "own" else ""
    if missing:
        raise UserError(f"kernels is own, but {missing} or say kernels: library")
    return twin if twin.kernels == kernels else replace(twin, kernels=kernels)


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
