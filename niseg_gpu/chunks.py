"""Pure arithmetic of blocks: how a stack is cut, and how much a block sees beyond its border."""

from __future__ import annotations

import math
from typing import NamedTuple

BLOCK_BYTES = 32 * 2**20  # small enough that the allocator takes freed blocks again, without page faults
Region = tuple[slice, ...]


class Work(NamedTuple):
    """Bytes that a step holds at its peak besides the block it is given: what it works with and what it gives back.

    Attributes
    ----------
    each : int
        For every block that is worked on at once.
    once : int
        For all of them together, beyond that.
    """

    each: int
    once: int = 0


def cut_regions(
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    *,
    whole: frozenset[str],
    halo: int,
    frames: int = 0,
    grid: tuple[int, int] = (1, 1),
    parts: int = 1,
    block_bytes: int = BLOCK_BYTES,
) -> list[Region]:
    """Cut a stack along one axis into blocks of about `block_bytes` in float32.

    Parameters
    ----------
    dims : tuple of str
        Axis names, ``y`` and ``x`` last.
    shape : tuple of int
    whole : frozenset of str
        Axes that a block may not split. Rows are cut where the first axis is among them, else frames.
    halo : int
        Rows that a block of rows reads beyond its border; blocks are at least 8 times as high as both together.
    frames : int
        Frames that a block of frames reads beyond its border; blocks are at least as thick as both together.
    grid : tuple of int
        What blocks start at multiples of: along the first of three axes, and in y.
    parts : int
        Blocks at least, where the halo allows it, so that every worker has some.
    block_bytes : int

    Returns
    -------
    list of tuple of slice
        In order, covering every value exactly once.
    """
    axis = 0 if len(dims) == 3 and dims[0] not in whole else len(dims) - 2
    slab = 4 * math.prod(shape) // max(1, shape[axis])
    thick = max(1, min(block_bytes // max(1, slab), math.ceil(shape[axis] / parts)))
    thick = max(thick, 16 * halo if dims[axis] == "y" else 2 * frames)
    blocks = math.ceil(shape[axis] / thick)
    thick = math.ceil(shape[axis] / blocks)  # alike, so that no worker waits for a large last one
    step = grid[1] if dims[axis] == "y" else grid[0]
    thick = math.ceil(thick / step) * step
    full = [slice(0, n) for n in shape]
    starts = range(0, shape[axis], thick)
    return [tuple([*full[:axis], slice(a, min(a + thick, shape[axis])), *full[axis + 1 :]]) for a in starts]


def widen(region: Region, shape: tuple[int, ...], *, halo: tuple[int, int]) -> Region:
    """Widen a region as far as the stack goes: by ``halo[0]`` along the first of three axes, ``halo[1]`` in y and x."""
    reach = (halo[0], halo[1], halo[1])[-len(shape) :]
    return tuple(slice(max(0, s.start - h), min(n, s.stop + h)) for s, n, h in zip(region, shape, reach, strict=True))


def locate(region: Region, *, within: Region) -> Region:
    """Return `region` as it lies inside the block `within`."""
    return tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(region, within, strict=True))
