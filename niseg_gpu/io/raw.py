"""Uncompressed frames read straight from their bytes, whatever container they lie in."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from niseg_gpu.errors import UserError


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
    unsigned : bool
        Signed integers that wrapped are read as the unsigned ones the detector meant.
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
        unsigned: bool = False,
    ) -> None:
        self.paths = tuple(map(str, paths))
        self.offsets = tuple(offsets)
        self.stored = np.dtype(stored)
        self.shape = (len(self.paths), *frame_shape)
        self.ndim = 3
        native = self.stored.newbyteorder("=")
        half = 2.0 ** (8 * native.itemsize - 1)
        self._wrap = native.kind == "i" and scale == 1 and zero == half
        self._scale = None if self._wrap or (scale, zero) == (1, 0) else (np.float32(scale), np.float32(zero))
        if self._wrap or (unsigned and native.kind == "i" and self._scale is None):
            self.dtype = np.dtype(f"u{native.itemsize}")
        elif self._scale is not None or native == np.float64:
            self.dtype = np.dtype(np.float32)
        else:
            self.dtype = native

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        frames, rows, columns = (range(n)[k] for n, k in zip(self.shape, _full(key), strict=True))
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
                self._fill(scratch, handle, self.offsets[frame] + skip, opened)
                self._decode(scratch[:, columns.start : columns.stop], target)
        finally:
            if handle >= 0:
                os.close(handle)
        return out

    @staticmethod
    def _fill(scratch: np.ndarray, handle: int, offset: int, path: str) -> None:
        view, got = memoryview(scratch).cast("B"), 0
        while got < scratch.nbytes:
            n = os.preadv(handle, [view[got:]], offset + got)
            if n == 0:
                raise UserError(
                    f"{path} is truncated: its frame ends at byte {offset + scratch.nbytes}, the file at byte "
                    f"{offset + got}; copy the file again"
                )
            got += n

    def _decode(self, stored: np.ndarray, target: np.ndarray) -> None:
        if self._scale is not None:
            np.multiply(stored, self._scale[0], out=target, casting="unsafe")
            target += self._scale[1]
        elif self._wrap or self.dtype.kind != stored.dtype.kind:
            np.copyto(target.view(stored.dtype.newbyteorder("=")), stored)
            if self._wrap:
                target ^= self.dtype.type(1 << (8 * self.dtype.itemsize - 1))
        else:
            np.copyto(target, stored, casting="unsafe")


def _full(key: tuple[slice, ...]) -> tuple[slice, ...]:
    key = key if isinstance(key, tuple) else (key,)
    return (*key, *[slice(None)] * (3 - len(key)))


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}; was it moved since the run began?") from None
