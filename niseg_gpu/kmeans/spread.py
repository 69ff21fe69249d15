"""Pixels spread over the workers of a ``distributed`` client.

The blocks stay where they were computed. Each pass sends the centroids to the workers and brings back one partial sum
of each; the sums are exact, so the result is that of one process. The client is taken as it comes: nothing of Dask is
imported here.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any

import numpy as np

from niseg_gpu.backend import count_cores
from niseg_gpu.errors import UserError
from niseg_gpu.kmeans.arrays import choose_backend
from niseg_gpu.kmeans.points import PART_BYTES, LocalPoints, Part, Points, Region, cut_map

PARTS_PER_WORKER = 2
WATCH_SECONDS = 5
LOST = "and its pixels with it; start anew, with more memory for each worker if that was the cause"


def find_client() -> Any | None:
    """The ``distributed`` client that Dask would use here, if any."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.default_client()
    except ValueError:  # there is none
        return None


def spread_points(
    client: Any, array: Any, *, axis: int, map_shape: tuple[int, ...], device: str, kernels: str
) -> SpreadPoints:
    """Compute an array's blocks on the workers and make points of them there.

    Parameters
    ----------
    client : distributed.Client
    array : dask.array.Array
    axis : int
        Of the features.
    map_shape : tuple of int
        Of the other axes.
    device : {"auto", "cpu", "gpu"}
        As each worker has it: under a ``LocalCUDACluster`` every one sees a GPU of its own.
    kernels : {"auto", "library", "own"}
        Chosen on each worker too, by what its device is.
    """
    chunks = [sizes for i, sizes in enumerate(array.chunks) if i != axis]
    pixel_bytes = array.shape[axis] * array.dtype.itemsize
    regions = _cut(map_shape, pixel_bytes=pixel_bytes, n_workers=len(_workers_of(client)), chunks=chunks)
    blocks = client.compute([array[(*r[:axis], slice(None), *r[axis:])] for r in regions])
    collect(client, [client.submit(_nothing, block) for block in blocks])  # computed, or its error is raised here
    where = client.who_has(blocks)
    sizes = [math.prod(s.stop - s.start for s in region) for region in regions]
    homes = share_blocks(sizes, holders=[where[block.key] for block in blocks], workers=_workers_of(client))
    shape = {"map_shape": map_shape, "n_features": array.shape[axis]}
    return _build(client, blocks, homes, regions, axis=axis, device=device, kernels=kernels, **shape)


def scatter_points(client: Any, rows: np.ndarray, *, device: str, kernels: str) -> SpreadPoints:
    """Send a table to the workers, as many pixels to each, and make points of it there.

    Parameters
    ----------
    client : distributed.Client
    rows : (n, features) ndarray or ScratchRows
    device, kernels : str
        As for `spread_points`.
    """
    workers, (n, features) = _workers_of(client), rows.shape
    regions = _cut((n,), pixel_bytes=features * rows.dtype.itemsize, n_workers=len(workers))
    homes, blocks = {}, []
    for worker, numbers in zip(workers, np.array_split(np.arange(len(regions)), len(workers)), strict=True):
        if len(numbers):
            homes[worker] = numbers.tolist()
            pieces = [_read(rows[regions[i]]) for i in homes[worker]]
            blocks += client.scatter(pieces, workers=[worker], direct=True, hash=False)
    shape = {"map_shape": (n,), "n_features": features}
    return _build(client, blocks, homes, regions, axis=1, device=device, kernels=kernels, **shape)


def share_blocks(
    sizes: Sequence[int], *, holders: Sequence[Sequence[str]], workers: Sequence[str]
) -> dict[str, list[int]]:
    """Give every worker as many pixels, as each pass waits for the one that has most.

    A block stays where it was computed while its worker has less than its share; what is over is moved, once.

    Parameters
    ----------
    sizes : sequence of int
        The pixels of each block.
    holders : sequence of sequence of str
        The workers that have it.
    workers : sequence of str
        Among whom they are shared.

    Returns
    -------
    dict of str to list of int
        The numbers of each worker's blocks, ascending; workers without any are left out.
    """
    load = dict.fromkeys(workers, 0)
    homes: dict[str, list[int]] = defaultdict(list)

    def give(number: int, worker: str) -> None:
        load[worker] += sizes[number]
        homes[worker].append(number)

    over = []
    for number in sorted(range(len(sizes)), key=lambda i: (-sizes[i], len(holders[i]))):
        near = [w for w in holders[number] if w in load]
        worker = min(near, key=lambda w: (load[w], w), default=None)
        if worker is not None and (load[worker] + sizes[number]) * len(load) <= sum(sizes):
            give(number, worker)
        else:
            over.append(number)
    for number in over:
        give(number, min(load, key=lambda w: (load[w], w not in holders[number], w)))
    return {worker: sorted(numbers) for worker, numbers in homes.items()}


def _read(rows: Any) -> np.ndarray:
    return rows.compute() if hasattr(rows, "compute") else rows


