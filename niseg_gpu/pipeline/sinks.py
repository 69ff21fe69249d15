"""Where blocks end up: targets for ``dask.array.store``, each written by region, from several threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from niseg_gpu.pipeline.clock import Clock
from niseg_gpu.pipeline.ledger import Ledger
from niseg_gpu.stack import dtype_for_steps


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


class ProgressTarget:
    """Tells `progress` the number of values of each block."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self.progress = progress

    def __setitem__(self, region: tuple[slice, ...], block: Any) -> None:
        self.progress(block.size)


class NotedTarget:
    """Writes to another target, and notes that in a ledger."""

    def __init__(self, target: Any, *, ledger: Ledger) -> None:
        self.target, self.ledger = target, ledger

    def __setitem__(self, region: tuple[slice, ...], block: Any) -> None:
        self.target[region] = block
        self.ledger.note_write(region)


class SumTarget:
    """Sums a stack over its first axis, for the mean image and the count of spots.

    Parameters
    ----------
    name : str
        Of the sum, in the ledger.
    backend : Cpu or Gpu
    ledger : Ledger
    shape : tuple of int
        Of the stack.
    dtype : dtype
        Of the sum.
    """

    def __init__(self, name: str, *, backend: Any, ledger: Ledger, shape: tuple[int, ...], dtype: Any) -> None:
        self.name, self.backend, self.ledger = name, backend, ledger
        self.dtype = np.dtype(dtype)
        self.frames = shape[0] if len(shape) == 3 else 1
        ledger.open_sum(name, shape[-2:], dtype)

    @property
    def total(self) -> np.ndarray:
        return self.ledger.read_sum(self.name)

    def __setitem__(self, region: tuple[slice, ...], block: Any) -> None:
        xp, part = self.backend.xp, block
        if block.ndim == 3 and self.dtype.kind != "f":
            part = xp.sum(block, axis=0, dtype=getattr(xp, self.dtype.name))
        elif block.ndim == 3:
            part = block[0] if len(block) == 1 else self.backend.sum_frames(block)
        part = part.astype(dtype_for_steps(part.dtype), copy=False)
        self.ledger.add_to_sum(self.name, region, self.backend.to_host(part))

    def mean(self) -> np.ndarray:
        """The sum over the number of frames, float32."""
        return (self.total / self.frames).astype(np.float32)
