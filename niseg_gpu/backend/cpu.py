"""The CPU's twin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from niseg_gpu.backend.budget import Budget
from niseg_gpu.backend.machine import count_cores, count_memory_limit, cpu_model
from niseg_gpu.backend.twin import Cleaned, Clusters, Twin, has_nan, neighbours_in_frame


@dataclass(frozen=True)
class Cpu(Twin):
    """NumPy, SciPy and scikit-learn, with numba kernels where those are slow and `kernels` does not say otherwise."""

    kernels: str = "own"
    name = "cpu"
    threads = 2**16  # that may work at once: as many as there are
    keeps_rows = False  # kernels read pixels in any layout
    has_bus = False  # between its memory and the host's
    window_bytes = 0  # a value that `correct_window` works with
    # How the CPU computes a U-Net fastest, see `niseg_gpu.unet.layers.Run`, and the pixels of a tile by dimensions
    network = {
        "dtype": "float32",
        "strip_rows": 64,
        "phases": True,
        "planes": True,
        "own_slopes": True,
        "few_pixels": 64,
    }
    tile_pixels = {2: 1152**2, 3: 112**3}
    weights_a_pixel = 64

    @property
    def uses(self) -> dict[str, str]:
        own, library = "numba (own kernel)", "scipy.ndimage.median_filter"
        spots = f"numba (own kernels), {library} for float64 and integers of 32 bits without sign, and of 64"
        return {
            "overlap_correct": own,
            "remove_spots": spots if self.kernels == "own" else library,
            "detect_spots": "numba (own k-d tree)",
            "kmeans": own if self.kernels == "own" else "sklearn.cluster.KMeans (lloyd)",
            "segment_unet": "jax on the CPU, float32",
            "everything else": "numpy",
        }

    @property
    def cleans_in_pieces(self) -> bool:
        """Whether `replace_spots` goes through frames piece by piece, and holds no whole arrays besides its results."""
        return self.kernels == "own"

    def why_no_own(self) -> str:
        """Return why kernels of our own can't run on the device, or an empty string where they can."""
        return ""

    @property
    def sums_changes(self) -> bool:
        """Whether `assign_and_sum` takes ``before`` and ``memory``."""
        return self.kernels == "own"

    @property
    def xp(self) -> Any:
        return np

    def median(self, image: np.ndarray, *, size: tuple[int, ...]) -> np.ndarray:
        """Running median over a window of `size` per axis, the border value repeated outside."""
        from niseg_gpu.kernels import median, median_volume, median_wide

        if self.kernels == "own" and median.covers_on_cpu(image.dtype, size):
            return median.median_frames(image, size=size[-1])
        if self.kernels == "own" and median_volume.covers_volume(image.dtype, size):
            return median_volume.median_volume(image)
        if self.kernels == "own" and median_wide.covers_wide(image.dtype, size):
            return median_wide.median_wide(image, size=size)
        from scipy.ndimage import median_filter

        return median_filter(image, size=size, mode="nearest")

    def clean_spots(
        self, image: np.ndarray, *, size: tuple[int, ...], threshold: float, kind: str, own: tuple[slice, ...] = ()
    ) -> Cleaned:
        """Replace what lies farther than `threshold` from the running median; see `niseg_gpu.spots.remove_spots`.

        `size` is the window per axis; of the spots found, those in `own` are counted, all by default.
        """
        from niseg_gpu.kernels import median, spots_xp

        if has_nan(image, xp=np):
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

    def sum_frames(self, frames: np.ndarray) -> np.ndarray:
        """Sum of float frames in float64."""
        from niseg_gpu.kernels.sums import sum_frames_cpu

        return sum_frames_cpu(frames)

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

        return start_jax(cpu_model(), devices=count_cores()).devices("cpu")[0]

    def to_jax(self, block: np.ndarray) -> Any:
        """The block for JAX on this device."""
        from niseg_gpu.xla import start_jax

        device = self.jax_device
        return start_jax(cpu_model()).device_put(np.ascontiguousarray(block), device)

    def from_jax(self, array: Any) -> np.ndarray:
        return np.array(array)

    def free_bytes(self) -> int:
        """Memory of the device that a network can have."""
        return self.read_budget().for_networks

    def make_room(self, nbytes: int) -> None:
        """Let go of what no array uses, where a network that needs so many bytes would not find them else."""

    def read_budget(self) -> Budget:
        """Who holds how much of the device's memory."""
        from niseg_gpu.xla import free_host_bytes

        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = free_host_bytes()
        return Budget(total, free, arrays=0, arrays_idle=0, networks=0, networks_idle=0, networks_most=total)

    def from_host(self, block: np.ndarray) -> np.ndarray:
        """Bring a block to the device, in the machine's byte order."""
        return block.astype(block.dtype.newbyteorder("="), copy=False)

    def to_host(self, block: np.ndarray) -> np.ndarray:
        return np.asarray(block)

    def synchronize(self) -> None:
        """Wait until the device has done what it was told; a CPU has."""

    def count_memory(self) -> int:
        """Bytes that arrays can have on this device; on the host all that this process may use.

        More would be swapped, or end the process where a batch system or a container limits it.
        """
        return count_memory_limit()

    def describe(self) -> str:
        return f"{cpu_model()}, {count_cores()} cores"
