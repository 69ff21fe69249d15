"""Centroids as the k-means kernels on the CPU read them: made once for a pass, whatever the number of its calls."""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.kernels.lanes import QUAD
from niseg_gpu.kernels.margins import Doubt, Shift, measure_doubt, measure_shift
from niseg_gpu.kernels.tiles import aligned_zeros

RUN, RUNS = 16, 8  # features summed one after another, then so many of these sums, then those
_LOCK = threading.Lock()  # all threads begin a pass together, and the products below may themselves take all cores


class Panel(NamedTuple):
    """Centroids.

    Attributes
    ----------
    values : float32 array, flat
        (fours, features, 4): four centroids side by side, zeros beyond the last.
    norms : (k,) float32 array
        Their squares.
    doubt : Doubt
    """

    values: Any
    norms: Any
    doubt: Doubt


def arrange_centroids(centroids: np.ndarray) -> Panel:
    """Arrange (k, features) float32 centroids."""
    with _LOCK:
        return _arrange(_read(centroids), len(centroids))


def compare_centroids(before: np.ndarray, now: np.ndarray) -> Shift:
    """Return `measure_shift` of (k, features) float32 centroids."""
    with _LOCK:
        return _compare(_read(before), _read(now), len(now))


def _read(centroids: np.ndarray) -> bytes:
    return np.asarray(centroids, np.float32).tobytes()


@lru_cache(maxsize=1)
def _arrange(content: bytes, k: int) -> Panel:
    centroids = np.frombuffer(content, np.float32).reshape(k, -1)
    features, fours = centroids.shape[1], math.ceil(k / QUAD)
    norms = np.einsum("ij,ij->i", centroids, centroids, dtype=np.float64).astype(np.float32)
    values = aligned_zeros((fours, features, QUAD), np.float32)
    for c, centroid in enumerate(centroids):
        values[c // QUAD, :, c % QUAD] = centroid
    steps = min(features, RUN) + RUNS + math.ceil(features / (RUN * RUNS))
    doubt = measure_doubt(centroids, steps=steps)
    return Panel(values.reshape(-1), norms, doubt)


@lru_cache(maxsize=1)
def _compare(before: bytes, now: bytes, k: int) -> Shift:
    return measure_shift(*(np.frombuffer(content, np.float32).reshape(k, -1) for content in (before, now)))
