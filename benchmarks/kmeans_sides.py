"""The sides of the k-means measurement; run by itself, one of them, and the memory that it takes beyond the data.

``python kmeans_sides.py SIDE DATA --n-clusters 10 --iterations 20`` prints that memory over the data's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

SIDES = ("sklearn", "ours", "ours_uint16", "ours_frames")


def read_pixels(side: str, path: Path) -> np.ndarray:
    """Read (pixels, features) counts into memory as the side takes them; nothing else is taken on the way."""
    counts = np.load(path, mmap_mode="r")  # for its shape alone: pages of it would count as memory
    n, features = counts.shape
    shape = (features, n) if side == "ours_frames" else (n, features)
    pixels = np.empty(shape, np.uint16 if side == "ours_uint16" else np.float32)
    rows = pixels.T if side == "ours_frames" else pixels
    for first in range(0, n, 256):
        some = min(256, n - first)
        offset = counts.offset + first * features * counts.itemsize
        rows[first : first + some] = np.fromfile(path, counts.dtype, some * features, offset=offset).reshape(some, -1)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("data", type=Path)
    parser.add_argument("--n-clusters", type=int, required=True)
    parser.add_argument("--iterations", type=int, required=True)
    options = parser.parse_args()

    pixels, start = read_pixels(options.side, options.data), choose_start(options.data, options.n_clusters)
    few = 4 * len(start)
    part = pixels[:, :few] if options.side == "ours_frames" else pixels[:few]
    fit_side(options.side, part.copy(), start, iterations=1)  # kernels loaded, threads started
    before = _forget_peak()
    fit_side(options.side, pixels, start, iterations=options.iterations)
    print((_read_status("VmHWM") - before) / pixels.nbytes)


def _forget_peak() -> int:
    """Begin to look for the peak anew; return the bytes in memory.

    The maximum that ``getrusage`` tells is no help: a process inherits that of the one that started it.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return _read_status("VmRSS")


def _read_status(name: str) -> int:
    """Bytes of memory by the kernel's name for them; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


if __name__ == "__main__":
    main()
