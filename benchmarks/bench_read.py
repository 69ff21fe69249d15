"""Reading a run's FITS frames into memory."""

from __future__ import annotations

import numpy as np

from . import ours, plain
from .data import prepare_run


class Read:
    """A folder of FITS frames, one a ToF bin."""

    params = (["small", "full"],)
    param_names = ["size"]
    reference = "time_astropy"
    equal = "identical"
    included = "files in the page cache to memory; no start-up"
    warm_up = True

    def setup(self, size: str) -> None:
        self.run = prepare_run(size)
        counts = plain.read_stack(self.run)
        self.shape, self.dtype, self.nbytes = counts.shape, counts.dtype, counts.nbytes

    def time_astropy(self, size: str) -> np.ndarray:
        return plain.read_stack(self.run)

    def time_ours(self, size: str) -> np.ndarray:
        return ours.read_stack(self.run)

    def least(self, side: str) -> dict[str, float]:
        return {"cache": self.nbytes}

    def assert_equal(self, counts: np.ndarray, expected: np.ndarray) -> None:
        assert counts.dtype == expected.dtype, f"dtype {counts.dtype} is not {expected.dtype}"
        np.testing.assert_array_equal(counts, expected)
