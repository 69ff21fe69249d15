"""Turning a (bin, pixel) block into rows of spectra, tile by tile so that both sides stay in the cache."""

from __future__ import annotations

import numba
import numpy as np

TILE = 32


@numba.njit(nogil=True, cache=True)
def _transpose(block, rows):
    bins, pixels = block.shape
    for p0 in range(0, pixels, TILE):
        p1 = min(p0 + TILE, pixels)
        for b0 in range(0, bins, TILE):
            b1 = min(b0 + TILE, bins)
            for p in range(p0, p1):
                for b in range(b0, b1):
                    rows[p, b] = block[b, p]


def write_spectra_cpu(block: np.ndarray, rows: np.ndarray) -> None:
    """Write `block` (bins, pixels) into `rows` (pixels, bins) float32."""
    _transpose(np.ascontiguousarray(block), rows)
