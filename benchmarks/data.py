"""The data of the measurements: a simulated time-of-flight run and starting centroids, made once and kept.

The folder is the one that ``NISEG_BENCH_DATA`` names; the runner sets it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.simulate.tof import simulate_tof

SIZES = {
    "small": {"n_bins": 60, "height": 64, "width": 64},
    "full": {"n_bins": 916, "height": 512, "width": 512},
}
N_CLUSTERS, ITERATIONS, THRESHOLD = 10, 20, 200
SEED = 2018
SEEDING_ROWS = 16


def shape_of_run(size: str, *, bins: int = 916) -> dict[str, int]:
    """Bins, height and width of a run; a small one has few bins, in the same proportion."""
    shape = SIZES[size]
    return {**shape, "n_bins": shape["n_bins"] * bins // 916}


def prepare_run(size: str, *, bins: int = 916) -> Path:
    """Return the folder of a run's frames, simulated where it does not exist yet."""
    if not os.environ.get("NISEG_BENCH_DATA"):
        raise UserError("NISEG_BENCH_DATA names no folder for the data of the measurements; set it")
    shape = shape_of_run(size, bins=bins)
    folder = Path(os.environ["NISEG_BENCH_DATA"]) / "tof-{n_bins}x{height}x{width}".format(**shape)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        simulate_tof(folder, open_beam=False, seed=SEED, **shape)
    return folder / "sample"


def prepare_centroids(size: str, *, bins: int = 916) -> Path:
    """Return the file of (10, N) float32 centroids that both sides start from: k-means++ on corrected, clean rows."""
    run = prepare_run(size, bins=bins)
    path = run.parent / f"centroids-{N_CLUSTERS}.npy"
    if not path.exists():
        from sklearn.cluster import kmeans_plusplus

        from . import plain

        counts, windows = plain.read_stack(run), plain.read_windows(run)
        rows = range(SEEDING_ROWS // 2, counts.shape[1] - 1, counts.shape[1] // SEEDING_ROWS)
        bands = [plain.correct_overlap(counts[:, y - 1 : y + 2], *windows) for y in rows]
        spectra = [plain.collect_spectra(plain.remove_spots(band, THRESHOLD)[0][:, 1]) for band in bands]
        np.save(path, kmeans_plusplus(np.concatenate(spectra), N_CLUSTERS, random_state=SEED)[0])
    return path


def prepare_counts(pixels: int, features: int) -> Path:
    """Return the file of (pixels, features) uint16 counts of six materials, too noisy to settle in a few iterations."""
    path = Path(os.environ["NISEG_BENCH_DATA"]) / f"counts-{pixels}x{features}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(SEED)
        edges = rng.uniform(0, 1, (6, 1))
        means = 400 + 12 * np.tanh((np.linspace(0, 1, features) - edges) * 40)
        counts = np.lib.format.open_memmap(path, "w+", np.uint16, (pixels, features))
        for first in range(0, pixels, 4096):
            piece = slice(first, min(first + 4096, pixels))
            materials = rng.integers(0, len(edges), piece.stop - first)
            counts[piece] = rng.poisson(means[materials] * rng.uniform(0.97, 1.03, (len(materials), 1)))
    return path
