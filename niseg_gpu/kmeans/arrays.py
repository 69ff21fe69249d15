"""From what a user has (NumPy, CuPy, Dask, xarray) to points, without a second copy of it."""

from __future__ import annotations

import logging
import math
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.backend import CPU, GPU, backend_of, count_cores, select, with_kernels
from niseg_gpu.errors import UserError
from niseg_gpu.kernels.bus import ROOMS
from niseg_gpu.kmeans.points import (
    LEAST_PART_BYTES,
    PART_BYTES,
    READERS,
    LocalPoints,
    Part,
    Points,
    Region,
    choose_part_bytes,
    cut_map,
)
from niseg_gpu.kmeans.sweep import count_times_read, gather_rows, is_wrapped
from niseg_gpu.kmeans.table import count_row_bytes, count_table_bytes

log = logging.getLogger(__name__)

SPARE = 0.35  # of the budget, for what is small, and what the allocator keeps for threads of readers
LABEL_BYTES = 4  # of a pixel
MEMORY_SHARE = 0.05  # of what is kept, for what a pass leaves for the next one
OFTEN = 1.5  # reads of each value in a pass: from there on it is worth to gather the array once
HOST_SHARE = 0.5  # of the host's memory, for what a GPU has no room for


def open_points(
    data: Any,
    *,
    feature_dim: str | int | None = None,
    device: str = "auto",
    kernels: str = "auto",
    memory_budget: int | None = None,
    beside: int = 2 * LABEL_BYTES,
    workers: int | None = None,
) -> Points:
    """Make points of an array.

    Parameters
    ----------
    data : (…, features) array
        NumPy, CuPy, Dask or xarray; or what NumPy makes an array of.
    feature_dim : str or int, optional
        Name (xarray) or number of the axis that holds the features. By default ``tof`` where there is one, else the
        last.
    device : {"auto", "cpu", "gpu"}
        Where the blocks of a Dask array are worked on; other arrays stay where they are.
    kernels : {"auto", "library", "own"}
        What makes the passes, see `KMeans`.
    memory_budget : int, optional
        Bytes of the device's memory that a Dask array may take; half of it by default. What is more is read anew in
        each pass; for a GPU it is kept in half of the host's memory first, and crosses the bus in each pass.
    beside : int
        Bytes of the budget that the work needs for each pixel beside its data: labels, distances.
    workers : int, optional
        Threads; all cores by default.

    Returns
    -------
    Points
        Spread over the workers of a ``distributed`` client where there is one and `data` is a Dask array.
    """
    array, axis = _find_features(data, feature_dim)
    if array.dtype.kind not in "iuf" or array.dtype.itemsize * (array.dtype.kind == "f") in (2, 16):
        raise UserError(f"kmeans got values of {array.dtype}; allowed: integers, float32, float64; convert them")
    map_shape = array.shape[:axis] + array.shape[axis + 1 :]
    if 0 in array.shape:
        raise UserError(f"kmeans got an array of shape {array.shape}, which holds nothing; give one pixel at least")
    if any(math.isnan(n) for n in array.shape):
        raise UserError(f"kmeans got an array of unknown lengths {array.shape}; call its compute_chunk_sizes() first")
    workers = workers or count_cores()
    if hasattr(array, "compute"):
        from niseg_gpu.kmeans.spread import find_client, spread_points

        client = find_client()
        if client is not None:
            return spread_points(client, array, axis=axis, map_shape=map_shape, device=device, kernels=kernels)
        backend = choose_backend(array, device=device, kernels=kernels)
        how = {"backend": backend, "budget": memory_budget, "beside": beside, "workers": workers}
        return open_lazy(array, axis=axis, **how)
    backend = with_kernels(backend_of(array), kernels)
    pixel_bytes = array.shape[axis] * array.dtype.itemsize
    part_bytes = choose_part_bytes(array.nbytes, workers=workers) if backend.threads > 1 else array.nbytes
    regions = cut_map(map_shape, pixel_bytes=pixel_bytes, part_bytes=part_bytes)
    keep = math.inf if backend.keeps_rows else 0
    return _hold_parts(array, axis, regions, backend=backend, keep_bytes=keep, workers=workers)


