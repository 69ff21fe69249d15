"""Bringing pixels to the cache: tiles of float32 rows less an offset, whatever the dtype and the layout in memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from niseg_gpu.kernels.compiled import compiled
from niseg_gpu.kernels.lanes import SPAN, turn_listed
from niseg_gpu.kernels.spectra import bring_line
from niseg_gpu.kernels.vectors import SIDE, turn_square

FEATURES = 768  # of a block, summed in one go
TILE_BYTES = 256 * 1024  # where features lie apart: the more pixels, the longer the stretches that are read
LEAST_ROWS, MOST_ROWS = 24, 384  # of a tile
LINE = 64  # bytes
FAST = {"reassoc", "contract", "nsz"}  # lets the compiler sum in lanes, in the same order each time
DTYPES = frozenset(np.dtype(t) for t in ("float32", "uint16", "int16", "uint8"))  # read as they are


@compiled
def gather_rows(flat, origin, row_step, feature_step, rows, mean, tile):  # type: ignore[no-untyped-def]
    """Bring some pixels into a tile (blocks, rows, features of a block), in float32 and less the mean."""
    blocks, tile_rows, width = tile.shape
    lines = tile.reshape(-1)
    for b in range(blocks):
        first = b * width
        n = min(width, mean.size - first)
        if feature_step == 1:
            for r in range(rows):
                bring_line(flat, origin + r * row_step + first, mean, first, n, lines, (b * tile_rows + r) * width)
            continue
        whole_rows, whole = rows // SIDE * SIDE, n // SIDE * SIDE
        for f in range(0, whole, SIDE):
            for r in range(0, whole_rows, SIDE):
                start = origin + (first + f) * feature_step + r
                to = (b * tile_rows + r) * width + f
                turn_square(flat, start, feature_step, mean, first + f, lines, to, width)
        for f in range(n):
            for r in range(0 if f >= whole else whole_rows, rows):
                tile[b, r, f] = np.float32(flat[origin + (first + f) * feature_step + r * row_step]) - mean[first + f]


@compiled
def turn_rows(flat, row_step, numbers, first, rows, mean, tile):  # type: ignore[no-untyped-def]
    """Bring pixels whose features lie together into a tile (features, pixels), in float32 and less the mean.

    Their numbers are those from ``numbers[first]`` on.
    """
    values, across = tile.reshape(-1), tile.shape[1]
    whole_rows, whole = rows // SIDE * SIDE, mean.size // SIDE * SIDE
    for r in range(0, whole_rows, SIDE):
        for f in range(0, whole, SIDE):
            turn_listed(flat, row_step, numbers, first + r, f, mean, values, f * across + r, across)
    for r in range(rows):
        start = numbers[first + r] * row_step
        for f in range(whole if r < whole_rows else 0, mean.size):
            tile[f, r] = np.float32(flat[start + f]) - mean[f]


def cut_features(features: int) -> tuple[int, int]:
    """How many blocks features are cut into, and how many there are in each: whole vectors."""
    blocks = math.ceil(features / FEATURES)
    return blocks, math.ceil(math.ceil(features / blocks) / SIDE) * SIDE


def empty_tile(features: int, *, by_rows: bool) -> np.ndarray:
    """A tile (blocks, rows, features of a block), filled up with zeros to whole vectors."""
    blocks, width = cut_features(features)
    rows = TILE_BYTES // (4 * blocks * width) // LEAST_ROWS * LEAST_ROWS
    return aligned_zeros((blocks, min(max(rows, LEAST_ROWS), LEAST_ROWS if by_rows else MOST_ROWS), width), np.float32)


def empty_lanes(features: int, *, by_rows: bool) -> np.ndarray:
    """A tile (features, pixels), filled up with zeros to whole vectors of features, for one span of pixels or more."""
    width = math.ceil(features / SIDE) * SIDE
    spans = 1 if by_rows else max(1, min(TILE_BYTES // (4 * width * SPAN), MOST_ROWS // SPAN))
    return aligned_zeros((width, spans * SPAN), np.float32)


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that start with a line of the cache, so that no vector lies across two."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(nbytes + LINE, np.uint8)
    skip = -memory.ctypes.data % LINE
    return memory[skip : skip + nbytes].view(dtype).reshape(shape)


def flatten(pixels: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The memory under (n, features) pixels as one line of values, with the steps along both axes.

    Pixels of other dtypes than `DTYPES`, or whose values don't follow each other along either axis, are copied.
    """
    n, features = pixels.shape
    if pixels.dtype not in DTYPES:
        pixels = pixels.astype(np.float32)
    steps = [stride // pixels.itemsize for stride in pixels.strides]
    if features == 1:
        steps[1] = 1
    if 0 in pixels.shape or 1 not in steps or min(steps) < 1:
        pixels, steps = np.ascontiguousarray(pixels), [features, 1]
    length = (n - 1) * steps[0] + (features - 1) * steps[1] + 1 if pixels.size else 0
    flat = np.lib.stride_tricks.as_strided(pixels, (length,), (pixels.itemsize,), writeable=False)
    return flat, steps[0], steps[1]
