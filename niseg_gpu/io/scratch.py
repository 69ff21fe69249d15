"""A table larger than memory: rows in a file without a name, which is gone when the program is."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError


class _Descriptor:
    """An open file, closed with the last part of the table that uses it."""

    def __init__(self, number: int) -> None:
        self.number = number
        weakref.finalize(self, os.close, number)


class ScratchRows:
    """Rows (n, columns) in a file on disk.

    Slices are parts of the table, not yet read; ``compute`` reads them, as of a lazy array. Threads may read and write
    different rows at once.

    Parameters
    ----------
    folder : str or Path
        Where the room is taken.
    shape : (int, int)
    dtype : dtype

    Raises
    ------
    UserError
        There is no room for it.
    """

    ndim = 2

    def __init__(self, folder: str | Path, *, shape: tuple[int, int], dtype: Any) -> None:
        self.dtype, self.columns = np.dtype(dtype), slice(0, shape[1])
        self.first, self.stop, self.width = 0, shape[0], shape[1]
        free = shutil.disk_usage(folder).free
        if self.nbytes > free:
            raise UserError(
                f"kmeans has to keep {self.nbytes / 1e9:.3g} GB of spectra in a file, for memory does not hold them; "
                f"{Path(folder).absolute().parent} has {free / 1e9:.3g} GB free; write elsewhere, rebin or crop"
            )
        with tempfile.TemporaryFile(dir=folder) as file:
            os.ftruncate(file.fileno(), self.nbytes)
            self._file = _Descriptor(os.dup(file.fileno()))

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.first, self.columns.stop - self.columns.start

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: slice | tuple[slice, ...]) -> ScratchRows:
        rows, columns = (*key, slice(None))[:2] if isinstance(key, tuple) else (key, slice(None))
        part = object.__new__(ScratchRows)
        part.__dict__.update(self.__dict__)
        first, stop, _ = rows.indices(len(self))
        part.first, part.stop = self.first + first, self.first + max(stop, first)
        left, right, _ = columns.indices(self.shape[1])
        part.columns = slice(self.columns.start + left, self.columns.start + max(right, left))
        return part

    def compute(self, **_: Any) -> np.ndarray:
        """Read the rows; of some columns whole rows are read."""
        block = np.empty((len(self), self.width), self.dtype)
        left, place = memoryview(block.reshape(-1)).cast("B") if block.size else b"", self._place(0)
        while left:
            n = os.preadv(self._file.number, [left], place)
            if n == 0:
                raise OSError("the file of spectra is shorter than it was made")
            left, place = left[n:], place + n
        return block[:, self.columns]

    def __setitem__(self, rows: slice | np.ndarray, block: np.ndarray) -> None:
        """Write whole rows, by a slice or by their numbers in rising order."""
        block = np.ascontiguousarray(block, self.dtype)
        if not block.size:
            return
        if isinstance(rows, slice):
            self._write(rows.indices(len(self))[0], block)
            return
        ends = np.flatnonzero(np.diff(rows, append=-1) != 1) + 1
        for start, end in zip(np.r_[0, ends[:-1]], ends, strict=True):
            self._write(int(rows[start]), block[start:end])

    def _write(self, first: int, block: np.ndarray) -> None:
        left, place = memoryview(block).cast("B"), self._place(first)
        while left:
            n = os.pwritev(self._file.number, [left], place)
            left, place = left[n:], place + n

    def _place(self, row: int) -> int:
        return (self.first + row) * self.width * self.dtype.itemsize
