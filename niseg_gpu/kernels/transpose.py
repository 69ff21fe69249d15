"""Turning a (bin, pixel) block into rows of spectra, tile by tile so that both sides stay in the cache."""

from __future__ import annotations

import numpy as np

from niseg_gpu.kernels.compiled import compiled
from niseg_gpu.kernels.vectors import SIDE, turn_square

TILE_PIXELS, TILE_BINS = 128, 128


@compiled
def _transpose(flat, bins, pixels, zeros, rows, row_step):  # type: ignore[no-untyped-def]
    """Values lie in `flat` bin by bin, and go to `rows` pixel by pixel, `row_step` apart; `zeros` for every bin."""
    whole_pixels, whole_bins = pixels // SIDE * SIDE, bins // SIDE * SIDE
    for p0 in range(0, whole_pixels, TILE_PIXELS):
        for b0 in range(0, whole_bins, TILE_BINS):
            for b in range(b0, min(b0 + TILE_BINS, whole_bins), SIDE):
                for p in range(p0, min(p0 + TILE_PIXELS, whole_pixels), SIDE):
                    turn_square(flat, b * pixels + p, pixels, zeros, b, rows, p * row_step + b, row_step)
    for b in range(bins):
        for p in range(whole_pixels if b < whole_bins else 0, pixels):
            rows[p * row_step + b] = flat[b * pixels + p]


def write_spectra_cpu(block: np.ndarray, rows: np.ndarray) -> None:
    """Write `block` (bins, pixels) into `rows` (pixels, bins), float32 or in the dtype of `block`.

    The values of a row follow each other; the rows may lie farther apart.
    """
    bins, pixels = block.shape
    if block.dtype != rows.dtype and (rows.dtype != np.float32 or block.dtype == np.float16):
        block = block.astype(rows.dtype)
    flat = np.ascontiguousarray(block, block.dtype.newbyteorder("=")).reshape(-1)
    flat.flags.writeable = False  # one signature to compile, whether or not the caller may write to it
    if flat.size:
        step = rows.strides[0] // rows.itemsize
        line = np.lib.stride_tricks.as_strided(rows, ((pixels - 1) * step + bins,), (rows.itemsize,))
        _transpose(flat, bins, pixels, np.zeros(bins, rows.dtype), line, step)
