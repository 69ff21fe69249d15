"""What a run holds in memory: arithmetic over shapes, dtypes and steps, with no data in sight.

A run has phases: the blocks, the step that ends the pipeline, the report. What one had is given back before the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from niseg_gpu.chunks import Region, widen
from niseg_gpu.io.zarr import MAX_CHUNK_BYTES
from niseg_gpu.kmeans.arrays import count_held
from niseg_gpu.kmeans.extras import count_extras
from niseg_gpu.kmeans.table import count_table_bytes
from niseg_gpu.pipeline.blocks import halo_of, lie_beside
from niseg_gpu.pipeline.planes import PIXELS
from niseg_gpu.stack import StackInfo, dtype_for_steps

SPARE = 1.1  # times the arrays of the blocks in flight: gaps between them in the store of memory
PAGE, PLANE = 40_000_000, 52_000_000  # bytes: the page with its maps and curves; counting a plane of spots
DRAWN, DRAWN_PIXELS = 100, 600**2  # bytes a pixel of frames that are drawn, which are shrunk to so many pixels
LITTLE = 25_000_000  # bytes: objects, threads' stacks
FRAME = 20  # bytes a pixel of a frame: the sums of image, spots and mean image
AVERAGED = 24  # bytes a pixel of frames that are averaged: the sum before and after a block, the averages
FRAME_WRITTEN = 36  # the same with their means, on their way to the disk
PINNED = 2  # times a block at most: CuPy copies it through page-locked memory, whose sizes are powers of two
CODED = 2  # copies of a block that is written: in the order of its chunk, and compressed


class Way(NamedTuple):
    """Bytes of one block on its way through the steps.

    Attributes
    ----------
    raw : int
        As it was read, with the blocks of open beam and dark current beside it; held until the block is done.
    steps : tuple of int
        At the peak of each step, besides `raw`.
    left : int
        At the end: the result with its border, and the masks.
    once : int
        What a step holds once for all blocks.
    largest : int
        Of its arrays.
    """

    raw: int
    steps: tuple[int, ...]
    left: int
    once: int
    largest: int

    @property
    def peak(self) -> int:
        return self.raw + max((*self.steps, self.left))


def follow_block(stack: Any, stages: Sequence[Any], region: Region, *, backend: Any) -> Way:
    """Add up what one block needs, with its border and its references.

    Parameters
    ----------
    stack : xarray.DataArray or StackInfo
        As it is read.
    stages : sequence of Stage
    region : tuple of slice
        The block's own part.
    backend : Cpu or Gpu
    """
    return _follow(stack, stages, widen(region, stack.shape, halo=halo_of(stages)), backend)


def _follow(stack: Any, stages: Sequence[Any], wide: Region, backend: Any) -> Way:
    def cut(shape: Sequence[int]) -> tuple[int, ...]:
        """The block's part of a stack after some step; an axis that no block splits may have another length there."""
        whole = [s.stop - s.start == n for s, n in zip(wide, stack.shape, strict=True)]
        return tuple(n if w else s.stop - s.start for s, n, w in zip(wide, shape, whole, strict=True))

    info = StackInfo(tuple(map(str, stack.dims)), cut(stack.shape), dtype_for_steps(stack.dtype))
    raw = math.prod(info.shape) * stack.dtype.itemsize
    once, largest, aside, peaks = 0, raw, 0, [0]
    for value in (value for stage in stages for value in stage.state.values() if hasattr(value, "stages")):
        way = _follow(value.raw, value.stages, lie_beside(wide, stack.shape, of=value.raw.shape), backend)
        peaks.append(aside + way.peak - way.raw)
        raw, aside, once, largest = raw + way.raw, aside + way.left, max(once, way.once), max(largest, way.largest)
    held = 0 if info.dtype == stack.dtype and not backend.has_bus else _nbytes(info)  # 0: what was read itself
    steps, masks = [], 0
    for stage in stages:
        if info.dtype != dtype_for_steps(info.dtype):
            info = info.with_(dtype=dtype_for_steps(info.dtype))
            held = _nbytes(info)
        work = stage.op.memory(info, backend=backend, **stage.state)
        steps.append(max(aside + held + masks + work.each, *peaks))
        info, once = stage.info.with_(shape=cut(stage.info.shape)), max(once, work.once)
        masks += math.prod(info.shape) if stage.op.mask else 0
        held = _nbytes(info) if work.each else held
        largest = max(largest, held)
    return Way(raw, tuple(steps), held + masks, once, largest)


