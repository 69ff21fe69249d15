"""The MCP overlap correction: compiled for the CPU, whole-array for a GPU. Both give the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from niseg_gpu.kernels.compiled import compiled


@compiled
def _correct_window(counts, out, first, last, triggers, scale):
    pixels = counts.shape[1]
    earlier = np.zeros(pixels, np.float32)
    least = np.float32(1.0 / triggers)
    per_trigger = np.float32(1.0 / triggers)
    spent = np.zeros(pixels, np.int32)
    for i in range(first, last + 1):
        for p in range(pixels):
            live = np.float32(1.0) - earlier[p] * per_trigger
            if live < least:
                live = least
                spent[p] += 1
            n = np.float32(counts[i, p])
            out[i, p] = n / live * scale
            earlier[p] += n
    return spent


def correct_window_cpu(
    counts: np.ndarray, out: np.ndarray, *, first: int, last: int, triggers: int, scale: float
) -> np.ndarray:
    """Correct bins `first` to `last` of one shutter window into `out`.

    Parameters
    ----------
    counts : (N, ...) ndarray
        Raw counts.
    out : (N, ...) float32 ndarray
    triggers : int
        Triggers acquired in this window.
    scale : float
        Factor on the result.

    Returns
    -------
    (...) int32 ndarray
        Values of each pixel that came after it had fired in every trigger; their live fraction is held at one.
    """
    n = len(counts)
    flat, flat_out = np.ascontiguousarray(counts).reshape(n, -1), out.reshape(n, -1)
    spent = _correct_window(flat, flat_out, first, last, float(triggers), np.float32(scale))
    return spent.reshape(counts.shape[1:])


def correct_window_xp(counts: Any, out: Any, *, xp: Any, first: int, last: int, triggers: int, scale: float) -> Any:
    """The same in whole-array calls of the namespace `xp`; see `correct_window_cpu`."""
    window = xp.astype(counts[first : last + 1, ...], xp.float32)
    live = 1 - (xp.cumulative_sum(window, axis=0) - window) * (1 / triggers)
    spent = xp.count_nonzero(live < 1 / triggers, axis=0)
    out[first : last + 1, ...] = window / xp.maximum(live, 1 / triggers) * scale
    return spent