def _hold_parts(
    array: Any, axis: int, regions: list[Region], *, backend: Any, keep_bytes: float, workers: int, hold_bytes: int = 0
) -> LocalPoints:
    """Points over regions of an array.

    Once read, the first `keep_bytes` stay in the memory of the device, and `hold_bytes` of the rest in the host's.
    """
    map_shape = array.shape[:axis] + array.shape[axis + 1 :]
    parts, row_bytes = [], count_row_bytes(backend, array.shape[axis], array.dtype.newbyteorder("="))
    for i, region in enumerate(regions):
        n = math.prod(s.stop - s.start for s in region)
        keep_bytes -= n * row_bytes
        keep = keep_bytes >= 0
        hold_bytes -= 0 if keep else n * row_bytes
        labels = _no_labels(region, backend=backend)
        parts.append(Part(i, backend, array, axis, region, labels, keep=keep, hold=not keep and hold_bytes >= 0))
    return LocalPoints(parts, map_shape=map_shape, n_features=array.shape[axis], workers=workers)


def _no_labels(region: Region, *, backend: Any) -> Any:
    n = math.prod(s.stop - s.start for s in region)
    return backend.xp.full(n, -1, dtype=backend.xp.int32)


def _find_features(data: Any, feature_dim: str | int | None) -> tuple[Any, int]:
    """The array under `data`, and the number of its axis of features."""
    names = [str(name) for name in data.dims] if hasattr(data, "dims") and hasattr(data, "data") else None
    array = data.data if names is not None else data
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        try:
            array = np.asarray(array)
        except (TypeError, ValueError):  # lists of different lengths, an xarray.Dataset
            raise UserError(
                f"kmeans got a {type(data).__name__} that is no array; needed: an array (..., features)"
            ) from None
    if np.ma.is_masked(array):
        raise UserError(
            "kmeans got a masked array; needed: NaN where a pixel has no data: array.filled(np.nan) of floats"
        )
    if array.ndim < 2:
        raise UserError(
            f"kmeans got an array of {array.ndim} axes; allowed: pixels x features or more; reshape(-1, 1) makes "
            "pixels of one feature"
        )
    if feature_dim is None:
        feature_dim = "tof" if names is not None and "tof" in names else -1
    if isinstance(feature_dim, str):
        if names is None:
            raise UserError(f"feature_dim is {feature_dim!r}, but the array has no names of axes; give its number")
        if feature_dim not in names:
            raise UserError(f"feature_dim is {feature_dim!r}; allowed: {', '.join(names)}")
        return array, names.index(feature_dim)
    if not isinstance(feature_dim, Integral) or not -array.ndim <= feature_dim < array.ndim:
        raise UserError(f"feature_dim is {feature_dim}; allowed: {-array.ndim} to {array.ndim - 1}")
    return array, feature_dim % array.ndim


def choose_backend(array: Any, *, device: str, kernels: str) -> Any:
    """The twin for a block, or a Dask array's: the one it is on where that is a GPU, else the one asked for."""
    kind = type(getattr(array, "_meta", array)).__module__.partition(".")[0]
    return with_kernels(GPU, kernels) if kind == "cupy" else select(device, kernels=kernels)[0]


class Share(NamedTuple):
    """How memory is shared out, in bytes.

    Attributes
    ----------
    left : int
        For pixels.
    part : int
        Of one part, at most.
    at_once : int
        Parts that are on their way or at work.
    """

    left: int
    part: int
    at_once: int

    def count_kept(self, largest: int, *, backend: Any) -> int:
        """What can stay between the passes, if so many bytes are in the largest part."""
        # on the host as much again as is at work: what a thread has freed the allocator may not use for another
        return int((self.left - self.at_once * largest * (1 if backend.has_bus else 2)) * (1 - MEMORY_SHARE))


