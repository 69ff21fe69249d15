"""Centroids as the k-means kernels on the CPU read them: made once for a pass, whatever the number of its calls."""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding

from niseg_gpu.kernels.margins import Doubt, Shift, measure_doubt, measure_shift
from niseg_gpu.kernels.spectra import LANES
from niseg_gpu.kernels.tiles import aligned_zeros
from niseg_gpu.kernels.vectors import SIDE

RUN = 128  # features summed one after another, where centroids are side by side
# centroids from which on they are; fewer leave lanes empty, and narrower vectors than AVX-512's gain nothing by it
ABREAST = 9 if binding.get_host_cpu_features().get("avx512f") else 2**31
_LOCK = threading.Lock()  # all threads begin a pass together, and the products below may themselves take all cores


class Panel(NamedTuple):
    """Centroids.

    Attributes
    ----------
    values : float32 array, flat
        By blocks of features, as tiles are, and `room` centroids, zeros beyond the last: one after another,
        (blocks, room, width), or abreast, in vectors, (blocks, room / 16, width, 16).
    abreast : bool
    norms : (room,) float32 array
        Their squares, infinite beyond the last: `room` is a multiple of 16.
    doubt : Doubt
    """

    values: Any
    abreast: bool
    norms: Any
    doubt: Doubt


def arrange_centroids(centroids: np.ndarray, *, blocks: int, width: int) -> Panel:
    """Arrange (k, features) float32 centroids for tiles of `blocks` of `width` features."""
    with _LOCK:
        return _arrange(_read(centroids), len(centroids), blocks, width, len(centroids) >= ABREAST)


def compare_centroids(before: np.ndarray, now: np.ndarray) -> Shift:
    """Return `measure_shift` of (k, features) float32 centroids."""
    with _LOCK:
        return _compare(_read(before), _read(now), len(now))


def _read(centroids: np.ndarray) -> bytes:
    return np.asarray(centroids, np.float32).tobytes()


@lru_cache(maxsize=1)
def _arrange(content: bytes, k: int, blocks: int, width: int, abreast: bool) -> Panel:
    centroids = np.frombuffer(content, np.float32).reshape(k, -1)
    room = math.ceil(k / LANES) * LANES
    norms = np.full(room, np.inf, np.float32)
    norms[:k] = np.einsum("ij,ij->i", centroids, centroids, dtype=np.float64)
    values = aligned_zeros((blocks, room, width), np.float32)
    for b in range(blocks):
        piece = centroids[:, b * width : (b + 1) * width]
        values[b, :k, : piece.shape[1]] = piece
    if abreast:
        turned = aligned_zeros((blocks, room // LANES, width, LANES), np.float32)
        turned[...] = values.reshape(blocks, room // LANES, LANES, width).swapaxes(2, 3)
        values = turned
    steps = min(width, RUN) + blocks * math.ceil(width / RUN) if abreast else width / SIDE + blocks
    doubt = measure_doubt(centroids, steps=steps, square_steps=width / SIDE)
    return Panel(values.reshape(-1), abreast, norms, doubt)


@lru_cache(maxsize=1)
def _compare(before: bytes, now: bytes, k: int) -> Shift:
    return measure_shift(*(np.frombuffer(content, np.float32).reshape(k, -1) for content in (before, now)))
