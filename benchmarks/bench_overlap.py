"""Restoring the counts that an MCP detector lost to its own earlier hits."""

from __future__ import annotations

import numpy as np

from niseg_gpu.correct import overlap_correct

from . import ours, plain
from .data import prepare_run


class Overlap:
    """Raw counts in memory to corrected ones in float32."""

    params = (["small", "full"],)
    param_names = ["size"]
    reference = "time_numpy"
    equal = "to 1e-5 relative"
    included = "memory to memory; no disk, no start-up"
    warm_up = True
    devices = ("cpu", "gpu")
    on_host = ("numpy", "ours_one_thread")

    def setup(self, size: str) -> None:
        run = prepare_run(size)
        self.counts = plain.read_stack(run)
        self.windows, self.triggers = plain.read_windows(run)
        self.shape, self.dtype, self.nbytes = self.counts.shape, self.counts.dtype, self.counts.nbytes

    def time_numpy(self, size: str) -> np.ndarray:
        return plain.correct_overlap(self.counts, self.windows, self.triggers)

    def time_ours_one_thread(self, size: str) -> np.ndarray:
        return overlap_correct(self.counts, windows=self.windows, shutter_counts=self.triggers)

    def time_ours(self, size: str) -> np.ndarray:
        attrs = {"shutter_windows": self.windows, "shutter_counts": self.triggers}
        return ours.apply_step(self.counts, {"overlap_correct": {}}, **attrs)[0]

    def least(self, side: str) -> dict[str, float]:
        """Two bytes of each count are read and four written."""
        name = "memory" if side == "ours" else "memory, one thread"
        return {name: self.nbytes + 4 * self.counts.size}

    def assert_equal(self, corrected: np.ndarray, expected: np.ndarray) -> None:
        np.testing.assert_allclose(corrected, expected, rtol=1e-5, atol=0)
