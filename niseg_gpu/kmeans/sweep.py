"""Arrays whose chunks hold some features of many pixels: put in rows chunk by chunk, each computed once.

Read part by part, every chunk would be computed anew for each part that it lies across.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from niseg_gpu.backend import working_on
from niseg_gpu.kmeans.points import LocalPoints, Part, Region
from niseg_gpu.kmeans.table import number_pixels, write_pixels


def count_times_read(array: Any, regions: Sequence[Region], *, axis: int) -> float:
    """How often one pass over regions computes the values of a Dask array, on average, when it computes whole chunks.

    Parameters
    ----------
    array : dask.array.Array
    regions : sequence of tuple of slice
        Along all axes but `axis`.
    axis : int
        Of the features.
    """
    edges = [np.cumsum([0, *sizes]) for i, sizes in enumerate(array.chunks) if i != axis]

    def reach(s: slice, places: np.ndarray) -> int:
        """Length of the chunks that a slice touches."""
        first = np.searchsorted(places, s.start, "right") - 1
        return int(places[np.searchsorted(places, s.stop, "left")] - places[first])

    computed = sum(math.prod(map(reach, region, edges)) for region in regions)
    return computed / math.prod(places[-1] for places in edges)


def is_wrapped(array: Any) -> bool:
    """Whether a Dask array was only wrapped (``from_array``): then a slice of it reads no more than it asks for."""
    sources = array.dask.dependencies.get(array.name, {""})
    return all(name.startswith("original-") for name in sources)  # so Dask names what is wrapped


def gather_rows(
    array: Any, regions: Sequence[Region], *, axis: int, backend: Any, labels: Sequence[Any], workers: int
) -> LocalPoints:
    """Compute a Dask array once, chunk by chunk, into points in the memory of the device.

    Parameters
    ----------
    array : dask.array.Array
    regions : sequence of tuple of slice
        Of the points' parts, in the order of the map, each a run of pixels in it.
    axis : int
        Of the features.
    backend : Cpu or Gpu
    labels : sequence of (n,) int32 array
        Of the parts, on the device.
    workers : int
        Threads.
    """
    map_shape, features = array.shape[:axis] + array.shape[axis + 1 :], array.shape[axis]
    rows = backend.empty_rows(math.prod(map_shape), features, array.dtype.newbyteorder("="))
    with ThreadPoolExecutor(min(workers, backend.threads)) as pool:
        array.store(_Rows(rows, map_shape, axis=axis, backend=backend), lock=False, scheduler=pool)
    parts, first = [], 0
    for i, (region, own) in enumerate(zip(regions, labels, strict=True)):
        part = Part(i, backend, None, axis, region, own, keep=True, block=rows[first : first + len(own)])
        parts.append(part)
        first += len(own)
    return LocalPoints(parts, map_shape=map_shape, n_features=features, workers=workers)


class _Rows:
    """Takes chunks of an array into rows of pixels (n, features)."""

    def __init__(self, rows: Any, map_shape: tuple[int, ...], *, axis: int, backend: Any) -> None:
        self.rows, self.map_shape, self.axis, self.backend = rows, map_shape, axis, backend

    def __setitem__(self, region: Region, block: Any) -> None:
        xp, features = self.backend.xp, region[self.axis]
        where = (*region[: self.axis], *region[self.axis + 1 :])
        with working_on(self.backend):
            flat = xp.moveaxis(self.backend.from_host(block), self.axis, 0).reshape(block.shape[self.axis], -1)
            write_pixels(flat, self.rows[:, features], number_pixels(where, self.map_shape), backend=self.backend)
