"""Where a pipeline's blocks are gathered for k-means: one spectrum a row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.io.scratch import ScratchRows

BLOCK_PIXELS = 2_048
SHARE = 0.6  # of the device's memory: the rest is for blocks in flight, labels, the system


def number_pixels(where: tuple[slice, ...], map_shape: tuple[int, ...]) -> slice | np.ndarray:
    """Return the numbers of a region's pixels in the flat map, in rising order; as a slice where they are one run."""
    spans = [range(*part.indices(n)) for part, n in zip(where, map_shape, strict=True)]
    first = next((i for i, span in enumerate(spans) if len(span) != 1), len(spans) - 1)
    if all(len(span) == n for span, n in zip(spans[first + 1 :], map_shape[first + 1 :], strict=True)):
        start = int(np.ravel_multi_index([span.start for span in spans], map_shape)) if all(spans) else 0
        return slice(start, start + math.prod(map(len, spans)))
    return np.ravel_multi_index(np.ix_(*spans), map_shape).ravel()


def write_pixels(flat: Any, rows: Any, index: slice | np.ndarray, *, backend: Any) -> None:
    """Write a block of (features, pixels) to rows of (pixels, features), those that `number_pixels` tells."""
    if isinstance(index, slice):
        backend.write_spectra(flat, rows[index])
    else:
        rows[backend.xp.asarray(index)] = backend.xp.astype(flat, rows.dtype).T


def choose_dtype(dtype: Any, *, extras: int) -> np.dtype:
    """What a table of a stack of `dtype` holds: narrow integers as they are, where no other features come beside."""
    dtype = np.dtype(dtype)
    narrow = dtype.kind in "iu" and dtype.itemsize <= 2 and not extras
    return dtype.newbyteorder("=") if narrow else np.dtype(np.float32)


def count_row_bytes(backend: Any, features: int, dtype: Any) -> int:
    """Bytes that a pixel takes in a table, with what lies between one and the next."""
    return backend.empty_rows(1, features, dtype).strides[0]


def count_table_bytes(info: Any, *, extras: int, backend: Any) -> int:
    """Bytes of the table of a stack on a device, with its extra columns."""
    bins = info.sizes.get("tof", 1)
    row = count_row_bytes(backend, bins + extras, choose_dtype(info.dtype, extras=extras))
    return math.prod(info.shape) // bins * row


class PixelTable:
    """Spectra gathered block by block as rows (pixels, features), one after another, in memory or in a file.

    A target for writes by region of a (features, Y, X) or (Z, Y, X) stack; writes of disjoint regions may run at once.

    Parameters
    ----------
    backend : Cpu or Gpu
    shape : tuple of int
        Of the stack, in its own order.
    features : bool
        Whether the first axis holds the features (ToF); else every value is a pixel of one feature.
    dtype : dtype
        Of the stack. Integers of 8 and 16 bit stay what they are, all else becomes float32.
    extras : int
        Columns to leave free behind the spectrum, for other features; then the table is float32.
    folder : Path, optional
        Of the file that the table goes to where it need not fit in memory; then `backend` is the host's.

    Raises
    ------
    UserError
        The table is larger than the device's memory, or than the room on disk.
    """

    def __init__(
        self,
        backend: Any,
        *,
        shape: tuple[int, ...],
        features: bool,
        dtype: Any = np.float32,
        extras: int = 0,
        folder: Path | None = None,
    ) -> None:
        self.backend = backend
        self.map_shape = shape[1:] if features else shape
        self.features = features
        pixels, kept = math.prod(self.map_shape), choose_dtype(dtype, extras=extras)
        self.n_features, self.extras = shape[0] if features else 1, extras
        self.in_file = folder is not None
        if folder is not None:
            self.rows = ScratchRows(folder, shape=(pixels, self.n_features + extras), dtype=kept)
        else:
            needed = pixels * count_row_bytes(backend, self.n_features + extras, kept)
            there = backend.count_memory()
            if needed > there:
                raise UserError(
                    f"kmeans gathers all spectra in memory, {needed / 1e9:.3g} GB, and the {backend.name} has "
                    f"{there / 1e9:.3g} GB; name a folder with room for them (folder), rebin or crop"
                )
            self.rows = backend.empty_rows(pixels, self.n_features + extras, kept)
        self.valid = np.zeros(pixels, dtype=bool)

    @property
    def spectra(self) -> Any:
        """The table without its extra columns."""
        return self.rows[:, : self.n_features]

    def pieces(self, n: int | None = None) -> list[slice]:
        """All rows, or the first `n`, some at a time."""
        n = len(self.valid) if n is None else n
        return [slice(start, min(start + BLOCK_PIXELS, n)) for start in range(0, n, BLOCK_PIXELS)]

    def read(self, piece: slice) -> Any:
        """Some rows on the device: a view where they lie in memory."""
        rows = self.rows[piece]
        return rows.compute() if self.in_file else rows

    def write(self, piece: slice, block: Any) -> None:
        """Put rows back that were read and changed in place."""
        if self.in_file:
            self.rows[piece] = block

    def __setitem__(self, region: tuple[slice, ...], block: Any) -> None:
        xp = self.backend.xp
        if self.features and block.shape[0] != self.n_features:
            raise ValueError(f"block of {block.shape[0]} features for a table of {self.n_features}")
        where = region[1:] if self.features else region
        index = number_pixels(where, self.map_shape)
        flat = xp.reshape(block, (block.shape[0], -1)) if self.features else xp.reshape(block, (1, -1))
        if self.in_file:
            block = np.zeros((flat.shape[1], self.n_features + self.extras), self.rows.dtype)
            self.backend.write_spectra(flat, block[:, : self.n_features])
            self.rows[index] = block
        else:
            write_pixels(flat, self.spectra, index, backend=self.backend)
        # what is kept as integers has no NaN, and its sum may wrap
        finite = self.rows.dtype.kind != "f" or self.backend.to_host(xp.isfinite(xp.sum(flat, axis=0)))
        self.valid[index] = finite

    def compact(self) -> Any:
        """Move the rows with data to the front, in place, a piece at a time; return that part of the table."""
        if self.valid.all():
            return self.rows
        end = 0
        for piece in self.pieces():
            keep = np.flatnonzero(self.valid[piece])
            self.rows[end : end + len(keep)] = self.read(piece)[self.backend.xp.asarray(keep)]
            end += len(keep)
        return self.rows[:end]