def share_memory(
    pixels: int,
    features: int,
    *,
    itemsize: int,
    backend: Any,
    workers: int,
    budget: int | None = None,
    beside: int = 2 * LABEL_BYTES,
) -> Share:
    """Share memory out for `open_lazy`; refuse a budget that is too small."""
    name = "kmeans: half of the memory" if budget is None else "memory_budget"
    budget = backend.count_memory() // 2 if budget is None else int(budget)
    beside = LABEL_BYTES if backend.has_bus else beside  # that memory has labels, and nothing else of each pixel
    workers, pixel_bytes = min(workers, backend.threads), features * itemsize
    # a block waits, is read (twice its size, put together from chunks), is worked on or on its way from the host
    at_once = 2 * workers + 2 * READERS + (ROOMS if backend.has_bus else 0)
    left = int(budget * (1 - SPARE)) - beside * pixels
    if left < 2 * at_once * pixel_bytes:
        needed = int((2 * at_once * pixel_bytes + beside * pixels) / (1 - SPARE)) + 1
        raise UserError(
            f"{name} is {budget} bytes; {pixels} pixels of {features} features need {needed} at least, "
            "labels included; give more memory, rebin or crop"
        )
    most = max(left // (8 * at_once), min(LEAST_PART_BYTES, left // (2 * at_once)))  # the rest can stay
    part = choose_part_bytes(pixels * pixel_bytes, workers=workers, most=min(PART_BYTES, most))
    return Share(left, part, at_once)


def count_held(info: Any, extras: int, *, backend: Any, workers: int) -> tuple[int, int]:
    """Bytes that `open_lazy` holds, by default, of a table in a file: on the device, and for it on the host."""
    bins, nbytes = info.sizes.get("tof", 1) + extras, count_table_bytes(info, extras=extras, backend=CPU)
    pixels = math.prod(info.shape) // info.sizes.get("tof", 1)
    share = share_memory(pixels, bins, itemsize=nbytes // pixels // bins, backend=backend, workers=workers)
    kept = min(nbytes, share.count_kept(share.part, backend=backend))
    beside = min(nbytes - kept, int(CPU.count_memory() * HOST_SHARE)) if backend.has_bus else 0
    return kept + share.at_once * share.part, beside


def open_lazy(array: Any, *, axis: int, backend: Any, workers: int, **memory: Any) -> LocalPoints:
    """Make points of an array that is read part by part: what the device has no room for in each pass.

    Parameters
    ----------
    array : Dask array or ScratchRows
    axis : int
        Of the features.
    backend : Cpu or Gpu
        Where the parts are worked on.
    workers : int
        Threads.
    **memory
        `budget` and `beside`, as `memory_budget` and `beside` of `open_points`.
    """
    map_shape, features = array.shape[:axis] + array.shape[axis + 1 :], array.shape[axis]
    pixels, pixel_bytes = math.prod(map_shape), features * array.dtype.itemsize
    share = share_memory(pixels, features, itemsize=array.dtype.itemsize, backend=backend, workers=workers, **memory)
    workers = min(workers, backend.threads)
    chunks = [sizes for i, sizes in enumerate(array.chunks) if i != axis] if hasattr(array, "chunks") else None
    regions = cut_map(map_shape, pixel_bytes=pixel_bytes, part_bytes=share.part, chunks=chunks)
    largest = max(math.prod(s.stop - s.start for s in region) for region in regions) * pixel_bytes
    keep = share.count_kept(largest, backend=backend)
    times = 1 if chunks is None else count_times_read(array, regions, axis=axis)
    if times > OFTEN:
        row_bytes = count_row_bytes(backend, features, array.dtype.newbyteorder("="))
        nbytes, chunk = pixels * row_bytes, math.prod(map(max, array.chunks)) * array.dtype.itemsize
        # a chunk at work lies there twice: as it is computed, and turned round
        if nbytes + 2 * (workers + 1) * chunk <= share.left * (1 - MEMORY_SHARE):
            regions = cut_map(map_shape, pixel_bytes=pixel_bytes, part_bytes=share.part)
            labels = [_no_labels(region, backend=backend) for region in regions]
            return gather_rows(array, regions, axis=axis, backend=backend, labels=labels, workers=workers)
        if not is_wrapped(array):
            beside = memory.get("beside", 2 * LABEL_BYTES) * pixels
            needed = (nbytes + 2 * (workers + 1) * chunk) / (1 - MEMORY_SHARE) + beside
            log.warning(
                "kmeans: chunks of %s lie across what is read at a time: each pass computes every value %.0f times; "
                "raise memory_budget to %.3g bytes, which holds it all, or save the array in chunks of all %d "
                "features and open that",
                " x ".join(map(str, array.chunksize)),
                times,
                needed / (1 - SPARE),
                array.shape[axis],
            )
    hold = int(CPU.count_memory() * HOST_SHARE) if backend.has_bus else 0
    return _hold_parts(array, axis, regions, backend=backend, keep_bytes=keep, hold_bytes=hold, workers=workers)
