"""Reading a run's FITS frames into memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import ours, plain
from .clock import DEVICES, Ran, measure_work
from .data import prepare_run, shape_of_run
from .limits import count_fetched, drop_files
from .memory import with_memory

FETCHED = 0.9  # of the bytes at least must come from the disk in a cold run


@with_memory("astropy", "ours")
class Read:
    """A folder of FITS frames, one a ToF bin, in the page cache."""

    params = (["small", "full"], [661, 916, 3000])
    param_names = ["size", "bins"]
    reference = "time_astropy"
    equal = "identical"
    included = "files in the page cache to memory; no start-up"
    warm_up = True

    def setup(self, size: str, bins: int) -> None:
        self.run = prepare_run(size, bins=bins)
        self.shape, self.dtype = tuple(shape_of_run(size, bins=bins).values()), np.dtype(np.int16)
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize

    def time_astropy(self, size: str, bins: int) -> np.ndarray | Ran:
        return self.read(plain.read_stack)

    def time_ours(self, size: str, bins: int) -> np.ndarray | Ran:
        return self.read(ours.read_stack)

    def read(self, reader: Callable) -> np.ndarray | Ran:
        return reader(self.run)

    def least(self, side: str) -> dict[str, float]:
        return {"cache": self.nbytes}

    def assert_equal(self, counts: np.ndarray, expected: np.ndarray) -> None:
        assert counts.dtype == expected.dtype, f"dtype {counts.dtype} is not {expected.dtype}"
        np.testing.assert_array_equal(counts, expected)


class ReadCold(Read):
    """The same from the disk: before each run the system forgets the files, and what it fetches is counted."""

    included = "files on the disk, the page cache emptied of them, to memory; no start-up"
    warm_up = False
    peakmem_astropy = peakmem_ours = None  # as for files in the page cache

    def setup(self, size: str, bins: int) -> None:
        super().setup(size, bins)
        drop_files(self.run.iterdir())
        before = count_fetched()
        for path in self.run.iterdir():
            path.read_bytes()
        if not count_fetched() - before >= FETCHED * self.nbytes:
            raise NotImplementedError("the files cannot be dropped from the page cache here, or nobody counts it")

    def read(self, reader: Callable) -> Ran:
        drop_files(self.run.iterdir())
        before = count_fetched()
        ran = measure_work(lambda: reader(self.run), device=DEVICES["cpu"])
        fetched = count_fetched() - before
        assert fetched >= FETCHED * self.nbytes, f"only {fetched:.4g} of {self.nbytes} bytes came from the disk"
        return ran

    def least(self, side: str) -> dict[str, float]:
        return {"disk": self.nbytes}