def collect(client: Any, jobs: Any, *, workers: Iterable[str] = (), mend: str = LOST) -> Any:
    """Wait for all results; a worker that is gone would be waited for without end.

    Parameters
    ----------
    client : distributed.Client
    jobs : list or dict of Future
    workers : iterable of str
        Those that it takes; others may come and go, as long as there are any.
    mend : str
        What is lost with a worker, and what to do.
    """
    with ThreadPoolExecutor(1) as aside:  # `gather` takes no time limit, and what it brings may take long to come
        coming = aside.submit(client.gather, jobs)
        try:
            while True:
                wait([coming], timeout=WATCH_SECONDS)
                if coming.done():
                    return coming.result()
                there = set(_workers_of(client))
                lost = set(workers) - there
                if lost or not there:
                    who = f"worker {', '.join(sorted(lost))} is" if lost else "all workers are"
                    raise UserError(f"{who} gone, {mend}")
        finally:
            if not coming.done():
                client.cancel(jobs, force=True)  # which ends the waiting too


def _workers_of(client: Any) -> list[str]:
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def _cut(map_shape: tuple[int, ...], *, pixel_bytes: int, n_workers: int, chunks: Any = None) -> list[Region]:
    """Cut a map into parts of which every worker gets some."""
    nbytes = pixel_bytes * math.prod(map_shape)
    part_bytes = max(1, min(PART_BYTES, nbytes // (PARTS_PER_WORKER * max(1, n_workers))))
    return cut_map(map_shape, pixel_bytes=pixel_bytes, part_bytes=part_bytes, chunks=chunks)


def _build(
    client: Any,
    blocks: Sequence[Any],
    homes: dict[str, list[int]],
    regions: list[Region],
    *,
    axis: int,
    device: str,
    kernels: str,
    map_shape: tuple[int, ...],
    n_features: int,
) -> SpreadPoints:
    """Have each worker make points of the blocks that are its own."""
    groups = {
        worker: client.submit(
            build_group,
            [blocks[i] for i in numbers],
            numbers,
            [regions[i] for i in numbers],
            axis,
            map_shape,
            device,
            kernels,
            workers=[worker],
            pure=False,
        )
        for worker, numbers in homes.items()
    }
    collect(client, [client.submit(_nothing, group, workers=[w]) for w, group in groups.items()], workers=groups)
    return SpreadPoints(client, groups, homes, regions, map_shape=map_shape, n_features=n_features)


def _nothing(result: Any) -> None:
    """Ask for a result without bringing it here."""


def _sums_changes(group: LocalPoints) -> bool:
    return group.sums_changes


def build_group(
    blocks: Sequence[Any],
    numbers: Sequence[int],
    regions: Sequence[Region],
    axis: int,
    map_shape: Any,
    device: str,
    kernels: str,
) -> LocalPoints:
    """On a worker: points over the blocks it has, on its own device."""
    backend = choose_backend(blocks[0], device=device, kernels=kernels)
    parts = []
    for number, region, block in zip(numbers, regions, blocks, strict=True):
        n = math.prod(s.stop - s.start for s in region)
        whole = tuple(slice(0, s.stop - s.start) for s in region)
        labels = backend.xp.full(n, -1, dtype=backend.xp.int32)
        parts.append(Part(number, backend, block, axis, whole, labels, keep=backend.keeps_rows))
    distributed = sys.modules.get("distributed")
    threads = distributed.get_worker().state.nthreads if distributed is not None else count_cores()
    return LocalPoints(parts, map_shape=map_shape, n_features=blocks[0].shape[axis], workers=threads)


def run_group(group: LocalPoints, task: Callable[..., Any], options: dict[str, Any]) -> Any:
    """On a worker: one pass over its parts."""
    return group.each(task, **options)


class SpreadPoints(Points):
    """Points on the workers of a client.

    Parameters
    ----------
    client : distributed.Client
    groups : dict of str to Future
        The points of each worker, by its address.
    homes : dict of str to list of int
        The parts that each has.
    regions : list of tuple of slice
    """

    def __init__(
        self, client: Any, groups: dict[str, Any], homes: dict[str, list[int]], regions: list[Region], **shape: Any
    ) -> None:
        super().__init__(regions, **shape)
        self.client, self.groups, self.homes = client, groups, homes

    @cached_property
    def sums_changes(self) -> bool:
        """On all workers, which may have different devices."""
        jobs = [self.client.submit(_sums_changes, group, workers=[w]) for w, group in self.groups.items()]
        return all(collect(self.client, jobs, workers=self.groups))

    def each(
        self,
        task: Callable[..., Any],
        *,
        merge: Callable[[Any, Any], Any] | None = None,
        into: Callable[[int, Any], None] | None = None,
        only: Sequence[int] | None = None,
        **options: Any,
    ) -> Any:
        wanted = set(range(len(self.regions)) if only is None else only)
        asked = {worker: [i for i in numbers if i in wanted] for worker, numbers in self.homes.items()}
        asked = {worker: numbers for worker, numbers in asked.items() if numbers}
        jobs = [
            self.client.submit(
                run_group,
                self.groups[worker],
                task,
                {**options, "merge": merge, "only": numbers},
                workers=[worker],
                pure=False,
            )
            for worker, numbers in asked.items()
        ]
        results = collect(self.client, jobs, workers=self.groups)
        if merge is not None:
            merged = results[0]
            for result in results[1:]:
                merged = merge(merged, result)
            return merged
        by_number = {
            i: found
            for numbers, part in zip(asked.values(), results, strict=True)
            for i, found in zip(numbers, part, strict=True)
        }
        if into is not None:
            for number, found in by_number.items():
                into(number, found)
            return None
        return [by_number[i] for i in (range(len(self.regions)) if only is None else only)]