def count_host(
    image: StackInfo,
    way: Way,
    *,
    at_once: int,
    base: int,
    last: tuple[Any, Mapping[str, Any]] | None,
    mapped: int = 0,
    unpacked: int = 0,
    decoded: int = 0,
    written: int = 0,
    n_planes: int,
    pictures_frames: bool,
    backend: Any,
    fetched: bool = False,
    in_file: bool = False,
) -> dict[str, dict[str, int]]:
    """Bytes of the host's memory by phase and what they are for.

    Parameters
    ----------
    image : StackInfo
        After the block-wise steps.
    way : Way
        Of the largest block.
    at_once : int
        Blocks that are worked on at once.
    base : int
        What the process holds with its libraries loaded.
    mapped : int
        Files that it maps into its memory; the system takes that back where it runs short.
    last : (Op, parameters), optional
        The step that ends the pipeline.
    unpacked : int
        Files that can be unpacked only whole, and are kept so.
    decoded : int
        Frames that wait for blocks that need their rest.
    written : int
        Of the largest part of a block that is kept on disk.
    n_planes : int
        Steps whose pixels are sampled for the report, to be counted in a plane.
    pictures_frames : bool
        Whether the report shows some frames of the result.
    backend : Cpu or Gpu
    fetched : bool
        Whether the table is the host's, whatever the device.
    in_file : bool
        Whether the table is on disk; the last step keeps what memory holds.
    """
    on_host = not backend.has_bus
    arrays = max(way.peak if on_host else way.raw, (way.left if on_host else written) + CODED * written)
    blocks = int(SPARE * (arrays * at_once + (way.once if on_host else 0)))
    frame = math.prod(image.shape[-2:])
    shared = {
        "process and libraries": base + LITTLE,
        "files mapped": mapped,
        "files unpacked": unpacked,
        "sums and samples": FRAME * frame + 8 * n_planes * min(PIXELS, math.prod(image.shape)),
        "copies to the device": 0 if on_host else PINNED * way.raw * at_once,
    }
    table, more = _count_last(image, last, backend=backend) if last and (on_host or fetched) else (0, 0)
    kept = table
    if last and in_file:
        table, kept = 0, 0 if fetched else _count_held(image, last, at_once, backend)[0 if on_host else 1]
    page = PAGE
    if pictures_frames:  # each is read from a chunk that is decoded
        page += DRAWN * min(frame, DRAWN_PIXELS) + 2 * min(written, MAX_CHUNK_BYTES)
    phases = {"blocks": {**shared, "blocks in flight": blocks, "decoded frames": decoded, "table of spectra": table}}
    if last:
        phases["last step"] = {**shared, "table of spectra": kept, "its own arrays": more}
    phases["report"] = {**shared, "pictures": max(page, PLANE if n_planes else 0)}
    phases["report"]["sums and samples"] += (FRAME_WRITTEN - FRAME) * frame
    return phases


def count_averages(
    way: Way,
    *,
    at_once: int,
    base: int,
    frame: int,
    mapped: int = 0,
    unpacked: int = 0,
    decoded: int = 0,
    backend: Any,
) -> dict[str, int]:
    """Bytes of the host's memory while the frames of a reference are averaged, before the phases of `count_host`.

    Parameters
    ----------
    way : Way
        Of the reference's largest block.
    at_once, base, mapped, unpacked, decoded, backend
        As for `count_host`.
    frame : int
        Its pixels.
    """
    on_host = not backend.has_bus
    blocks = (way.peak if on_host else way.raw + way.left) * at_once + (way.once if on_host else 0)
    return {
        "process and libraries": base + LITTLE,
        "files mapped": mapped,
        "files unpacked": unpacked,
        "copies to the device": 0 if on_host else PINNED * way.raw * at_once,
        "blocks in flight": int(SPARE * blocks),
        "decoded frames": decoded,
        "averages": AVERAGED * frame,
    }


def count_device(
    image: StackInfo,
    way: Way,
    *,
    at_once: int,
    last: tuple[Any, Mapping[str, Any]] | None,
    backend: Any,
    in_file: bool = False,
) -> dict[str, dict[str, int]]:
    """Bytes of the memory of a device of its own, likewise; its context and its libraries' code are not in them."""
    table, more = _count_last(image, last, backend=backend) if last else (0, 0)
    table, kept = (0, _count_held(image, last, at_once, backend)[0]) if last and in_file else (table, table)
    blocks = at_once * max((*way.steps, way.left)) + way.once
    phases = {"blocks": {"blocks in flight": blocks, "table of spectra": table}}
    if last:
        phases["last step"] = {"table of spectra": kept, "its own arrays": more}
    return phases


def find_peak(phases: Mapping[str, Mapping[str, int]]) -> tuple[str, int]:
    """The phase that needs most, and how much."""
    sums = {name: sum(parts.values()) for name, parts in phases.items()}
    name = max(sums, key=sums.__getitem__)
    return name, sums[name]


def _count_last(image: StackInfo, last: tuple[Any, Mapping[str, Any]], *, backend: Any) -> tuple[int, int]:
    op, parameters = last
    extras = count_extras(**parameters)
    pixels = math.prod(image.shape) // image.sizes.get("tof", 1)
    table = count_table_bytes(image, extras=extras, backend=backend) + pixels
    return table, op.memory(image, backend=backend, **parameters).once


def _count_held(image: StackInfo, last: tuple[Any, Mapping[str, Any]], workers: int, backend: Any) -> tuple[int, int]:
    """Of a table in a file: what the device holds of it, and the host for it."""
    return count_held(image, count_extras(**last[1]), backend=backend, workers=workers)


def _nbytes(info: StackInfo) -> int:
    return math.prod(info.shape) * info.dtype.itemsize
