"""Where blocks end up: targets for ``dask.array.store``, each written by region, from several threads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from niseg_gpu.pipeline.clock import Clock


class HostTarget:
    """Writes blocks of either device to an array on disk, timed under ``write``."""

    def __init__(self, array: Any, *, backend: Any, clock: Clock) -> None:
        self.array, self.backend, self.clock = array, backend, clock

    def __setitem__(self, region: tuple[slice, ...], block: Any) -> None:
        block = self.backend.to_host(block)
        with self.clock.timing("write", block.nbytes):
            self.array[region] = block


class FetchTarget:
    """Brings blocks to the host before another target takes them."""

    def __init__(self, target: Any, *, backend: Any) -> None:
        self.target, self.backend = target, backend

    def __setitem__(self, region: tuple[slice, ...], block: Any) -> None:
        self.target[region] = self.backend.to_host(block)


class SumTarget:
    """Sums a stack over its first axis, for the mean image and the count of spots.

    Parameters
    ----------
    backend : Cpu or Gpu
    shape : tuple of int
        Of the stack.
    dtype : dtype
        Of the sum.
    progress : callable, optional
        Told the number of values of each finished block.
    """

    def __init__(self, backend: Any, *, shape: tuple[int, ...], dtype: Any, progress: Any = None) -> None:
        self.backend, self.progress = backend, progress
        self.frames = shape[0] if len(shape) == 3 else 1
        self.total = np.zeros(shape[-2:], dtype)
        self._lock = threading.Lock()

    def __setitem__(self, region: tuple[slice, ...], block: Any) -> None:
        xp = self.backend.xp
        part = (
            block if block.ndim == 2 else xp.sum(block, axis=0, dtype=xp.float32 if block.dtype.kind == "f" else None)
        )
        part = self.backend.to_host(part)
        with self._lock:
            self.total[region[-2:]] += part.astype(self.total.dtype, copy=False)
        if self.progress is not None:
            self.progress(block.size)

    def mean(self) -> np.ndarray:
        """The sum over the number of frames, float32."""
        return (self.total / self.frames).astype(np.float32)
