"""The sides of the k-means measurement, and the counts that they read, so that no page of a file counts as memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SIDES = ("sklearn", "ours", "ours_uint16", "ours_frames")


class Rows:
    """(pixels, features) counts in a file, read by rows."""

    def __init__(self, path: Path) -> None:
        counts = np.load(path, mmap_mode="r")  # for its head alone: pages of it would count as memory
        self.path, self.shape, self.dtype, self.ndim, self.offset = path, counts.shape, counts.dtype, 2, counts.offset

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        first, stop, _ = rows.indices(self.shape[0])
        size = (stop - first) * self.shape[1]
        offset = self.offset + first * self.shape[1] * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, size, offset=offset).reshape(-1, self.shape[1])[:, columns]


def read_pixels(side: str, path: Path) -> np.ndarray:
    """Read (pixels, features) counts into memory as the side takes them; nothing else is taken on the way."""
    counts = Rows(path)
    n, features = counts.shape
    shape = (features, n) if side == "ours_frames" else (n, features)
    pixels = np.empty(shape, np.uint16 if side == "ours_uint16" else np.float32)
    rows = pixels.T if side == "ours_frames" else pixels
    for first in range(0, n, 256):
        rows[first : first + 256] = counts[first : first + 256]
    return pixels


def choose_start(path: Path, n_clusters: int) -> np.ndarray:
    """Some pixels from all over the counts, float32."""
    counts = np.load(path, mmap_mode="r")
    return counts[np.linspace(0, len(counts) - 1, n_clusters).astype(int)].astype(np.float32)


def fit_side(side: str, pixels: np.ndarray, start: np.ndarray, *, iterations: int) -> Any:
    """Fit an estimator from given centroids, for a fixed number of iterations."""
    if side == "sklearn":
        from sklearn.cluster import KMeans

        # it centres the pixels in place and back: with a copy it would take their memory twice
        return KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0, copy_x=False).fit(pixels)
    from niseg_gpu.kmeans.estimator import KMeans as OurKMeans

    axis = 0 if side == "ours_frames" else -1
    return OurKMeans(len(start), init=start, max_iter=iterations, tol=0, feature_dim=axis).fit(pixels)
