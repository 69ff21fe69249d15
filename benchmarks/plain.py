"""The script one writes without this package: frame by frame, with Astropy, NumPy, SciPy and scikit-learn.

Run by itself it takes a time-of-flight run from its FITS frames to labels:
``python plain.py RUN OUT --centroids centroids.npy``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from astropy.io import fits
from scipy.ndimage import median_filter
from sklearn.cluster import KMeans


def read_stack(run: Path) -> np.ndarray:
    """Read the frames of a folder, (N, Y, X) int16."""
    frames = sorted(p for p in Path(run).glob("*.fits") if "SummedImg" not in p.name)
    return np.stack([fits.getdata(frame) for frame in frames])


def read_windows(run: Path) -> tuple[list[tuple[int, int]], list[int]]:
    """Read the first and last bin of each shutter window, and its triggers, from the text files beside the frames."""
    tof = np.loadtxt(next(Path(run).glob("*_Spectra.txt")))[:, 0]
    triggers = np.loadtxt(next(Path(run).glob("*_ShutterCount.txt")))[:, 1].astype(int)
    steps = np.diff(tof)
    starts = [0, *(np.flatnonzero(steps > 1.5 * np.median(steps)) + 1).tolist()]
    stops = [*starts[1:], len(tof)]
    return [(a, b - 1) for a, b in zip(starts, stops, strict=True)], triggers[triggers > 0].tolist()


def correct_overlap(counts: np.ndarray, windows: list[tuple[int, int]], triggers: list[int]) -> np.ndarray:
    """Divide each count by the fraction of triggers in which its pixel was still live, (N, Y, X) float32."""
    corrected = np.empty(counts.shape, np.float32)
    for (first, last), n in zip(windows, triggers, strict=True):
        window = counts[first : last + 1].astype(np.float32)
        earlier = np.cumsum(window, axis=0) - window
        corrected[first : last + 1] = window / np.maximum(1 - earlier / n, 1 / n)
    return corrected


def remove_spots(frames: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Replace values that differ from their 3x3 median by more than `threshold`; return the frames and the mask."""
    cleaned, spots = np.empty_like(frames), np.empty(frames.shape, bool)
    for i, frame in enumerate(frames):
        median = median_filter(frame, 3)
        # int16 minus int16 may wrap, float32 holds it
        spots[i] = np.abs(frame.astype(np.float32) - median) > threshold
        cleaned[i] = np.where(spots[i], median, frame)
    return cleaned, spots


def collect_spectra(frames: np.ndarray) -> np.ndarray:
    """Turn (N, Y, X) frames into one spectrum a row, (Y * X, N)."""
    return np.ascontiguousarray(frames.reshape(len(frames), -1).T)


def cluster_spectra(spectra: np.ndarray, centroids: np.ndarray, iterations: int) -> KMeans:
    """Cluster from given centroids, for a fixed number of iterations."""
    return KMeans(len(centroids), init=centroids, n_init=1, max_iter=iterations, tol=0).fit(spectra)


def average_spectra(spectra: np.ndarray, labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return the mean spectrum of each cluster, (k, N)."""
    return np.stack([spectra[labels == k].mean(axis=0) for k in range(n_clusters)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--centroids", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--threshold", type=float, default=200)
    parser.add_argument("--keep-image", action="store_true")
    options = parser.parse_args()

    counts = read_stack(options.run)
    corrected = correct_overlap(counts, *read_windows(options.run))
    cleaned, _ = remove_spots(corrected, options.threshold)
    spectra = collect_spectra(cleaned)
    centroids = np.load(options.centroids)
    model = cluster_spectra(spectra, centroids, options.iterations)
    labels = model.labels_
    options.out.mkdir()
    np.save(options.out / "labels.npy", labels.reshape(counts.shape[1:]).astype(np.uint8))
    np.save(options.out / "centroids.npy", model.cluster_centers_)
    np.save(options.out / "spectra.npy", average_spectra(spectra, labels, len(centroids)))
    if options.keep_image:
        np.save(options.out / "image.npy", cleaned)


if __name__ == "__main__":
    main()
