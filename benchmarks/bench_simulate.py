"""Simulating a run or radiographs, against writing the same bytes without working them out."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np

from niseg_gpu.simulate.radiograph import simulate_radiograph
from niseg_gpu.simulate.tof import simulate_tof

from .clock import Ran
from .data import SEED, SIZES

RADIOGRAPHS = {
    "small": {"height": 64, "width": 80, "n_frames": 2},
    "full": {"height": 2048, "width": 2048, "n_frames": 8},
}


class Tof:
    """A ToF run with its truth, no open beam."""

    params = (["small", "full"],)
    param_names = ["size"]
    reference = "time_write"
    equal = "files identical"
    included = "memory to disk, with the wait until all of it is there (sync); no start-up"
    warm_up = True

    def setup(self, size: str) -> None:
        shape = SIZES[size]
        self.simulate: Callable[[Path], object] = lambda out: simulate_tof(out, open_beam=False, seed=SEED, **shape)
        self.shape, self.dtype = tuple(shape.values()), np.dtype(np.int16)
        self._prepare()

    def _prepare(self) -> None:
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.room = Path(tempfile.mkdtemp(dir=os.environ.get("NISEG_BENCH_DATA")))
        weakref.finalize(self, shutil.rmtree, self.room, ignore_errors=True)
        self.names = (self.room / f"out{i}" for i in count())
        first = next(self.names)
        self.simulate(first)
        self.files = {p.relative_to(first): p.read_bytes() for p in sorted(first.rglob("*")) if p.is_file()}
        shutil.rmtree(first)

    def time_write(self, size: str) -> Ran:
        return self._time(self._write)

    def time_ours(self, size: str) -> Ran:
        return self._time(self.simulate)

    def _write(self, out: Path) -> None:
        for folder in {path.parent for path in self.files}:
            (out / folder).mkdir(parents=True, exist_ok=True)
        for path, content in self.files.items():
            (out / path).write_bytes(content)

    def _time(self, fill: Callable[[Path], object]) -> Ran:
        """Time filling a folder; the earlier ones go."""
        for old in self.room.iterdir():
            shutil.rmtree(old)
        os.sync()
        out, start = next(self.names), time.perf_counter()
        fill(out)
        os.sync()
        return Ran(out, time.perf_counter() - start)

    def assert_equal(self, out: Path, expected: Path) -> None:
        """With what was simulated first; the reference's folder is away again when a later run is checked."""
        for path, content in self.files.items():
            assert (out / path).read_bytes() == content, f"{path} differs"


class Radiograph(Tof):
    """Radiographs with spots, their open beam, dark image and truth."""

    def setup(self, size: str) -> None:
        shape = RADIOGRAPHS[size]
        self.simulate = lambda out: simulate_radiograph(out, seed=SEED, **shape)
        self.shape, self.dtype = (shape["n_frames"], shape["height"], shape["width"]), np.dtype(np.uint16)
        self._prepare()
