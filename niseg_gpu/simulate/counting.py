"""One time bin of an MCP detector, compiled."""

from __future__ import annotations

import numpy as np

from niseg_gpu.simulate.mcp_files import INT16_MAX
from niseg_gpu.simulate.noise import BLOCK, COUNT, MEAN, WORK, draw_block, f32, fill_words, i32, kept, u32

FREE = WORK


@kept
def count_bin(profile, sort, passing, dark, n_triggers, overlap, hits, frame, first, last, k0, k1, index):
    """Count one bin in a range of blocks and add to the hits of the window; return counts and values clipped.

    Parameters
    ----------
    profile : (P,) ndarray of float32
        Beam profile, 0 where the detector is dead; P is a whole number of blocks.
    sort : (P,) ndarray of int32
        Which value of `passing` holds for the pixel.
    passing : (K,) ndarray of float32
        Neutrons per trigger that reach a pixel of each sort where the profile is 1.
    dark : float32
        Dark counts per trigger of a pixel that is not dead.
    n_triggers : float32
        Triggers of the window.
    overlap : bool
        Whether a pixel that was hit is blind until the window closes.
    hits : (P,) ndarray of float32
        Counts since the window opened.
    frame : (P,) ndarray of uint16
        Counts of the bin, the bytes of big-endian int16.
    first, last : int
        Blocks to do.
    k0, k1, index : uint32
        Key of the random numbers and number of the bin.
    """
    words, work = np.empty(BLOCK, np.uint32), np.empty(WORK + BLOCK, np.float32)
    total, n_clipped = 0, 0
    for b in range(first, last):
        fill_words(words, k0, k1, b, index)
        start = b * BLOCK
        for j in range(BLOCK):
            work[MEAN + j] = passing[sort[start + j]]
        for j in range(BLOCK):
            reach = profile[start + j]
            work[MEAN + j] = work[MEAN + j] * reach + (dark if reach > f32(0) else f32(0))
        for j in range(BLOCK):
            work[FREE + j] = n_triggers - hits[start + j]
        if overlap:
            # Of the triggers that still find the pixel awake, 1 - exp(-mean) hit it.
            for j in range(BLOCK):
                m = work[MEAN + j]
                work[MEAN + j] = work[FREE + j] * m * (f32(1) - m * f32(1 / 2) * (f32(1) - m * f32(1 / 3)))
        else:
            for j in range(BLOCK):
                work[MEAN + j] *= n_triggers
        draw_block(words, work)
        if overlap:
            for j in range(BLOCK):
                work[COUNT + j] = min(work[COUNT + j], work[FREE + j])
            for j in range(BLOCK):
                hits[start + j] += work[COUNT + j]
        over, part = i32(0), i32(0)
        for j in range(BLOCK):
            over += i32(work[COUNT + j] > f32(INT16_MAX))
        for j in range(BLOCK):
            n = i32(min(work[COUNT + j], f32(INT16_MAX)))
            part += n
            frame[start + j] = np.uint16(u32(u32(u32(n) << u32(8)) | u32(u32(n) >> u32(8))) & u32(0xFFFF))
        n_clipped += over
        total += part
    return total, n_clipped
