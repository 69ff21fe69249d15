"""Pure arithmetic of blocks: how a stack is cut, and how much a block sees beyond its border."""

from __future__ import annotations

import math

BLOCK_BYTES = 96 * 2**20
Region = tuple[slice, ...]


def cut_regions(
    dims: tuple[str, ...], shape: tuple[int, ...], *, whole: frozenset[str], halo: int, block_bytes: int = BLOCK_BYTES
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
        Rows that a block of rows reads beyond its border; blocks are at least 16 times as high.

    Returns
    -------
    list of tuple of slice
        In order, covering every value exactly once.
    """
    axis = 0 if len(dims) == 3 and dims[0] not in whole else len(dims) - 2
    slab = 4 * math.prod(shape) // max(1, shape[axis])
    thick = max(1, block_bytes // max(1, slab))
    if dims[axis] == "y":
        thick = max(thick, 16 * halo, 1)
    blocks = math.ceil(shape[axis] / thick)
    thick = math.ceil(shape[axis] / blocks)  # alike, so that no worker waits for a large last one
    full = [slice(0, n) for n in shape]
    starts = range(0, shape[axis], thick)
    return [tuple([*full[:axis], slice(a, min(a + thick, shape[axis])), *full[axis + 1 :]]) for a in starts]


def widen(region: Region, shape: tuple[int, ...], *, halo: int) -> tuple[Region, Region]:
    """Widen a region by `halo` in y and x where the stack goes on.

    Returns
    -------
    wide : tuple of slice
        What to read.
    inner : tuple of slice
        Where the region lies within it, last two axes.
    """
    lead, tail = len(region) - 2, []
    for s, n in zip(region[lead:], shape[lead:], strict=True):
        tail.append(slice(max(0, s.start - halo), min(n, s.stop + halo)))
    inner = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(region[lead:], tail, strict=True))
    return (*region[:lead], *tail), inner
