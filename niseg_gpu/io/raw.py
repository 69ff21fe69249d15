"""Uncompressed frames read straight from their bytes, whatever container they lie in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import copy

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.io.bad import BadFrame, unreadable


class RawFrames:
    """Frames whose values lie one after another at a known offset of each file.

    Indexing opens the files it needs, reads only the rows asked for and decodes them frame by frame
    while they are in the cache. Holds no open file, so it can be sent to other processes.

    Parameters
    ----------
    paths : sequence of str
        The file of each frame; several frames may lie in one file.
    offsets : sequence of int
        Where each frame's values begin, in bytes.
    frame_shape : (int, int)
    stored : dtype
        As the values lie in the file, byte order included.
    scale, zero : float
        Physical value = stored * scale + zero (FITS ``BSCALE`` and ``BZERO``).
    blank : int, optional
        The stored integer that means no value (FITS ``BLANK``); it becomes NaN.

    Notes
    -----
    ``dtype`` is that of the file, native, where nothing is to be scaled. A `zero` that only turns signed integers into
    unsigned ones (or the other way round, for 8 bit) keeps integers and has no blanks. All else becomes float32, or
    float64 where float32 would lose digits of the stored type. All of it is Astropy's reading of the FITS standard.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        offsets: Sequence[int],
        frame_shape: tuple[int, int],
        stored: np.dtype,
        scale: float = 1.0,
        zero: float = 0.0,
        blank: int | None = None,
    ) -> None:
        self.paths = tuple(map(str, paths))
        self.offsets = tuple(offsets)
        self.stored = np.dtype(stored)
        self.shape = (len(self.paths), *frame_shape)
        self.ndim = 3
        native = self.stored.newbyteorder("=")
        self._scale, self._blank = (float(scale), float(zero)), blank if native.kind in "iu" else None
        self._flip = _flipped(native, scale=scale, zero=zero)
        if self._flip is not None:
            self.dtype = self._flip
        elif self._scale != (1, 0) or self._blank is not None:
            self.dtype = np.result_type(native, np.float32)
        else:
            self.dtype = native

    def take(self, frames: Sequence[int]) -> RawFrames:
        """Return an array of some frames, in that order."""
        taken = copy(self)
        taken.paths, taken.offsets = (tuple(all_[i] for i in frames) for all_ in (self.paths, self.offsets))
        taken.shape = (len(taken.paths), *self.shape[1:])
        return taken

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        frames, rows, columns = (range(n)[k] for n, k in zip(self.shape, key, strict=True))
        out = np.empty((len(frames), len(rows), len(columns)), self.dtype)
        if not out.size:
            return out
        width = self.shape[2]
        scratch = np.empty((len(rows), width), self.stored)
        skip = rows.start * width * self.stored.itemsize
        opened, handle = None, -1
        try:
            for target, frame in zip(out, frames, strict=True):
                if self.paths[frame] != opened:
                    if handle >= 0:
                        os.close(handle)
                        handle = -1
                    handle, opened = _open(self.paths[frame]), self.paths[frame]
                _fill(scratch, handle, self.offsets[frame] + skip, opened)
                self._decode(scratch[:, columns.start : columns.stop], target)
        finally:
            if handle >= 0:
                os.close(handle)
        return out

    def _decode(self, stored: np.ndarray, target: np.ndarray) -> None:
        if self._flip is not None:
            bits = target.view(f"u{target.itemsize}")
            np.copyto(bits, stored.view(stored.dtype.str.replace("i", "u")))
            bits ^= bits.dtype.type(1 << (8 * target.itemsize - 1))
            return
        np.copyto(target, stored)
        scale, zero = self._scale
        if scale != 1:
            target *= scale
        if zero != 0:
            target += zero
        if self._blank is not None:
            target[stored == self._blank] = np.nan


def _flipped(native: np.dtype, *, scale: float, zero: float) -> np.dtype | None:
    """The integers that `zero` makes of others of the same size by turning over their highest bit, else None."""
    half = 2 ** (8 * native.itemsize - 1)
    if scale == 1 and native.kind == "i" and zero == half:
        return np.dtype(f"u{native.itemsize}")
    if scale == 1 and native == np.uint8 and zero == -half:
        return np.dtype(np.int8)
    return None


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise unreadable(path, error, "was it moved since the run began?") from None


def _fill(scratch: np.ndarray, handle: int, offset: int, path: str) -> None:
    view, got = memoryview(scratch.view(np.uint8)).cast("B"), 0
    while got < scratch.nbytes:
        try:
            n = os.preadv(handle, [view[got:]], offset + got)
        except OSError as error:
            raise UserError(f"can't read {path}: {error.strerror}; check the disk and copy the file again") from None
        if n == 0:
            raise BadFrame(
                f"{path} is truncated: its frame ends at byte {offset + scratch.nbytes}, the file at byte "
                f"{offset + got}",
                "copy the file again",
            )
        got += n
