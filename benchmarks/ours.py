"""Our side of the measurements: steps on arrays in memory, through the engine that ``niseg-gpu run`` uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.backend import count_cores, select
from niseg_gpu.io.open import open_stack
from niseg_gpu.kmeans.step import KMeansResult, fit_kmeans
from niseg_gpu.kmeans.table import PixelTable
from niseg_gpu.pipeline.engine import Engine
from niseg_gpu.pipeline.parse import parse_steps
from niseg_gpu.stack import StackInfo


def choose_device(device: str | None = None) -> Any:
    """The twin that is measured, on the device and with the kernels that the runner was told to take."""
    device = device or os.environ.get("NISEG_BENCH_DEVICE", "auto")
    return select(device, kernels=os.environ.get("NISEG_BENCH_KERNELS", "auto"))[0]


def read_stack(run: Path) -> np.ndarray:
    """Read a run whole, (N, Y, X) int16, block by block as a pipeline does."""
    import dask
    import dask.array as da

    stack = open_stack(run)
    counts = np.empty(stack.shape, stack.dtype)
    with dask.config.set(scheduler="threads", num_workers=count_cores()):
        da.store([stack.data], [counts], lock=False)
    return counts


class Memory:
    """An array that is read like a file: each block comes as a contiguous copy."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        return np.ascontiguousarray(self.array[key])


def apply_step(stack: np.ndarray, step: dict[str, Any], *, device: str | None = None, **attrs: Any) -> list[np.ndarray]:
    """Apply one step to an (N, Y, X) array, block by block on all cores; return the image, then the masks."""
    import dask
    import dask.array as da

    engine = Engine(choose_device(device), workers=count_cores())
    info = StackInfo(("tof", "y", "x"), stack.shape, stack.dtype, {}, {"quantity": "counts", **attrs})
    lazy = da.from_array(Memory(stack), chunks=-1, name=False, meta=np.empty((0, 0, 0), stack.dtype))
    with dask.config.set(scheduler="threads", num_workers=engine.workers):
        applied = engine.apply(info.wrap(lazy), parse_steps([step]))
        blocks = [engine.to_host(a).data for a in (applied.image, *applied.masks.values())]
        results = [np.empty(block.shape, block.dtype) for block in blocks]
        da.store(blocks, results, lock=False)
    return results


def build_table(frames: np.ndarray) -> PixelTable:
    """Gather (N, Y, X) frames into the table that k-means reads."""
    backend = choose_device()
    table = PixelTable(backend, shape=frames.shape, features=True)
    table[(slice(None),) * 3] = backend.from_host(frames)
    return table


def cluster_spectra(table: PixelTable, centroids: np.ndarray, *, iterations: int) -> KMeansResult:
    """Cluster from given centroids, for a fixed number of iterations."""
    found = fit_kmeans(table, n_clusters=len(centroids), init=centroids, max_iter=iterations, tol=0)
    table.backend.synchronize()
    return found
